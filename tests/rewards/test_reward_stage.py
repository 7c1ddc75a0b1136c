import functools
import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon.credit.grouping import center
from guerdon.errors import MissingField, RecipeError, RewardError
from guerdon.registry import describe
from guerdon.rewards.base import Reward, Score, batched, drop_faulted, resolve_task_reward, score
from guerdon.rollouts import make_rollouts
from guerdon.tasks.base import Problem, Task

TEXTS = ["one", "two", "three", "four"]


def rollouts(mask=((1, 1), (1, 0), (1, 1), (1, 1)), group=(0, 0, 1, 1), **fields):
    mask = torch.tensor(mask, dtype=torch.bool)
    n = len(mask)
    fields.setdefault("text", TEXTS[:n])
    return make_rollouts(
        torch.tensor(group),
        torch.tensor(group) + 100,
        mask,
        torch.full(mask.shape, -1.0),
        done=torch.ones(n, dtype=torch.bool),
        truncated=torch.zeros(n, dtype=torch.bool),
        payload={"x": torch.arange(n)},
        **fields,
    )


def spec(function, name="r", options=None, **settings):
    method = describe("reward", function, name)
    return Reward(name, method, method.validate(options or {}), **settings)


def by_text(results):
    """A per-sample reward that gives, or raises, what stands behind the sample's text."""

    def function(text):
        result = results[text]
        if isinstance(result, Exception):
            raise result
        return result

    return function


def nan_as_none(values):
    return [None if math.isnan(v) else v for v in values.tolist()]


def test_a_per_sample_reward_sees_its_own_sample_and_the_shared_step():
    seen = []

    def function(text, answer, metadata, length, step, *, bonus=0.5):
        seen.append((text, answer, metadata, int(length), step))
        return len(text) + bonus

    batch = rollouts(answer=["a", None, "c", "d"], metadata=[{"k": 1}, {}, {"k": [2]}, {"k": "x"}])
    out, faults = score(batch, [spec(function, options={"bonus": 1.0})], step=7)
    assert out is batch
    assert faults == []
    assert out.rewards["r"].tolist() == [4.0, 4.0, 6.0, 5.0]
    assert seen == [
        ("one", "a", {"k": 1}, 2, 7),
        ("two", None, {}, 1, 7),
        ("three", "c", {"k": [2]}, 2, 7),
        ("four", "d", {"k": "x"}, 2, 7),
    ]


@pytest.mark.parametrize(
    "value",
    [
        *(1, True, 1.0, Decimal(1), Fraction(1)),
        *(np.float32(1), np.float64(1), np.array([[1]]), torch.tensor(1), torch.tensor([1.0])),
        *(Score(1), Score(torch.tensor(1.0), True, "why")),
    ],
)
def test_anything_that_is_one_number_is_a_value(value):
    out, faults = score(rollouts(), [spec(lambda text: value)])
    assert faults == []
    assert out.rewards["r"].tolist() == [1.0] * 4


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (math.nan, "nan"),
        (Score(math.nan), "nan"),
        (torch.tensor(math.nan), "nan"),
        (math.inf, "infinite"),
        (-math.inf, "infinite"),
        (1e300, "infinite"),  # beyond float32, the type of a component
        (10**400, "wrong type"),
        (None, "wrong type"),
        ("1.0", "wrong type"),
        (b"1", "wrong type"),
        (Score("1"), "wrong type"),  # type: ignore[arg-type]
        ([1.0], "wrong type"),
        ({"value": 1}, "wrong type"),
        (1j, "wrong type"),
        (torch.tensor(1j), "wrong type"),
        (np.array(["1"]), "wrong type"),
        (torch.ones(2), "wrong shape"),
        (torch.ones(0), "wrong shape"),
        (np.ones(3), "wrong shape"),
        (ZeroDivisionError("by zero"), "exception"),
        (RecursionError("deep"), "exception"),
    ],
)
def test_an_unusable_value_is_a_fault_of_its_sample_only(value, kind):
    results = {"one": 0.25, "two": value, "three": 0.5, "four": 0.75}
    out, faults = score(rollouts(), [spec(by_text(results))])
    assert [(f.reward, f.row, f.kind) for f in faults] == [("r", 1, kind)]
    assert nan_as_none(out.rewards["r"]) == [0.25, None, 0.5, 0.75]


