import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict

from guerdon.errors import RecipeError
from guerdon.registry import get
from guerdon.rollouts import Fields, make_rollouts
from guerdon.shaping.gated import gated_accumulation, open_gates

quick = settings(derandomize=True, deadline=None, max_examples=40)
NAN, INF = float("nan"), float("inf")
NAMES = ("tests", "patch", "format")
LEVELS = [["tests"], ["patch"], ["format"]]
GATES = {"tests": 0.5, "patch": 0.5}


def shaped(components, names=NAMES, weights=None, turn_reward=None, mask=None, turn=None, **options):
    n = len(components)
    mask = torch.ones(n, 2, dtype=torch.bool) if mask is None else mask
    turn = torch.where(mask, 0, -1) if turn is None else turn
    weights = torch.ones(len(names)) if weights is None else weights
    return gated_accumulation(
        components, names, weights, mask, turn, turn_reward, **{"levels": LEVELS, "gates": GATES} | options
    )


def test_three_levels():
    components = torch.tensor([[1.0, 1.0, 0.5], [0.0, 1.0, 0.5], [1.0, 0.0, 0.5], [0.0, 0.0, 0.5], [NAN, 1.0, 0.5]])
    out, stats = shaped(components)
    assert out.reward.tolist() == [2.5, 0.0, 1.0, 0.0, 0.0]
    assert stats == {"open2": pytest.approx(0.4), "open3": pytest.approx(0.2)}
    assert torch.equal(out.dense, torch.stack([torch.zeros(5), out.reward], dim=1))
    weighted, _ = shaped(components, weights=torch.tensor([2.0, 1.0, 10.0]))
    assert weighted.reward.tolist() == [8.0, 0.0, 2.0, 0.0, 0.0]


def test_what_equals_its_gate_is_shut_out_when_strict():
    components = torch.tensor([[0.5, 1.0, 0.25]])
    assert shaped(components)[0].reward.item() == 0.5
    assert shaped(components, strict=False)[0].reward.item() == 1.75


def test_extreme_gates_are_the_sum_and_the_top_alone():
    components = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    low = shaped(components, gates={"tests": -9.0, "patch": -9.0})[0].reward
    torch.testing.assert_close(low, components.sum(dim=1))
    assert torch.equal(shaped(components, gates={})[0].reward, low)
    assert torch.equal(shaped(components, gates={"tests": 9.0})[0].reward, components[:, 0])


def test_penalties_can_be_kept():
    components = torch.tensor([[0.0, 1.0, -0.5], [0.0, -1.0, 0.5]])
    assert shaped(components)[0].reward.tolist() == [0.0, 0.0]
    assert shaped(components, gate_penalties=False)[0].reward.tolist() == [-0.5, -1.0]


def per_turn(**options):
    turn = torch.tensor([[0, 0, 1, -1, 2], [0, 1, -1, -1, -1]])
    low = torch.tensor([[0.1, -0.2, 0.3], [0.1, -0.2, 0.0]], dtype=torch.float64)
    outcome = torch.tensor([1.0, 0.0], dtype=torch.float64)
    components = torch.stack([outcome, low.sum(dim=1)], dim=1)
    settings = {"levels": [["outcome"], ["step"]], "gates": {"outcome": 0.5}} | options
    return shaped(components, ("outcome", "step"), turn_reward=low, mask=turn >= 0, turn=turn, **settings)[0]


