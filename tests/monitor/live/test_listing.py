from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon.monitor.live.listing import COLUMNS, PAGE, STATUSES, BadQuery, Query, listed
from guerdon.monitor.live.store import RunRow


def params_of(address):
    return dict(parse_qsl(urlsplit(address).query))


def row(name, **facts):
    return RunRow(name=name, status=facts.pop("status", "finished"), **facts)


ROWS = [
    row("b-countdown", task="countdown", policy="tiny_lm", reward=0.5, steps=10, started=1.0),
    row("A-digits", task="digits", policy="flow", reward=None, steps=30, started=3.0, status="running"),
    row("c-pole", task="gymnasium", policy="control", reward=-2.0, steps=20, started=2.0, status="interrupted"),
    row("d-pole", task="gymnasium", policy="control", reward=float("nan"), steps=20, started=4.0),
]


def names(**params):
    return [r.name for r in listed(ROWS, Query.parse(params)).rows]


def test_the_latest_run_comes_first():
    assert names() == ["d-pole", "A-digits", "c-pole", "b-countdown"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("pole", ["d-pole", "c-pole"]),
        ("POLE c-", ["c-pole"]),
        ("flow", ["A-digits"]),
        ("pole digits", []),
        ("  ", ["d-pole", "A-digits", "c-pole", "b-countdown"]),
    ],
)
def test_every_word_must_occur_somewhere_in_name_task_policy_or_credit(text, found):
    assert names(q=text) == found


def test_status_and_text_filter_together():
    assert names(status="finished") == ["d-pole", "b-countdown"]
    assert names(status="finished", q="count") == ["b-countdown"]


def test_missing_numbers_come_last_either_way_and_equals_keep_the_order_of_names():
    assert names(sort="reward") == ["b-countdown", "c-pole", "A-digits", "d-pole"]
    assert names(sort="reward", order="up") == ["c-pole", "b-countdown", "A-digits", "d-pole"]
    assert names(sort="steps") == ["A-digits", "c-pole", "d-pole", "b-countdown"]


def test_names_and_statuses_sort_upwards_at_first():
    assert names(sort="name") == ["A-digits", "b-countdown", "c-pole", "d-pole"]
    assert names(sort="status") == ["A-digits", "b-countdown", "d-pole", "c-pole"]


@pytest.mark.parametrize("key", list(COLUMNS))
def test_every_column_sorts_both_ways(key):
    assert sorted(names(sort=key, order="up")) == sorted(names(sort=key, order="down")) == sorted(names())


def test_pages_hold_every_run_once():
    rows = [row(f"run-{k:03}", started=float(k)) for k in range(2 * PAGE + 1)]
    pages = [listed(rows, Query(page=number)) for number in (1, 2, 3)]
    assert [len(page.rows) for page in pages] == [PAGE, PAGE, 1]
    assert {r.name for page in pages for r in page.rows} == {r.name for r in rows}
    assert [(page.found, page.total, page.pages) for page in pages] == [(2 * PAGE + 1, 2 * PAGE + 1, 3)] * 3
    assert listed(rows, Query(page=99)).number == 3
    assert listed([], Query()).pages == 1


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"status": "finishd"}, "did you mean 'finished'"),
        ({"sort": "rewards"}, "did you mean 'reward'"),
        ({"order": "left"}, "'up' or 'down', not 'left'"),
        ({"page": "0"}, "page is a whole number from 1 on, not '0'"),
        ({"page": "-1"}, "not '-1'"),
        ({"page": "1e9"}, "not '1e9'"),
        ({"page": "9" * 5000}, "whole number"),
        ({"page": "٣"}, "whole number"),
    ],
)
def test_an_address_that_asks_for_what_there_is_not_is_refused(params, message):
    with pytest.raises(BadQuery, match=message):
        Query.parse(params)


@given(
    st.builds(
        Query,
        text=st.text().map(str.strip),
        status=st.sampled_from(["", *STATUSES]),
        sort=st.sampled_from(list(COLUMNS)),
        descending=st.booleans(),
        page=st.integers(1, 10**6),
    )
)
def test_an_address_says_all_of_a_query(query):
    address = query.address(page=query.page)
    assert Query.parse(dict(parse_qsl(urlsplit(address).query, keep_blank_values=True))) == query


def test_clicking_the_heading_again_turns_the_order_round():
    query = Query.parse({"q": "pole", "page": "3"})
    by_name = Query.parse(params_of(query.sorted_by(COLUMNS["name"])))
    assert by_name == Query("pole", sort="name", descending=False)
    assert Query.parse(params_of(by_name.sorted_by(COLUMNS["name"]))) == Query("pole", sort="name", descending=True)