def test_a_fault_says_what_happened():
    _, faults = score(rollouts(), [spec(by_text(dict.fromkeys(TEXTS, ValueError("no such city"))))])
    assert len(faults) == 4
    assert str(faults[2]) == "r: exception on sample 2: ValueError: no such city"


def test_faults_come_in_the_order_of_the_samples():
    results = {"one": math.nan, "two": KeyError("k"), "three": math.nan, "four": KeyError("k")}
    _, faults = score(rollouts(), [spec(by_text(results))])
    assert [f.row for f in faults] == [0, 1, 2, 3]


def test_a_reward_that_does_not_apply_is_no_fault():
    results = dict.fromkeys(TEXTS, 1.0) | {"three": Score(5.0, valid=False), "four": Score(math.nan, valid=False)}
    batch, faults = score(rollouts(), [spec(by_text(results), on_fault="stop")])
    assert faults == []
    assert nan_as_none(batch.rewards["r"]) == [1.0, 1.0, None, None]
    assert len(drop_faulted(batch, [spec(by_text(results))], faults)) == 4


def test_an_interrupt_is_not_swallowed():
    def function(text):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(rollouts(), [spec(function)])


def give(value):
    return batched(lambda text: value)


@pytest.mark.parametrize(
    "value",
    [
        [1, 2.0, True, np.float64(4)],
        (1, 2, 1, 4),
        torch.tensor([1, 2, 1, 4]),
        torch.tensor([1.0, 2.0, 1.0, 4.0], requires_grad=True),
        np.array([1, 2, 1, 4], dtype=np.int8),
        [Score(1), Score(2), Score(1, detail="x"), torch.tensor([4.0])],
    ],
)
def test_a_batched_reward_gives_n_numbers(value):
    out, faults = score(rollouts(), [spec(give(value))])
    assert faults == []
    assert out.rewards["r"].tolist() == [1.0, 2.0, 1.0, 4.0]
    assert out.rewards["r"].dtype == torch.float32
    assert not out.rewards["r"].requires_grad


def test_a_batched_reward_is_called_once_on_the_whole_batch():
    calls = []

    @batched
    def function(text, length, *, scale: float):
        calls.append(list(text))
        return length * scale

    out, _ = score(rollouts(), [spec(function, options={"scale": 0.5})])
    assert calls == [TEXTS]
    assert out.rewards["r"].tolist() == [1.0, 0.5, 1.0, 1.0]


def test_the_values_are_a_copy():
    kept = torch.ones(4)
    out, _ = score(rollouts(), [spec(give(kept))])
    out.rewards["r"][0] = 9.0
    assert kept.tolist() == [1.0] * 4


def test_a_batched_list_can_fail_in_single_samples():
    out, faults = score(rollouts(), [spec(give([1.0, math.inf, "x", Score(0.0, valid=False)]))])
    assert [(f.row, f.kind) for f in faults] == [(1, "infinite"), (2, "wrong type")]
    assert nan_as_none(out.rewards["r"]) == [1.0, None, None, None]


def test_a_batched_tensor_can_fail_in_single_samples():
    values = torch.tensor([1.0, math.nan, -math.inf, 2.0], dtype=torch.float64)
    out, faults = score(rollouts(), [spec(give(values))])
    assert [(f.row, f.kind) for f in faults] == [(1, "nan"), (2, "infinite")]
    assert nan_as_none(out.rewards["r"]) == [1.0, None, None, 2.0]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, "wrong type"),
        (1.0, "wrong type"),
        ("1234", "wrong type"),
        (np.array(["a", "b", "c", "d"]), "wrong type"),
        (torch.ones(4, dtype=torch.complex64), "wrong type"),
        ([1.0, 2.0], "wrong shape"),
        (torch.ones(5), "wrong shape"),
        (torch.ones(4, 3), "wrong shape"),
        (torch.ones(2, 4), "wrong shape"),
        (torch.tensor(1.0), "wrong shape"),
    ],
)
def test_a_result_that_cannot_be_told_apart_is_a_fault_of_every_sample(value, kind):
    out, faults = score(rollouts(), [spec(give(value))])
    assert [(f.row, f.kind) for f in faults] == [(row, kind) for row in range(4)]
    assert out.rewards["r"].isnan().all()


def test_a_batched_exception_is_a_fault_of_every_sample():
    @batched
    def function(text):
        raise ConnectionError("judge is down")

    out, faults = score(rollouts(), [spec(function)])
    assert [f.row for f in faults] == [0, 1, 2, 3]
    assert faults[0].message == "ConnectionError: judge is down"
    assert out.rewards["r"].isnan().all()


