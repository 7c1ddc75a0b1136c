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
from guerdon.registry import describe, get, methods
from guerdon.rewards.base import (
    Fault,
    Reward,
    Score,
    batched,
    drop_faulted,
    fault_counts,
    grouped,
    resolve_task_reward,
    reward_stats,
    score,
)
from guerdon.rollouts import Fields, make_rollouts
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
        if isinstance(result, BaseException):
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
        *({"value": 1}, {"value": 1.0, "valid": True, "detail": "why"}),
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
        (math.nan, "not_finite"),
        (Score(math.nan), "not_finite"),
        (torch.tensor(math.nan), "not_finite"),
        (math.inf, "not_finite"),
        (-math.inf, "not_finite"),
        (1e300, "not_finite"),  # beyond float32, the type of a component
        (10**400, "wrong_type"),
        (None, "wrong_type"),
        ("1.0", "wrong_type"),
        (b"1", "wrong_type"),
        (Score("1"), "wrong_type"),  # type: ignore[arg-type]
        ([1.0], "wrong_type"),
        ({"value": 1, "extra": 2}, "wrong_type"),
        ({"valid": True}, "wrong_type"),
        (1j, "wrong_type"),
        (torch.tensor(1j), "wrong_type"),
        (np.array(["1"]), "wrong_type"),
        (torch.ones(2), "wrong_length"),
        (torch.ones(0), "wrong_length"),
        (np.ones(3), "wrong_length"),
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
    assert [(f.row, f.kind) for f in faults] == [(1, "not_finite"), (2, "wrong_type")]
    assert nan_as_none(out.rewards["r"]) == [1.0, None, None, None]


def test_an_error_in_the_place_of_a_number_is_its_samples_fault():
    out, faults = score(rollouts(), [spec(give([1.0, RewardError("no server"), TimeoutError("slow"), 2.0]))])
    assert [(f.row, f.kind) for f in faults] == [(1, "exception"), (2, "timeout")]
    assert faults[0].message == "RewardError: no server"
    assert nan_as_none(out.rewards["r"]) == [1.0, None, None, 2.0]


def test_a_batched_tensor_can_fail_in_single_samples():
    values = torch.tensor([1.0, math.nan, -math.inf, 2.0], dtype=torch.float64)
    out, faults = score(rollouts(), [spec(give(values))])
    assert [(f.row, f.kind) for f in faults] == [(1, "not_finite"), (2, "not_finite")]
    assert nan_as_none(out.rewards["r"]) == [1.0, None, None, 2.0]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, "wrong_type"),
        (1.0, "wrong_type"),
        ("1234", "wrong_type"),
        (np.array(["a", "b", "c", "d"]), "wrong_type"),
        (torch.ones(4, dtype=torch.complex64), "wrong_type"),
        ([1.0, 2.0], "wrong_length"),
        (torch.ones(5), "wrong_length"),
        (torch.ones(4, 3), "wrong_length"),
        (torch.ones(2, 4), "wrong_length"),
        (torch.tensor(1.0), "wrong_length"),
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
    assert [(f.row, f.kind) for f in faults] == [(2, "not_finite")]
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
    with pytest.raises(RewardError, match=r"reward r: not_finite on sample 1.*set on_fault to 'drop' or 'floor'"):
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


TURNS = ((0, 0, 1), (0, 1, 1), (0, -1, -1), (0, 0, 1))


def in_turns(turn=TURNS, **fields):
    turn = torch.tensor(turn)
    return rollouts(mask=(turn >= 0).int().tolist(), turn=turn, **fields)


def test_a_grouped_reward_sees_each_group_in_the_order_of_the_batch():
    seen = []

    @grouped
    def place(text, length, metadata, step):
        seen.append((list(text), length.tolist(), metadata, step))
        return [float(i) for i in range(len(text))]

    metadata = [{"k": i} for i in range(4)]
    out, faults = score(rollouts(group=(7, 3, 7, 3), metadata=metadata), [spec(place)], step=5)
    assert faults == []
    assert out.rewards["r"].tolist() == [0.0, 0.0, 1.0, 1.0]
    assert seen == [
        (["one", "three"], [2, 2], [{"k": 0}, {"k": 2}], 5),
        (["two", "four"], [1, 2], [{"k": 1}, {"k": 3}], 5),
    ]


@pytest.mark.parametrize(
    ("bad", "kind"),
    [([1.0], "wrong_length"), (None, "wrong_type"), (KeyError("k"), "exception"), (torch.ones(2, 9), "wrong_length")],
)
def test_a_group_that_fails_takes_no_other_with_it(bad, kind):
    @grouped
    def moody(text):
        if "one" in text:
            if isinstance(bad, Exception):
                raise bad
            return bad
        return torch.tensor([1.0, math.nan])

    out, faults = score(rollouts(group=(7, 3, 7, 3)), [spec(moody)])
    assert [(f.row, f.kind) for f in faults] == [(0, kind), (2, kind), (3, "not_finite")]
    assert nan_as_none(out.rewards["r"]) == [None, 1.0, None, None]