def test_turn_by_turn_the_outcome_stands_at_the_end():
    out = per_turn()
    expected = torch.tensor([[0, 0.1, -0.2, 0, 1.3], [0, 0, 0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(out.dense, expected)
    torch.testing.assert_close(out.reward, expected.sum(dim=1))
    kept = per_turn(gate_penalties=False)
    torch.testing.assert_close(kept.dense[1], torch.tensor([0, -0.2, 0, 0, 0], dtype=torch.float64))
    torch.testing.assert_close(kept.reward, kept.dense.sum(dim=1))


@quick
@given(seed=st.integers(0, 10**6), strict=st.booleans(), gate_penalties=st.booleans())
def test_by_brute_force(seed, strict, gate_penalties):
    random = torch.Generator().manual_seed(seed)
    components = torch.randint(-2, 3, (5, 4), generator=random) / 2
    names, levels = ("a", "b", "c", "d"), [["c"], ["a", "d"], ["b"]]
    gates, weights = {"a": 0.0, "c": 0.5}, torch.tensor([1.0, 2.0, -1.0, 0.5])
    out = shaped(components, names, weights, levels=levels, gates=gates, strict=strict, gate_penalties=gate_penalties)[
        0
    ].reward
    for row, seen in zip(components.tolist(), out.tolist(), strict=True):
        values, wanted = dict(zip(names, row, strict=True)), 0.0
        for number, level in enumerate(levels):
            above = [name for higher in levels[:number] for name in higher if name in gates]
            passed = all(values[name] > gates[name] or (not strict and values[name] == gates[name]) for name in above)
            for name in level:
                score = values[name] * float(weights[names.index(name)])
                wanted += score if passed or (score < 0 and not gate_penalties) else 0.0
        assert seen == pytest.approx(wanted)
    order = torch.randperm(5, generator=random)
    moved = shaped(
        components[order], names, weights, levels=levels, gates=gates, strict=strict, gate_penalties=gate_penalties
    )
    assert torch.equal(moved[0].reward, out[order])


def test_nothing_to_gate():
    out, stats = shaped(torch.zeros(0, 3))
    assert out.reward.shape == (0,)
    assert stats == {}
    assert open_gates(torch.tensor([[-INF]]), ("a",), levels=[["a"]], gates={"a": 0.0}).tolist() == [[True]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": [["test"], ["patch", "format"]]}, "no reward is called 'test'; did you mean 'tests'"),
        ({"gates": {"pach": 1.0}}, "no reward is called 'pach'; did you mean 'patch'"),
        ({"levels": [["tests"], ["patch"]]}, "'levels' names reward 'format' 0 times; name every reward once"),
        ({"levels": [["tests"], ["patch", "format", "tests"]]}, "'levels' names reward 'tests' 2 times"),
    ],
)
def test_wrong_levels_are_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        shaped(torch.zeros(1, 3), **options)


def test_turns_that_are_not_the_lowest_level_are_refused():
    with pytest.raises(ValueError, match=r"adds up to 0.5 in trajectory 1, .* lowest level \(format\) to 0.25"):
        shaped(torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.25]]), turn_reward=torch.tensor([[0.0], [0.5]]))


def test_what_the_loop_would_do_with_it():
    """Bound by name to a batch, it leaves raw rewards alone and decides what ``dense`` is."""
    turn = torch.tensor([[0, 0, 1, 1], [0, 0, 1, -1]])
    mask = turn >= 0
    rewards = {"outcome": torch.tensor([0.0, 1.0]), "step": torch.tensor([[0.5, 0.25], [0.5, 0.25]])}
    flags = torch.ones(2, dtype=torch.bool)
    batch = make_rollouts(
        torch.zeros(2).long(),
        torch.zeros(2).long(),
        mask,
        torch.zeros(2, 4),
        done=flags,
        truncated=~flags,
        payload={},
        turn=turn,
        rewards=TensorDict(rewards, [2]),
    )
    fields = Fields(batch, component_names=("outcome", "step"), component_weights=torch.tensor([1.0, 2.0]))
    bound = get("shaping", "gated_accumulation").bind({"levels": [["outcome"], ["step"]], "gates": {"outcome": 0.5}})
    outcome = bound(fields)
    batch.reward, batch.dense = outcome.fields["reward"], outcome.fields["dense"]
    assert batch.reward.tolist() == [0.0, 2.5]
    assert fields["dense"].tolist() == [[0.0] * 4, [0.0, 1.0, 1.5, 0.0]]
