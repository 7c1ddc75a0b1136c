import json
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.curriculum.base import Curriculum
from guerdon.curriculum.selection import ByClass, ByLearnability, ByStages
from guerdon.errors import TaskError
from guerdon.tasks.base import Problem

quick = settings(derandomize=True, deadline=None, max_examples=30)


def problems(levels, **metadata):
    return [Problem(number, metadata={"level": level, **metadata}) for number, level in enumerate(levels)]


def chosen(curriculum, candidates, draws=400, n=2):
    """How often each level is chosen, as a share."""
    seen = Counter(p.metadata["level"] for seed in range(draws) for p in curriculum.choose(candidates, n, seed))
    return {level: count / (draws * n) for level, count in seen.items()}


def test_classes_are_drawn_by_their_success_however_many_candidates_they_have():
    course, candidates = ByClass(key="level", prior_count=1.0, decay=1.0), problems(["a"] * 6 + ["b"] * 2)
    assert course.weigh(candidates).tolist() == pytest.approx([1 / 12] * 6 + [1 / 4] * 2)
    stats = course.observe(problems(["a"] * 4 + ["b"]), torch.tensor([1.0, 1.0, 1.0, 0.0, float("nan")]))
    assert stats == pytest.approx({"success/a": 3.5 / 5, "success/b": 0.5})
    share = torch.tensor([(0.5 - 0.7) / 0.5, 0.0]).softmax(0).tolist()
    weight = course.weigh(candidates)
    assert weight[:6].sum().item() == pytest.approx(share[0])
    assert weight[6:].sum().item() == pytest.approx(share[1])
    assert chosen(course, candidates, n=1)["b"] == pytest.approx(share[1], abs=0.08)


def test_a_class_that_turns_up_later_begins_with_the_prior():
    course = ByClass(key="level", prior=0.25)
    course.observe(problems([3, 3]), torch.ones(2))
    assert course.weigh(problems([3, 9])).argmax() == 1
    assert course.classes == [3, 9]
    assert course.rates.rates[1] == 0.25


def test_stages_follow_each_other_from_easy_to_hard():
    course = ByStages(key="level", stages=3, keep=0.25, least=4, advance=0.5)
    course.prepare(problems([1, 2, 3, 4, 5, 6]))
    assert course.borders == [2.0, 4.0]
    candidates = problems([1, 2, 3, 4, 5, 6, 2.5, 99])
    assert course._stage(candidates).tolist() == [0, 0, 1, 1, 2, 2, 1, 2]
    assert set(chosen(course, candidates, draws=20, n=1)) == {1, 2}
    failed = course.observe(problems([1] * 4), torch.zeros(4))
    assert failed == {"stage": 0.0, "success": 0.0}
    course.observe(problems([1] * 40), torch.ones(40))
    assert course.course.stage == 1
    weight = course.weigh(candidates)
    assert weight.tolist() == pytest.approx([0.125, 0.125, 0.25, 0.25, 0, 0, 0.25, 0])


def test_learnable_problems_come_first():
    course, candidates = ByLearnability(prior_count=2.0, floor=0.02, decay=1.0), problems("abc")
    assert course.weigh(candidates).tolist() == pytest.approx([0.27] * 3)
    rows = [candidates[0]] * 4 + [candidates[1]] * 4 + [candidates[2]] * 4
    stats = course.observe(rows, torch.tensor([1.0] * 4 + [0.0] * 4 + [1.0, 0.0, float("nan"), 0.0]))
    assert stats == pytest.approx({"known": 3, "learnability": (0 + 0 + 2 / 9) / 3})
    p = [5 / 6, 1 / 6, 2 / 5]
    assert course.weigh(candidates).tolist() == pytest.approx([q * (1 - q) + 0.02 for q in p])


def test_learnability_of_classes_and_its_memory():
    course = ByLearnability(key="level", capacity=2, decay=0.5)
    course.observe(problems("ab"), torch.tensor([1.0, 0.0]))
    course.observe(problems("a"), torch.tensor([1.0]))
    assert course.counts == {"b": (0.0, 1.0), "a": (1.5, 1.5)}
    course.observe(problems("c"), torch.tensor([1.0]))
    assert course.counts == {"a": (1.5, 1.5), "c": (1.0, 1.0)}  # b was seen longest ago


MAKE = [
    lambda: ByClass(key="level"),
    lambda: ByStages(key="level", stages=2, least=1, advance=0.3),
    ByLearnability,
    lambda: ByLearnability(key="level"),
]


@pytest.mark.parametrize("make", MAKE)
@quick
@given(
    rows=st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0.0, 1.0, float("nan")])), min_size=1, max_size=12),
    seed=st.integers(0, 100),
)
def test_memory_goes_through_json_and_choices_repeat_themselves(make, rows, seed):
    course, again = make(), make()
    course.prepare(problems(range(6)))
    for _ in range(2):
        course.observe(problems([level for level, _ in rows]), torch.tensor([won for _, won in rows]))
    again.load_state_dict(json.loads(json.dumps(course.state_dict())))
    candidates = problems(list(range(6)) * 2)
    assert torch.equal(course.weigh(candidates), again.weigh(candidates))
    assert course.choose(candidates, 3, seed) == again.choose(candidates, 3, seed)
    assert bool((course.weigh(candidates) >= 0).all())


@pytest.mark.parametrize("make", MAKE)
def test_the_order_of_candidates_does_not_matter_to_their_weights(make):
    course = make()
    course.prepare(problems(range(6)))
    course.observe(problems([0, 1, 2, 3]), torch.tensor([1.0, 0.0, 1.0, 0.0]))
    candidates = problems([0, 1, 2, 3, 4, 5])
    turned = course.weigh(candidates[::-1]).flip(0)
    assert torch.allclose(course.weigh(candidates), turned)


def test_a_problem_is_chosen_once_where_there_are_enough():
    course, candidates = ByLearnability(), problems(range(8))
    assert len({p.task_id for p in course.choose(candidates, 8, 0)}) == 8
    few = ByStages(key="level", stages=2)
    few.prepare(problems([1, 2]))
    assert {p.metadata["level"] for p in few.choose(problems([1, 2, 2]), 4, 0)} == {1}


class Nothing(Curriculum):
    """Wants nothing."""

    def weigh(self, problems):
        return torch.zeros(len(problems))

    def observe(self, problems, success):
        return {}


def test_what_cannot_be_is_refused():
    with pytest.raises(TaskError, match=r"wants none of the 2 problems .*raise 'pool' \(now 4\)"):
        Nothing().choose(problems([1, 2]), 1, 0)
    with pytest.raises(TaskError, match=r"by 'levle'.*did you mean 'level'"):
        ByClass(key="levle").weigh(problems([1]))
    with pytest.raises(TaskError, match=r"which is \[1\]; want text or a number"):
        ByClass(key="level").weigh(problems([[1]]))
    with pytest.raises(TaskError, match="holds text, wanted a number"):
        ByStages(key="level").prepare(problems(["easy"]))
    with pytest.raises(TaskError, match="1 values among 3 problems, which leaves stage 0 of 3 without any"):
        ByStages(key="level").prepare(problems([5, 5, 5]))