def test_a_reward_per_turn_counts_on_the_turns_that_were_taken():
    values = torch.tensor([[1.0, 2.0], [3.0, math.inf], [5.0, math.nan], [7.0, 8.0]])
    out, faults = score(in_turns(), [spec(give(values))])
    assert [(f.row, f.kind) for f in faults] == [(1, "not_finite")]
    assert out.rewards["r"][[0, 2, 3]].tolist() == [[1.0, 2.0], [5.0, 0.0], [7.0, 8.0]]
    assert out.rewards["r"][1].isnan().all()


def test_a_reward_per_turn_reaches_credit_at_the_end_of_each_turn():
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 9.0], [7.0, 8.0]])
    each = {"one": 10.0, "two": 20.0, "three": 30.0, "four": 40.0}
    out, _ = score(in_turns(), [spec(give(values), "turns"), spec(by_text(each), "whole")])
    fields = Fields(out, component_weights=torch.tensor([2.0, 1.0]))
    assert fields["turn_reward"].tolist() == [[2.0, 4.0], [6.0, 8.0], [10.0, 0.0], [14.0, 16.0]]
    assert fields["components"].tolist() == [[3.0, 10.0], [7.0, 20.0], [5.0, 30.0], [15.0, 40.0]]
    out.reward = fields["components"] @ torch.tensor([2.0, 1.0])
    assert fields["dense"].tolist() == [[0.0, 2.0, 14.0], [6.0, 0.0, 28.0], [40.0, 0.0, 0.0], [0.0, 14.0, 56.0]]


def test_without_a_reward_per_turn_there_is_no_turn_reward():
    out, _ = score(in_turns(), [spec(by_text(dict.fromkeys(TEXTS, 1.0)))])
    assert "turn_reward" not in Fields(out)


def test_the_floor_of_a_per_turn_reward_is_the_sum_over_its_turns():
    values = torch.tensor([[math.nan, 2.0], [3.0, 4.0], [math.nan, 0.0], [7.0, 8.0]])
    out, _ = score(in_turns(), [spec(give(values), on_fault="floor", floor=-2.0)])
    assert out.rewards["r"].tolist() == [[0.0, -2.0], [3.0, 4.0], [-2.0, 0.0], [7.0, 8.0]]


def test_groups_may_differ_in_their_turns():
    @grouped
    def each_turn(text, turn):
        return torch.full((len(text), int(turn.max()) + 1), float(len(text)))

    out, faults = score(
        in_turns(((0, 0, -1), (0, 1, 1), (0, -1, -1), (0, 0, 1)), group=(2, 5, 2, 5)), [spec(each_turn)]
    )
    assert faults == []
    assert out.rewards["r"].tolist() == [[2.0, 0.0], [2.0, 2.0], [2.0, 0.0], [2.0, 2.0]]


def test_groups_of_one_number_each_join_those_of_one_per_action():
    @grouped
    def mixed(text, mask):
        return [5.0] * len(text) if "one" in text else torch.ones(mask.shape)

    out, faults = score(rollouts(group=(7, 3, 7, 3)), [spec(mixed)])
    assert faults == []
    assert out.rewards["r"].tolist() == [[0.0, 5.0], [1.0, 0.0], [0.0, 5.0], [1.0, 1.0]]


def test_details_are_kept_beside_the_sample_by_reward():
    first = {"one": Score(1, detail="why"), "two": Score(0, valid=False, detail={"n": [1, 2]}), "three": 1.0, "four": 2}
    second = dict.fromkeys(TEXTS, 0.5) | {"one": {"value": 1, "detail": 3}}
    out, faults = score(rollouts(), [spec(by_text(first), "a"), spec(by_text(second), "b")])
    assert faults == []
    assert list(out.detail) == [{"a": "why", "b": 3}, {"a": {"n": [1, 2]}}, {}, {}]
    assert list(out[[1, 0]].detail) == [{"a": {"n": [1, 2]}}, {"a": "why", "b": 3}], "they follow their sample"
    again, _ = score(out, [spec(by_text(dict.fromkeys(TEXTS, Score(1.0, detail="new"))), "b")])
    assert again.detail[1] == {"a": {"n": [1, 2]}, "b": "new"}


def test_without_details_there_are_none():
    out, _ = score(rollouts(), [spec(by_text(dict.fromkeys(TEXTS, 1.0)))])
    assert out.detail is None