def test_per_action_values_count_on_actions_only():
    values = torch.tensor([[1.0, 2.0], [3.0, math.nan], [math.nan, 4.0], [5.0, 6.0]])
    out, faults = score(rollouts(), [spec(give(values))])  # the second sample acts once
    assert [(f.row, f.kind) for f in faults] == [(2, "nan")]
    kept = out.rewards["r"]
    assert kept[[0, 1, 3]].tolist() == [[1.0, 2.0], [3.0, 0.0], [5.0, 6.0]]
    assert kept[2].isnan().all()


def test_options_fixed_by_partial_keep_the_mark():
    @batched
    def function(text, *, value: float):
        return torch.full((len(text),), value)

    out, faults = score(rollouts(), [spec(functools.partial(function, value=2.0))])
    assert faults == []
    assert out.rewards["r"].tolist() == [2.0] * 4


class Counter:
    """How many samples were scored before this one."""

    def __init__(self, *, start: int = 0) -> None:
        self.count = start

    def __call__(self, text):
        self.count += 1
        return float(self.count)


def test_a_class_keeps_its_memory_between_batches():
    rewards = [spec(Counter, options={"start": 10})]
    assert score(rollouts(), rewards)[0].rewards["r"].tolist() == [11.0, 12.0, 13.0, 14.0]
    assert score(rollouts(), rewards)[0].rewards["r"].tolist() == [15.0, 16.0, 17.0, 18.0]
    assert rewards[0].bound.call.count == 18


@pytest.mark.parametrize("mark", [lambda f: f, batched])
def test_a_missing_field_ends_the_run_instead_of_faulting_every_sample(mark):
    def function(answer):
        return 1.0

    with pytest.raises(MissingField, match=r"reward 'r' needs 'answer' .*use a task whose problems carry answers"):
        score(rollouts(), [spec(mark(function), on_fault="drop")])


def test_a_missing_optional_field_is_left_out():
    out, faults = score(rollouts(), [spec(lambda text, answer="none": float(answer == "none"))])
    assert faults == []
    assert out.rewards["r"].tolist() == [1.0] * 4


HALF_BROKEN = {"one": 1.0, "two": math.nan, "three": 3.0, "four": ValueError("four")}


def test_stop_names_the_reward_the_sample_and_the_way_out():
    with pytest.raises(RewardError, match=r"reward r: nan on sample 1.*set on_fault to 'drop' or 'floor'"):
        score(rollouts(), [spec(by_text(HALF_BROKEN), on_fault="stop")])


def test_floor_gives_faulted_samples_its_value_and_still_reports_them():
    rewards = [spec(by_text(HALF_BROKEN), on_fault="floor", floor=-2.0)]
    batch, faults = score(rollouts(), rewards)
    assert batch.rewards["r"].tolist() == [1.0, -2.0, 3.0, -2.0]
    assert [f.row for f in faults] == [1, 3]
    assert len(drop_faulted(batch, rewards, faults)) == 4


def test_the_floor_of_a_per_action_reward_is_the_sum_over_its_actions():
    values = torch.tensor([[1.0, 2.0], [math.nan, 0.0], [math.nan, 0.0], [1.0, 1.0]])
    batch, _ = score(rollouts(), [spec(give(values), on_fault="floor", floor=-2.0)])
    assert batch.rewards["r"].tolist() == [[1.0, 2.0], [-2.0, 0.0], [0.0, -2.0], [1.0, 1.0]]


def test_drop_takes_the_samples_out_and_groups_stay_keyed():
    rewards = [spec(by_text(HALF_BROKEN))]
    batch, faults = score(rollouts(group=(5, 5, 9, 9), answer=["w", "x", "y", "z"]), rewards)
    left = drop_faulted(batch, rewards, faults)
    assert left.group.tolist() == [5, 9]
    assert left.task_id.tolist() == [105, 109]
    assert list(left.text) == ["one", "three"]
    assert list(left.answer) == ["w", "y"]
    assert left.payload["x"].tolist() == [0, 2]
    assert left.rewards["r"].tolist() == [1.0, 3.0]


def test_statistics_of_a_group_that_lost_members_use_the_rest():
    values = torch.tensor([1.0, 2.0, 6.0, math.nan, 5.0])
    rewards = [spec(give(values))]
    batch = rollouts(mask=((1,),) * 5, group=(7, 7, 7, 7, 2), text=["a"] * 5)
    left = drop_faulted(*_scored(batch, rewards))
    assert left.group.tolist() == [7, 7, 7, 2]
    assert center(left.rewards["r"], left.group).tolist() == [-2.0, -1.0, 3.0, 0.0]


