import math
from collections import Counter

import numpy as np
import pytest

from guerdon.errors import RecipeError
from guerdon.tasks.recommendation import Recommendation, hit_rate, ndcg


def test_items_have_names_of_three_letters():
    task = Recommendation()
    assert len(set(task.items)) == len(task.items) == 100
    assert {len(name) for name in task.items} == {3}
    assert set("".join(task.items)) <= set("abcdefgh")
    assert Recommendation(seed=1).items != task.items
    assert Recommendation().items == task.items


def test_an_item_has_so_many_likely_successors():
    task = Recommendation(size=20, successors=3, noise=0.2)
    assert task.transitions.sum(axis=1) == pytest.approx(np.ones(20))
    for row in np.sort(task.transitions, axis=1)[:, ::-1]:
        odds = np.array([1, 1 / 2, 1 / 3])
        assert row[:3] == pytest.approx(0.8 * odds / odds.sum() + 0.01)
        assert row[3:] == pytest.approx(np.full(17, 0.01))


def test_histories_follow_the_chain():
    task = Recommendation(size=5, letters=2, history=2, successors=1, noise=0.3)
    place = {name: i for i, name in enumerate(task.items)}
    counts = np.zeros((5, 5))
    for problem in task.train_batch(8000, seed=3):
        *_, last = problem.prompt.split()
        counts[place[last], place[problem.answer]] += 1
    seen = counts / counts.sum(axis=1, keepdims=True)
    assert np.abs(seen - task.transitions).max() < 0.05
    assert {len(p.prompt.split()) for p in task.train_batch(10, seed=0)} == {2}


def test_held_out_histories_are_never_trained_on():
    task = Recommendation(size=30, history=2)
    train = task.train_batch(4000, seed=1)
    held_out = task.eval_problems(300)
    assert len(train) == 4000
    assert not {p.prompt for p in train} & {p.prompt for p in held_out}
    assert not {p.task_id for p in train} & {p.task_id for p in held_out}
    assert task.eval_problems(20) == task.eval_problems(20)
    assert task.train_batch(5, seed=1) == task.train_batch(5, seed=1) != task.train_batch(5, seed=2)
    of_prompt = Counter((p.prompt, p.task_id) for p in train)
    assert len(of_prompt) == len({p.prompt for p in train})


def test_the_first_held_out_problems_do_not_depend_on_how_many_there_are():
    task = Recommendation()
    assert task.eval_problems(7) == task.eval_problems(50)[:7]


def test_the_vocabulary_has_every_letter_of_a_name():
    task = Recommendation()
    assert set("".join(task.items)) | {" "} == set("".join(task.corpus()))


def test_the_scorer_wants_the_item_that_followed():
    scorer = Recommendation().scorer
    assert scorer
    assert (scorer("abc", "abc"), scorer("abd", "abc")) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"letters": 4}, "4 letters make 64 names for 100 items"),
        ({"letters": 30}, "30 letters"),
        ({"size": 1}, "for 1 items"),
        ({"successors": 101}, "successors is 101"),
        ({"history": 0}, "history 0"),
        ({"noise": 1.5}, "noise 1.5"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        Recommendation(**options)


def test_measures_by_hand():
    ranked, wanted = [["a", "b", "c"], ["d", "e", "f"], ["g", "h", "i"]], ["a", "f", "x"]
    assert hit_rate(ranked, wanted, 1) == pytest.approx(1 / 3)
    assert hit_rate(ranked, wanted, 2) == pytest.approx(1 / 3)
    assert hit_rate(ranked, wanted, 3) == pytest.approx(2 / 3)
    assert ndcg(ranked, wanted, 2) == pytest.approx(1 / 3)
    assert ndcg(ranked, wanted, 3) == pytest.approx((1 + 1 / math.log2(4)) / 3)