def test_a_number_per_sample_is_a_plain_number():
    seen = []
    score(rollouts(), [spec(lambda length, task_id: float(seen.append((length, task_id)) is None))])
    assert seen == [(2, 100), (1, 100), (2, 101), (2, 101)]
    assert all(type(x) is int for pair in seen for x in pair)


class Telling:
    """A reward that tells of itself."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, text):
        self.calls += 1
        return 1.0

    def stats(self):
        return {"calls": self.calls}


def test_what_rewards_tell_of_themselves_becomes_metrics():
    @batched
    def pair(text):
        return torch.ones(len(text)), {"low": 0.25}

    rewards = [spec(Telling, "a"), spec(pair, "b"), spec(Telling, "gold", watch=True)]
    score(rollouts(), rewards)
    assert reward_stats(rewards) == {"reward/a/calls": 4.0, "reward/b/low": 0.25, "watch/gold/calls": 4.0}


def test_faults_are_counted_by_kind():
    faults = [Fault("r", 0, "timeout", ""), Fault("s", 0, "killed", ""), Fault("r", 1, "timeout", "")]
    assert fault_counts(faults) == {"faults": 3.0, "faults/killed": 1.0, "faults/timeout": 2.0}
    assert fault_counts([]) == {"faults": 0.0}


@pytest.mark.parametrize(("error", "kind"), [(MemoryError(), "memory"), (TimeoutError("late"), "timeout")])
def test_some_exceptions_have_a_kind_of_their_own(error, kind):
    _, faults = score(rollouts(), [spec(by_text(dict.fromkeys(TEXTS, 1.0) | {"two": error}))])
    assert [(f.row, f.kind) for f in faults] == [(1, kind)]


def test_a_reward_that_ends_the_process_is_a_fault():
    _, faults = score(rollouts(), [spec(by_text(dict.fromkeys(TEXTS, 1.0) | {"two": SystemExit(2)}))])
    assert [(f.row, f.kind) for f in faults] == [(1, "exception")]


_CHOICES = {
    "calibrate_low": {"score": "a", "pattern": "b"},
    "conciseness_reward": {"score": "b"},
    "conditioned_reward": {"easy": "b", "hard": "a"},
    "flip_noise": {"p": 0.5},
    "outcome_or_process": {"outcome": "a", "process": "b"},
    "pr_clip_delta": {"outcome": "b"},
    "trapo": {"labelled": "b", "vote": "a"},
    "staged_reward": {"bonuses": [0.5]},
    "dynamic_scale": {"coverage": "b"},
    "cosine_length": {"correct": "b"},
    "gated_accumulation": {"levels": [["b"], ["a"]], "gates": {"b": 0.5}},
    "prime": {"outcome": "b"},
    "process_filter": {"outcome": "b", "keep": 2},
    "thought_level": {"outcome": "b"},
    "verpo": {"outcome": "a", "local": "b"},
}
_SET_ASIDE = {"trapo"}  # lets the vote not apply to problems that it does not trust
_TURNS = {"renorm"}  # read rewards of turns, of which there is one here
_READERS = [
    (stage, method.name)
    for stage in ("shaping", "credit")
    for method in methods(stage)
    if "components" in (*method.requires, *method.optional) and method.name not in _TURNS
]


@pytest.mark.parametrize(("stage", "name"), _READERS, ids=lambda x: x)
def test_what_does_not_apply_spoils_no_outcome(stage, name):
    """Every method that reads components takes NaN for a reward that does not apply: what it gives is finite."""
    n, mask = 12, torch.ones(12, 3, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    components = torch.rand(n, 2, generator=generator)
    components[::3, 1] = math.nan
    rows = torch.arange(n)
    fields = {
        **{"components": components, "component_names": ("a", "b"), "component_weights": torch.ones(2)},
        **{"group": rows // 4, "task_id": rows // 4, "mask": mask, "length": mask.sum(dim=1), "step": 0, "seed": 0},
        **{"reward": components.nan_to_num(0.0).sum(dim=1), "advantage": torch.randn(n, 3, generator=generator)},
        **{"text": ["x" * (i + 1) for i in range(n)], "answer": ["x"] * n, "metadata": [{"control": [0.5, -1.0]}] * n},
        **{"old_logp": -torch.rand(n, 3, generator=generator), "truncated": torch.zeros(n, dtype=torch.bool)},
        **{"dense": torch.rand(n, 3, generator=generator), "turn": torch.zeros(n, 3, dtype=torch.int64)},
    }
    given = get(stage, name).bind(_CHOICES.get(name, {}))(fields).fields
    assert given
    for field, value in given.items():
        if field == "components":
            added = value.isnan() & ~components.isnan()
            assert value[components.isnan()].isnan().all(), "it goes on not to apply"
            assert name in _SET_ASIDE or not added.any(), "nothing else ceases to"
        else:
            assert value.isfinite().all(), field