def _scored(batch, rewards):
    batch, faults = score(batch, rewards)
    return batch, rewards, faults


def test_dropping_every_sample_leaves_an_empty_batch():
    rewards = [spec(by_text(dict.fromkeys(TEXTS, math.nan)))]
    left = drop_faulted(*_scored(rollouts(), rewards))
    assert len(left) == 0
    assert left.mask.shape == (0, 2)


def test_nothing_is_dropped_without_faults():
    batch = rollouts()
    assert drop_faulted(batch, [spec(by_text(dict.fromkeys(TEXTS, 1.0)))], []) is batch


def test_what_is_only_watched_is_scored_aside_and_never_drops():
    rewards = [spec(by_text(dict.fromkeys(TEXTS, 1.0)), "r"), spec(by_text(HALF_BROKEN), "gold", watch=True)]
    batch, faults = score(rollouts(), rewards)
    assert list(batch.rewards.keys()) == ["r"]
    assert nan_as_none(batch.watch["gold"]) == [1.0, None, 3.0, None]
    assert {f.reward for f in faults} == {"gold"}
    assert len(drop_faulted(batch, rewards, faults)) == 4


def test_each_reward_has_its_own_policy():
    rewards = [
        spec(by_text(HALF_BROKEN), "dropped"),
        spec(by_text(dict.fromkeys(TEXTS, math.nan)), "floored", on_fault="floor"),
    ]
    batch, faults = score(rollouts(), rewards)
    assert len(faults) == 6
    left = drop_faulted(batch, rewards, faults)
    assert left.rewards["dropped"].tolist() == [1.0, 3.0]
    assert left.rewards["floored"].tolist() == [0.0, 0.0]


@given(
    st.lists(st.sampled_from([0.0, 1.0, math.nan, math.inf]), min_size=1, max_size=8),
    st.randoms(use_true_random=False),
)
def test_scores_follow_their_samples_through_a_permutation(values, shuffle):
    texts = [f"t{i}" for i in range(len(values))]
    table = dict(zip(texts, values, strict=True))
    order = list(range(len(values)))
    shuffle.shuffle(order)
    rewards = [spec(by_text(table))]

    def survivors(texts):
        batch = rollouts(mask=[[1]] * len(texts), group=[0] * len(texts), text=texts)
        left = drop_faulted(*_scored(batch, rewards))
        return {text: float(r) for text, r in zip(left.text or [], left.rewards["r"], strict=True)}

    expected = {text: value for text, value in table.items() if math.isfinite(value)}
    assert survivors(texts) == expected
    assert survivors([texts[i] for i in order]) == expected


class Silent(Task):
    kind = "language"

    def train_batch(self, n, seed):
        return [Problem(i) for i in range(n)]

    def eval_problems(self, n):
        return [Problem(-1 - i) for i in range(n)]


class Scored(Silent):
    def __init__(self):
        self.scorer = self.mark

    def mark(self, text, metadata):
        return float(metadata["wanted"] in text)


class Arena(Silent):
    supplies = frozenset({"reward"})


def test_a_task_that_scores_is_a_reward():
    method = resolve_task_reward(Scored())
    assert method is not None
    assert method.requires == ("text", "metadata")
    batch = rollouts(metadata=[{"wanted": w} for w in "onxf"])
    out, faults = score(batch, [Reward("task", method, {})])
    assert faults == []
    assert out.rewards["task"].tolist() == [1.0, 0.0, 0.0, 1.0]


def test_what_the_environment_scored_stays_or_moves_aside():
    assert resolve_task_reward(Arena()) is None
    batch = rollouts()
    batch.rewards["task"] = torch.arange(4.0)
    kept, faults = score(batch, [Reward("task", None, {})])
    assert faults == []
    assert kept.rewards["task"].tolist() == [0.0, 1.0, 2.0, 3.0]
    aside, _ = score(batch, [Reward("task", None, {}, watch=True)])
    assert list(aside.rewards.keys()) == []
    assert aside.watch["task"].tolist() == [0.0, 1.0, 2.0, 3.0]


def test_a_task_without_any_score_needs_a_reward():
    with pytest.raises(RecipeError, match="'Silent' has no scorer of its own; name a reward"):
        resolve_task_reward(Silent())
