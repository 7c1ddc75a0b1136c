import asyncio
import json
import logging
import math
import pickle
import sqlite3
import time
from types import SimpleNamespace

import pytest
from judge_server import completion

from guerdon.errors import RecipeError
from guerdon.recipe import load_recipe
from guerdon.registry import get
from guerdon.rewards.judges import (
    Checklist,
    Item,
    JudgeError,
    OpenAIJudge,
    Preference,
    Ranking,
    Rating,
    Steps,
    UnreadableVerdict,
    Verdict,
    resolve_judge,
    transport,
)
from guerdon.rewards.judges.transport import _retry_after, read_key

KEY = "sk-Sentinel0123456789/+abcdef"


def judge(server, **settings):
    settings = {"model": "m", "base_url": server.url, "api_key_env": None, "cache": False} | settings
    return OpenAIJudge(**{"backoff": 0.01, "timeout": 5.0} | settings)


def rating(text="answer"):
    return Rating(prompt="prompt", answers=(text,))


def ask(judged, *texts):
    return judged.ask([rating(text) for text in texts or ("answer",)])


def test_a_rating_crosses_the_wire(server, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    judged = judge(server, api_key_env="JUDGE_KEY", sampling={"temperature": 0.5, "seed": 3})
    assert ask(judged) == [Verdict((6 / 9,), "fine")]
    headers, body, _ = server.requests[0]
    assert headers["authorization"] == f"Bearer {KEY}"
    assert (body["model"], body["temperature"], body["seed"]) == ("m", 0.5, 3)
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    schema = body["response_format"]["json_schema"]["schema"]
    assert list(schema["properties"]) == schema["required"] == ["reason", "score"]
    assert schema["properties"]["score"]["enum"] == list(range(1, 11))
    counted = {name: value for name, value in judged.stats().items() if name != "seconds"}
    assert counted == {
        **{"questions": 1, "failures": 0, "calls": 1, "cache_hits": 0, "retries": 0, "unreadable": 0},
        **{"tokens_in": 100, "tokens_out": 20, "without_usage": 0},
    }
    assert judge(server).ask([]) == []


def test_without_a_key_none_is_sent(server):
    ask(judge(server, structured="none", explain=False))
    headers, body, _ = server.requests[0]
    assert "authorization" not in headers
    assert "response_format" not in body
    assert "reason" not in body["messages"][1]["content"]
    ask(judge(server, structured="json_object"), "other")
    assert server.bodies[1]["response_format"] == {"type": "json_object"}


@pytest.mark.parametrize(
    ("question", "said", "values"),
    [
        (Preference(prompt="p", answers=("a", "b")), {"better": "B"}, (0.0,)),
        (Ranking(prompt="p", answers=("a", "b", "c")), {"ranking": ["C", "A", "B"]}, (0.5, 0.0, 1.0)),
        (Steps(prompt="p", answers=("a", "b")), {"step_1": "yes", "step_2": "no"}, (1.0, 0.0)),
        (
            Checklist(prompt="p", answers=("a",), items=(Item("is short"), Item("is kind", (1, 5)))),
            {"item_1": "no", "item_2": 2},
            (0.0, 0.25),
        ),
    ],
)
def test_every_form_crosses_the_wire(server, question, said, values):
    server.answer = lambda body: json.dumps({"reason": "r", **said})
    assert judge(server).ask([question]) == [Verdict(values, "r")]
    properties = server.bodies[0]["response_format"]["json_schema"]["schema"]["properties"]
    assert set(properties) == {"reason", *said}


@pytest.mark.parametrize(
    "fault",
    [
        *(("status", code) for code in (408, 409, 425, 429, 500, 502, 503, 529)),
        *("malformed", "truncated", "disconnect", "reset", "garbage", "wrong_schema", "web_page"),
        ("wrong_schema", {"choices": []}),
        ("wrong_schema", {"choices": [{"message": {"content": ["not", "text"]}}]}),
        ("wrong_schema", {"choices": None}),
        ("wrong_schema", [1, 2]),
    ],
    ids=str,
)
def test_what_may_pass_is_tried_again(server, fault):
    server.faults.extend([fault, fault])
    judged = judge(server)
    assert ask(judged) == [Verdict((6 / 9,), "fine")]
    assert (judged.stats()["retries"], judged.stats()["calls"]) == (2, 3)
    assert server.bodies[0] == server.bodies[2]


def test_an_answer_under_the_wrong_name_is_an_answer(server):
    server.faults.append("plain_text")
    assert ask(judge(server, retries=0)) == [Verdict((6 / 9,), "fine")]


@pytest.mark.parametrize("fault", ["stall", "drip"])
def test_a_request_has_a_time_limit_from_end_to_end(server, fault):
    server.faults.append(fault)
    began = time.monotonic()
    assert ask(judge(server, timeout=0.3)) == [Verdict((6 / 9,), "fine")]
    assert 0.3 <= time.monotonic() - began < 3
    server.faults.extend([fault, fault])
    (error,) = ask(judge(server, timeout=0.1, retries=1))
    assert str(error) == f"{server.url}/chat/completions gave no whole answer within 0.1 s; tried 2 times"


@pytest.mark.parametrize(
    ("fault", "hint"),
    [
        (("status", 400), "compare 'sampling' and 'structured'"),
        (("status", 401), "'api_key_env'"),
        (("status", 404), "check 'base_url' and 'model'"),
        (("status", 418), "answered 418"),
        ("moved", "answered 301"),
    ],
    ids=str,
)
def test_what_will_not_pass_is_not_tried_again(server, fault, hint):
    server.faults.append(fault)
    first, second = ask(judge(server, concurrency=1), "one", "two")
    assert isinstance(first, JudgeError)
    assert hint in str(first)
    assert isinstance(second, Verdict)
    assert len(server.requests) == 2


def test_after_its_retries_a_question_has_failed_and_the_others_have_not(server):
    server.faults.extend([("status", 500)] * 3)
    judged = judge(server, retries=2, concurrency=1)
    error, verdict = ask(judged, "one", "two")
    assert str(error).endswith('answered 500: \'{"error": {"message": "no luck"}}\'; tried 3 times')
    assert isinstance(verdict, Verdict)
    assert not isinstance(error, UnreadableVerdict)
    assert (judged.stats()["failures"], judged.stats()["calls"]) == (1, 4)


def test_waits_grow_and_a_server_that_names_one_gets_it(server, monkeypatch):
    waits = []

    async def sleep(seconds):
        waits.append(seconds)

    monkeypatch.setattr(transport, "asyncio", SimpleNamespace(sleep=sleep, timeout=asyncio.timeout))
    server.faults.extend([("status", 503)] * 3 + [("busy", "7.5")] + [("status", 503)] * 4)
    assert isinstance(ask(judge(server, backoff=1.0, retries=8, max_wait=20.0))[0], Verdict)
    for wait, nominal in zip(waits[:3], (1, 2, 4), strict=True):
        assert 0.5 * nominal <= wait <= 1.5 * nominal
    assert len({wait / nominal for wait, nominal in zip(waits[:3], (1, 2, 4), strict=True)}) == 3, "they vary"
    assert waits[3] == 7.5
    assert waits[-1] == 20.0
    assert len(waits) == 8


def test_it_does_wait_as_long_as_the_server_asks(server):
    server.faults.append(("busy", "0.4"))
    ask(judge(server))
    (_, _, first), (_, _, second) = server.requests
    assert second - first >= 0.4


def test_a_wait_beyond_the_limit_is_a_failure_at_once(server):
    server.faults.append(("busy", "120"))
    (error,) = ask(judge(server))
    assert "asks to wait 120 s, more than max_wait 60" in str(error)
    assert len(server.requests) == 1


def test_retry_after_may_be_a_date():
    assert _retry_after("3") == 3.0
    assert _retry_after("-3") == 0.0
    assert _retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert _retry_after("Fri, 21 Oct 2499 07:28:00 GMT") > 1e9  # type: ignore[operator]
    assert _retry_after("soon") is None
    assert _retry_after(None) is None


def test_a_batch_has_a_deadline_that_costs_only_what_is_late(server):
    server.faults.extend(["none", "stall", "stall"])
    judged = judge(server, deadline=0.5, concurrency=1)
    began = time.monotonic()
    verdict, *late = ask(judged, "one", "two", "three")
    assert time.monotonic() - began < 3
    assert isinstance(verdict, Verdict)
    assert [str(error) for error in late] == ["not answered within the deadline of 0.5 s for the batch"] * 2
    assert judged.stats()["failures"] == 2


def test_no_more_requests_at_once_than_allowed_and_no_fewer(server):
    server.company, server.delay = 4, 0.02  # nothing is answered before four requests are there
    judged = judge(server, concurrency=4)
    assert all(isinstance(answer, Verdict) for answer in ask(judged, *map(str, range(20))))
    assert (server.peak, len(server.requests)) == (4, 20)


def test_answers_come_back_in_the_order_of_the_questions(server):
    server.answer = lambda body: json.dumps({"score": 1 + int(body["messages"][1]["content"].split("number ")[1][0])})
    answers = ask(judge(server, concurrency=8), *(f"number {i}" for i in (7, 3, 9, 0, 3)))
    assert [round(9 * answer.values[0]) for answer in answers] == [7, 3, 9, 0, 3]
    assert len(server.requests) == 4, "equal questions are asked once"


def test_an_answer_that_is_no_verdict_goes_back_with_what_is_wrong(server):
    said = iter(["I like it.", '{"score": 11}', '{"score": "8"}', '```json\n{"reason": "ok", "score": 8}\n```'])
    server.answer = lambda body: next(said)
    judged = judge(server, reread=3)
    assert ask(judged) == [Verdict((7 / 9,), "ok")]
    assert judged.stats()["unreadable"] == 3
    assert judged.stats()["tokens_in"] == 400, "answers that are no verdict cost as much"
    last = server.bodies[3]["messages"]
    assert [message["role"] for message in last] == ["system", "user", *["assistant", "user"] * 3]
    assert [message["content"] for message in last[2::2]] == ["I like it.", '{"score": 11}', '{"score": "8"}']
    assert "no JSON object in 'I like it.'" in last[3]["content"]
    assert "'score' is 11, want a number from 1 to 10" in last[5]["content"]


@pytest.mark.parametrize("said", [None, "", "no", '{"points": 3}', '{"score": true}', '{"score": NaN}', "[7]", '{"a":'])
def test_no_verdict_at_last_is_an_error_and_never_a_number(server, said):
    server.answer = lambda body: completion(said, finish="length")
    (error,) = ask(judge(server, reread=1, cache=True))
    assert isinstance(error, UnreadableVerdict)
    assert "'m' gave no verdict in 2 answers; the last one: " in str(error)
    assert "cut at its limit of tokens" in str(error)
    assert len(server.requests) == 2
    server.answer = lambda body: '{"score": 4}'
    assert ask(judge(server, cache=True)) == [Verdict((3 / 9,))], "a failure must not be remembered"


def test_costs_are_those_of_every_response(server):
    judged = judge(server, price_in=2.0, price_out=10.0)
    server.faults.append(("status", 500))
    ask(judged, "one", "two")
    assert judged.stats()["cost"] == pytest.approx((2 * 100 * 2.0 + 2 * 20 * 10.0) / 1e6)
    server.answer = lambda body: completion('{"score": 3}', usage=None)
    ask(judged, "three")
    assert judged.stats()["without_usage"] == 1
    assert "cost" not in judge(server).stats()


def test_a_question_is_paid_for_once(server, tmp_path):
    path = str(tmp_path / "folder" / "answers.sqlite")
    first = judge(server, cache=path)
    answers = ask(first, "one", "two")
    again = judge(server, cache=path, concurrency=3, retries=0)
    assert ask(again, "two", "one") == answers
    assert len(server.requests) == 2
    assert (again.stats()["cache_hits"], again.stats()["calls"], again.stats()["tokens_in"]) == (2, 0, 0)
    for other in (
        judge(server, cache=path, model="n"),
        judge(server, cache=path, sampling={"temperature": 1.0}),
        judge(server, cache=path, explain=False),
        judge(server, cache=path, structured="none"),
        judge(server, cache=path, base_url=server.url.replace("127.0.0.1", "localhost")),
    ):
        ask(other, "one")
        assert other.stats()["calls"] == 1
    judge(server, cache=path).ask([Rating(prompt="prompt", answers=("one",), high=9)])
    assert len(server.requests) == 8


def test_the_cache_is_in_the_users_folder_or_nowhere(server, tmp_path):
    ask(judge(server, cache=True))
    assert (tmp_path / "cache" / "judge.sqlite").is_file()
    ask(judge(server, cache=False), "other")
    (count,) = sqlite3.connect(tmp_path / "cache" / "judge.sqlite").execute("select count(*) from answers").fetchone()
    assert count == 1


def test_it_works_while_an_event_loop_is_running(server):
    async def notebook():
        return ask(judge(server))

    assert asyncio.run(notebook()) == [Verdict((6 / 9,), "fine")]


# Keys ---------------------------------------------------------------------------------------------------------


def chain(error):
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def test_a_key_reaches_the_server_and_nothing_else(server, monkeypatch, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("JUDGE_KEY", KEY)
    path = tmp_path / "answers.sqlite"
    judged = judge(server, api_key_env="JUDGE_KEY", cache=str(path), retries=0, concurrency=1)
    server.faults.extend(
        [("echo", 401), ("echo", 500), ("echo", 200), "disconnect", "stall", "echo_verdict", "malformed"]
    )
    judged.timeout = 1.5
    answers = ask(judged, *map(str, range(8)))
    assert [isinstance(answer, Verdict) for answer in answers] == [False] * 5 + [True, False, True]
    assert all(headers["authorization"] == f"Bearer {KEY}" for headers, _, _ in server.requests)
    assert answers[5].reason == "you sent Bearer [key]"
    assert "Bearer [key]" in str(answers[0])
    errors = [link for answer in answers if isinstance(answer, JudgeError) for link in chain(answer)]
    seen = [*map(repr, answers), *map(repr, errors), *(repr(vars(error)) for error in errors)]
    seen += [repr(judged), str(judged), judged.model_dump_json(), repr(vars(judged)), repr(judged.stats())]
    seen += [pickle.dumps(judged).decode("latin1"), path.read_bytes().decode("latin1")]
    recipe = {"task": "digits", "policy": "flow", "rewards": [{"name": "judge_score", "judge": judged}]}
    seen.append(load_recipe(recipe).to_yaml())
    assert "api_key_env: JUDGE_KEY" in seen[-1]
    logged = [record.getMessage() for record in caplog.records]
    assert any("HTTP Request" in line for line in logged)
    # What httpcore prints at DEBUG are the headers of the response, in which this server repeats the key.
    seen += [line for line in logged if "receive_response_headers" not in line]
    assert len(seen) > 30
    for text in seen:
        assert KEY not in text
        assert "Sentinel" not in text


def test_a_key_that_no_header_can_carry_is_refused_unseen(server, monkeypatch):
    for value in ("sk-Sentinel\nX-Evil: 1", "sk-Sentinel ü", "sk Sentinel"):
        monkeypatch.setenv("JUDGE_KEY", value)
        with pytest.raises(RecipeError, match="JUDGE_KEY holds white space or letters") as caught:
            judge(server, api_key_env="JUDGE_KEY")
        assert "Sentinel" not in str(caught.value)
    monkeypatch.setenv("JUDGE_KEY", f" {KEY}\n")
    assert read_key("JUDGE_KEY") == KEY


def test_a_key_that_is_missing_is_missed_before_any_compute(server, monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(RecipeError, match="environment variable JUDGE_KEY, which is not set"):
        judge(server, api_key_env="JUDGE_KEY")
    options = {"judge": {"backend": "openai", "model": "m", "api_key_env": "JUDGE_KEY"}}
    with pytest.raises(RecipeError, match="JUDGE_KEY"):
        get("reward", "judge_score").validate(options)
    monkeypatch.setenv("JUDGE_KEY", KEY)
    judged = judge(server, api_key_env="JUDGE_KEY")
    monkeypatch.delenv("JUDGE_KEY")
    (error,) = ask(judged)
    assert isinstance(error, JudgeError)
    assert "JUDGE_KEY" in str(error)
    assert server.requests == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"api_key": "sk-Sentinel"}, "keys don't belong in a recipe"),
        ({"token": "sk-Sentinel"}, "keys don't belong in a recipe"),
        ({"headers": {"Authorization": "Bearer sk-Sentinel"}}, "keys don't belong in a recipe"),
        ({"api_key_env": "sk-Sentinel"}, "no name of an environment variable"),
        ({"api_key_env": "gskSentinel01"}, "no name of an environment variable"),
        ({"api_key_env": ["sk-Sentinel"]}, "no name of an environment variable"),
        ({"base_url": "https://user:sk-Sentinel@example.org/v1"}, "more than an address"),
        ({"base_url": "https://sk-Sentinel@example.org/v1"}, "more than an address"),
        ({"base_url": "https://example.org/v1?key=sk-Sentinel"}, "more than an address"),
    ],
    ids=str,
)
def test_a_key_in_a_recipe_is_refused_unseen(settings, message):
    with pytest.raises(RecipeError, match=message) as caught:
        resolve_judge({"backend": "openai", "model": "m", "api_key_env": None, **settings})
    assert all("Sentinel" not in repr(link) for link in chain(caught.value))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": "localhost:8000"}, "want an address such as http://localhost:8000/v1"),
        ({"sampling": {"messages": []}}, "'messages' is set by the judge itself"),
        ({"price_in": 1.0}, "price_in and price_out belong together"),
        ({"concurrency": 0}, "concurrency"),
        ({"modle": "m"}, "modle"),
        ({"timeout": math.nan}, "timeout"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(RecipeError, match=message):
        resolve_judge({"backend": "openai", "model": "m", "api_key_env": None, **settings})
