import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon.errors import GuerdonError
from guerdon.evolve import SearchRecord, Tried, execution_guided_search, patched, ranked_ideas, repaired
from guerdon.evolve.execution import exploit_count, exploit_share


class Lab:
    """Ideas are numbers, proposed in order; scores are given by a function."""

    def __init__(self, score=float, back=None):
        self.score, self.back, self.asked, self.next = score, back, [], 0

    def propose(self, kind, shown, count, epoch):
        self.asked.append((kind, [each.idea for each in shown], count, epoch))
        made = list(range(self.next, self.next + count))
        self.next += count
        return made

    def execute(self, ideas, epoch):
        for number, idea in enumerate(ideas[: self.back]):
            yield number, self.score(idea)


def test_exploit_shares_rise_to_eight_tenths():
    assert [exploit_share(e) for e in range(9)] == pytest.approx([0, 0.5, 0.6, 0.6, 0.7, 0.7, 0.8, 0.8, 0.8])
    assert [exploit_count(e, 80) for e in range(8)] == [0, 40, 40, 40, 50, 50, 60, 60]
    assert exploit_count(2, 5) == 3
    assert exploit_count(9, 10) == 0


def test_ranking_drops_repeats_unknown_and_impossible_scores():
    told = [Tried("a", 0, 0, 1.0), Tried("a", 0, 0, 7.0), Tried("b", 0, 1, math.nan)]
    told += [Tried("c", 0, 2, 99.0), Tried("d", 1, 0, 3.0), Tried("e", 1, 1, -math.inf)]
    assert [each.idea for each in ranked_ideas(told, (-10.0, 10.0))] == ["d", "a"]
    assert [each.idea for each in ranked_ideas(told)] == ["c", "d", "a", "e"]


def test_every_epoch_is_asked_as_its_share_says():
    lab = Lab()
    record = execution_guided_search(lab.propose, lab.execute, baseline=-1.0, epochs=3, ideas=20, wait=1.0 - 1e-9)
    assert [(kind, count, epoch) for kind, _, count, epoch in lab.asked] == [
        ("first", 20, 0),
        ("exploit", 10, 1),
        ("explore", 10, 1),
        ("exploit", 10, 2),
        ("explore", 10, 2),
    ]
    assert len(record.tried) == 60
    assert all(len(shown) == 10 for kind, shown, *_ in lab.asked if kind == "exploit")
    assert sorted(lab.asked[2][1]) == list(range(20))


def test_what_does_not_beat_the_baseline_or_cannot_be_is_never_an_example():
    score = lambda idea: {0: 99.0, 1: math.nan, 2: 5.0}.get(idea, 0.0)  # noqa: E731
    lab = Lab(score)
    execution_guided_search(lab.propose, lab.execute, baseline=0.0, possible=(-1.0, 10.0), epochs=2, ideas=20, wait=0.9)
    [exploit] = [shown for kind, shown, *_ in lab.asked if kind == "exploit"]
    [explore] = [shown for kind, shown, *_ in lab.asked if kind == "explore"]
    assert exploit == [2]
    assert not {0, 1} & set(explore)


def test_without_anything_above_the_baseline_ideas_are_free():
    lab = Lab()
    execution_guided_search(lab.propose, lab.execute, baseline=1e9, epochs=2, ideas=20)
    assert [kind for kind, *_ in lab.asked] == ["first", "first", "explore"]
    assert lab.asked[1][1] == []


def test_an_epoch_begins_once_more_than_a_share_is_back_and_late_results_follow():
    lab = Lab()
    record = execution_guided_search(lab.propose, lab.execute, baseline=-1.0, epochs=3, ideas=10, examples=99, wait=0.3)
    assert sorted(lab.asked[1][1]) == [0, 1, 2, 3]  # four of ten are more than three in ten
    assert len(lab.asked[2][1]) == 10 + 4
    assert [each.epoch for each in record.tried] == [0] * 10 + [1] * 10 + [2] * 10


@given(st.integers(0, 50))
def test_the_same_seed_shows_the_same_examples(seed):
    one, two = Lab(), Lab()
    for lab in (one, two):
        execution_guided_search(lab.propose, lab.execute, baseline=3.0, epochs=3, ideas=10, examples=3, seed=seed)
    assert one.asked == two.asked


def test_missing_results_and_ideas_are_named():
    lab = Lab(back=2)
    with pytest.raises(GuerdonError, match="execute gave 2 of 10 results of epoch 0, wanted 4"):
        execution_guided_search(lab.propose, lab.execute, baseline=0.0, ideas=10)
    with pytest.raises(GuerdonError, match="propose gave 1 ideas of kind 'first', wanted 10"):
        execution_guided_search(lambda *asked: [0], lab.execute, baseline=0.0, ideas=10)


def test_the_record_tells_the_best_so_far_and_epochs():
    tried = [Tried("a", 0, 0, 1.0), Tried("b", 0, 1, 99.0), Tried("c", 1, 0, 3.0), Tried("d", 1, 1, 2.0)]
    record = SearchRecord((0.0, 10.0), tried)
    assert record.best_so_far() == [1.0, 1.0, 3.0, 3.0]
    assert record.by_epoch() == [(1.0, 1.0), (2.5, 3.0)]


def test_protected_files_stay_as_they_are():
    files = {"train.py": "1", "eval.py": "2"}
    assert patched(files, {"train.py": "3", "new.py": "4"}, ["eval.py"]) == {
        "train.py": "3",
        "eval.py": "2",
        "new.py": "4",
    }
    assert patched(files, {"eval.py": "2"}, ["eval.py"]) == files
    with pytest.raises(GuerdonError, match="writes 'eval.py', which is protected"):
        patched(files, {"eval.py": "return 1"}, ["eval.py"])
    with pytest.raises(GuerdonError, match="writes 'secret.py'"):
        patched(files, {"secret.py": ""}, ["secret.py"])


def test_repairs_end_when_nothing_is_wrong_or_trials_are_used_up():
    asked = []

    def write(wrong):
        asked.append(wrong)
        return len(asked)

    assert repaired(write, lambda version: "" if version == 3 else f"not {version}") == (3, "")
    assert asked == ["", "not 1", "not 2"]
    asked.clear()
    assert repaired(write, lambda version: "bad", trials=4) == (4, "bad")
    assert len(asked) == 4
