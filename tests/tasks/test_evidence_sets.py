import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon.errors import TaskError
from guerdon.tasks.evidence import mine_minimal_sets

POOL = [f"p{i}" for i in range(20)]


class Oracle:
    """Knows what suffices, and remembers what it was asked."""

    def __init__(self, holds):
        self.holds, self.asked = holds, []

    def __call__(self, passages):
        self.asked.append(tuple(passages))
        return self.holds(set(passages))


def test_passages_that_are_needed_together_are_found_exactly():
    oracle = Oracle(lambda chosen: chosen >= {"p4", "p11"})
    assert mine_minimal_sets(POOL, oracle) == [frozenset({"p4", "p11"})]


def test_of_two_that_can_stand_for_each_other_one_is_found():
    oracle = Oracle(lambda chosen: bool(chosen & {"p4", "p11"}))
    assert mine_minimal_sets(POOL, oracle) == [frozenset({"p4"})], "the less relevant one is left out first"


def test_further_orders_find_further_sets():
    oracle = Oracle(lambda chosen: bool(chosen & {"p4", "p11"}))
    found = mine_minimal_sets(POOL, oracle, orders=20)
    assert set(found) == {frozenset({"p4"}), frozenset({"p11"})}
    assert len(found) == 2
    assert found == mine_minimal_sets(POOL, oracle, orders=20)


def test_the_least_relevant_is_left_out_first_and_the_pool_keeps_its_order():
    oracle = Oracle(lambda chosen: "a" in chosen)
    mine_minimal_sets(["a", "b", "c"], oracle)
    assert oracle.asked == [("a", "b", "c"), ("a", "b"), ("a",), ()]


def test_no_set_is_judged_twice():
    oracle = Oracle(lambda chosen: len(chosen) >= 3)
    mine_minimal_sets(POOL, oracle, orders=5)
    assert len(oracle.asked) == len(set(map(frozenset, oracle.asked)))


def test_passes_go_on_until_none_can_be_left_out():
    # b can be left out only once a was, whose turn comes after b's.
    suffices = {frozenset("ab"), frozenset("b"), frozenset("")}
    oracle = Oracle(lambda chosen: frozenset(chosen) in suffices)
    assert mine_minimal_sets("ab", oracle) == [frozenset()]


def test_a_pool_that_does_not_suffice_has_no_set():
    oracle = Oracle(lambda chosen: "elsewhere" in chosen)
    assert mine_minimal_sets(POOL, oracle) == []
    assert len(oracle.asked) == 1


def test_a_majority_outvotes_a_judge_that_errs_now_and_then():
    def erring(every):
        turns = itertools.count(1)
        return Oracle(lambda chosen: (chosen >= {"p4", "p11"}) != (next(turns) % every == 0))

    assert mine_minimal_sets(POOL, erring(4)) != [frozenset({"p4", "p11"})]
    assert mine_minimal_sets(POOL, erring(4), votes=3) == [frozenset({"p4", "p11"})]


def test_votes_stop_once_the_majority_is_certain():
    oracle = Oracle(lambda chosen: True)
    mine_minimal_sets(["a"], oracle, votes=5)
    assert len(oracle.asked) == 2 * 3


@pytest.mark.parametrize("options", [{"orders": 0}, {"votes": 0}, {"votes": 2}])
def test_options_without_meaning_are_refused(options):
    with pytest.raises(TaskError, match="votes"):
        mine_minimal_sets(POOL, lambda chosen: True, **options)


def test_a_passage_that_stands_twice_is_refused():
    with pytest.raises(TaskError, match="stands twice in a pool of 3"):
        mine_minimal_sets(["a", "b", "a"], lambda chosen: True)


@given(st.lists(st.sets(st.integers(0, 6), min_size=1), min_size=1, max_size=4))
def test_what_is_found_suffices_and_is_minimal(sets):
    def sufficient(passages):
        return any(one <= set(passages) for one in sets)

    found = mine_minimal_sets(range(7), sufficient, orders=8)
    assert found
    for one in found:
        assert sufficient(one)
        assert not any(sufficient(one - {passage}) for passage in one)
        assert one in sets
