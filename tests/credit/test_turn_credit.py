import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.credit import dr_grpo, grpo
from guerdon.credit.turn import anchor_keys, canonical, gigpo, group_by_anchor, mapo, returns_to_go, turns_of
from guerdon.registry import get

quick = settings(derandomize=True, deadline=None, max_examples=40)
NAN = float("nan")


def batch(seed, n=7, t=9, m=4):
    """Ragged groups, turns of several actions, holes, a trajectory that did nothing, rewards that tie."""
    random = torch.Generator().manual_seed(seed)
    turn = torch.randint(m, (n, t), generator=random).sort(dim=1).values
    mask = torch.rand(n, t, generator=random) > 0.3
    mask[0] = False
    turn = turn.masked_fill(~mask, -1)
    dense = torch.randint(-1, 3, (n, t), generator=random).double().masked_fill(~mask, 0.0)
    group = torch.randint(3, (n,), generator=random) * 10
    state = torch.randint(3, (n, m), generator=random)
    return {
        "reward": dense.sum(dim=1),
        "dense": dense,
        "state_key": state,
        "group": group,
        "turn": turn,
        "mask": mask,
    }


def rows_of(b, gamma):
    """Every turn there is: (trajectory, turn) with its return to go."""
    rows = {}
    for i in range(len(b["mask"])):
        own = {}
        for t in range(b["mask"].shape[1]):
            if b["mask"][i, t]:
                m = int(b["turn"][i, t])
                own[m] = own.get(m, 0.0) + float(b["dense"][i, t])
        for m in own:
            rows[i, m] = sum(gamma ** (u - m) * r for u, r in own.items() if u >= m)
    return rows


def compared(value, others, f_norm, eps):
    if len(others) == 1:
        return 0.0
    scale = 1.0 if f_norm == "one" else np.std(others, ddof=1) + eps
    return (value - np.mean(others)) / scale


def on_actions(by_turn, b):
    """Numbers per turn, on the actions."""
    out = torch.zeros(b["mask"].shape, dtype=torch.float64)
    for i, t in b["mask"].nonzero().tolist():
        out[i, t] = by_turn[i, int(b["turn"][i, t])]
    return out


def test_golden_numbers_of_gigpo():
    dense = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    state = torch.tensor([[0, 1, 2], [0, 1, 1]])
    turn, mask, group = torch.arange(3).expand(2, 3), torch.ones(2, 3, dtype=torch.bool), torch.zeros(2).long()
    arguments = (dense.sum(dim=1), dense, state, group, turn, mask)
    step = torch.tensor([[0.45125, 0.6333, 0.0], [-0.45125, -0.3167, -0.3167]], dtype=torch.float64)
    episode = torch.tensor([[0.5], [-0.5]], dtype=torch.float64)
    torch.testing.assert_close(gigpo(*arguments), episode + step, atol=1e-4, rtol=0)
    torch.testing.assert_close(gigpo(*arguments, omega=2.0), episode + 2 * step, atol=1e-4, rtol=0)


@quick
@given(
    seed=st.integers(0, 10**6),
    gamma=st.sampled_from([0.5, 0.95, 1.0]),
    f_norm=st.sampled_from(["one", "std"]),
    stat=st.sampled_from(["trajectories", "steps"]),
)
def test_gigpo_by_brute_force(seed, gamma, f_norm, stat):
    b = batch(seed)
    rows, group, state = rows_of(b, gamma), b["group"].tolist(), b["state_key"].tolist()
    by_turn = {}
    for (i, m), value in rows.items():
        if stat == "trajectories":
            members = [b["reward"][j].item() for j in range(len(group)) if group[j] == group[i]]
        else:
            members = [b["reward"][j].item() for j, _ in rows if group[j] == group[i]]
        same = [x for (j, u), x in rows.items() if group[j] == group[i] and state[j][u] == state[i][m]]
        episode = compared(b["reward"][i].item(), members, f_norm, 1e-6)
        by_turn[i, m] = episode + 0.7 * compared(value, same, f_norm, 1e-6)
    out = gigpo(**b, omega=0.7, gamma=gamma, f_norm=f_norm, episode_stat=stat)
    torch.testing.assert_close(out, on_actions(by_turn, b), atol=1e-7, rtol=1e-7)


def test_without_the_second_part_gigpo_is_grpo():
    b = batch(4)
    plain = b["reward"], b["group"], b["mask"]
    assert torch.equal(gigpo(**b, omega=0.0), dr_grpo(*plain))
    assert torch.equal(gigpo(**b, omega=0.0, f_norm="std", eps=1e-4), grpo(*plain))
    assert torch.equal(gigpo(**b, omega=0.0, singleton="raw"), dr_grpo(*plain, singleton="raw"))


def test_long_trajectories_weigh_more_only_where_steps_are_counted():
    turn = torch.tensor([[0, 1, 2], [0, -1, -1]])
    dense = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    arguments = (dense.sum(dim=1), dense, torch.arange(6).reshape(2, 3), torch.zeros(2).long(), turn, turn >= 0)
    assert gigpo(*arguments)[:, 0].tolist() == [0.5, -0.5]
    assert gigpo(*arguments, episode_stat="steps")[:, 0].tolist() == [0.25, -0.75]


def test_states_of_different_groups_never_meet():
    keys = group_by_anchor(torch.tensor([[7, 7, 3], [7, 3, 9], [7, 3, -5]]), torch.tensor([4, 4, 90]))
    assert keys[0, 0] == keys[0, 1] == keys[1, 0]
    assert keys[0, 2] == keys[1, 1]
    assert len({keys[0, 0].item(), keys[0, 2].item(), keys[1, 2].item(), *keys[2].tolist()}) == 6
    there = torch.tensor([[True, False, True], [True, True, False], [False, False, False]])
    assert group_by_anchor(torch.full((3, 3), 2), torch.arange(3), there)[~there].tolist() == [0] * 5


def test_mapo_by_hand():
    """Two trajectories of one group; the second has a turn more."""
    turn = torch.tensor([[0, 1, -1], [0, 1, 2]])
    dense = torch.tensor([[1.0, 2.0, NAN], [0.0, 1.0, 5.0]], dtype=torch.float64)
    arguments = (dense, torch.zeros(2).long(), turn, turn >= 0)
    value = torch.tensor([3.0, 2.0, 6.0, 6.0, 5.0], dtype=torch.float64)
    side = 1.5 / (3 / math.sqrt(2))
    first, stats = mapo(*arguments, alpha=1.0, eps=0.0)
    torch.testing.assert_close(
        first, torch.tensor([[-side, -side, 0], [side, side, 0]], dtype=torch.float64), atol=1e-12, rtol=0
    )
    assert stats == {"alone": pytest.approx(0.2)}
    second, _ = mapo(*arguments, alpha=0.0, eps=0.0)
    whitened = (value - value.mean()) / value.std()
    torch.testing.assert_close(second[turn >= 0], whitened)
    mixed, _ = mapo(*arguments, alpha=0.25, eps=0.0)
    torch.testing.assert_close(mixed, 0.25 * first + 0.75 * second)
    assert mixed[1, 2] > 0


@quick
@given(seed=st.integers(0, 10**6), gamma=st.sampled_from([0.9, 1.0]))
def test_mapo_by_brute_force(seed, gamma):
    b = batch(seed)
    rows, group = rows_of(b, gamma), b["group"].tolist()
    by_turn = {}
    for (i, m), value in rows.items():
        same = [x for (j, u), x in rows.items() if group[j] == group[i] and u == m]
        everything = list(rows.values())
        parts = compared(value, same, "std", 1e-6), compared(value, everything, "std", 1e-6)
        by_turn[i, m] = 0.3 * parts[0] + 0.7 * parts[1]
    out, _ = mapo(b["dense"], b["group"], b["turn"], b["mask"], alpha=0.3, gamma=gamma)
    torch.testing.assert_close(out, on_actions(by_turn, b), atol=1e-7, rtol=1e-7)


def test_in_one_turn_mapo_is_grpo_or_whitening_of_the_batch():
    b = batch(9)
    turn = torch.where(b["mask"], 0, -1)
    first, _ = mapo(b["dense"], b["group"], turn, b["mask"], alpha=1.0, eps=1e-4)
    acted = b["mask"].any(dim=1)
    expected = grpo(b["reward"][acted], b["group"][acted], b["mask"][acted])
    torch.testing.assert_close(first[acted], expected)
    second, _ = mapo(b["dense"], b["group"], turn, b["mask"], alpha=0.0, eps=0.0)
    reward = b["reward"][acted]
    whitened = (reward - reward.mean()) / reward.std()
    torch.testing.assert_close(second[acted], whitened.unsqueeze(1) * b["mask"][acted])


def credit_of(name, b):
    arguments = {key: b[key] for key in get("credit", name).requires}
    out = get("credit", name).target(**arguments)
    return out[0] if isinstance(out, tuple) else out


@quick
@given(name=st.sampled_from(["gigpo", "mapo"]), seed=st.integers(0, 10**6))
def test_invariants(name, seed):
    b = batch(seed)
    out = credit_of(name, b)
    assert (out[~b["mask"]] == 0).all()
    assert out.isfinite().all()
    order = torch.randperm(len(out), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(credit_of(name, {key: x[order] for key, x in b.items()}), out[order])
    spoiled = b | {"dense": b["dense"].masked_fill(~b["mask"], NAN), "turn": b["turn"].masked_fill(~b["mask"], -1)}
    there = turns_of(b["turn"], b["mask"], 4).exists
    spoiled["state_key"] = b["state_key"].masked_fill(~there, 10**12)
    assert torch.equal(credit_of(name, spoiled), out)
    padded = {key: torch.nn.functional.pad(b[key], (0, 3)) for key in ("dense", "mask", "state_key")}
    padded["turn"] = torch.nn.functional.pad(b["turn"], (0, 3), value=-1)
    torch.testing.assert_close(credit_of(name, b | padded)[:, :9], out)
    level = b | {"dense": torch.zeros_like(b["dense"]), "reward": torch.zeros_like(b["reward"])}
    assert (credit_of(name, level) == 0).all()


@pytest.mark.parametrize("name", ["gigpo", "mapo"])
def test_nothing_done_and_single_trajectories(name):
    b = batch(3)
    none = b | {"mask": torch.zeros_like(b["mask"]), "turn": torch.full_like(b["turn"], -1)}
    assert (credit_of(name, none) == 0).all()
    assert credit_of(name, {key: x[:0] for key, x in b.items()}).shape == (0, 9)
    method = get("credit", name)
    assert method.needs_group == (name == "gigpo")


def test_a_turn_beyond_the_states_is_refused():
    b = batch(2)
    with pytest.raises(ValueError, match=r"turn goes up to \d, but there are 1 turns \(0 to 0\)"):
        gigpo(**b | {"state_key": b["state_key"][:, :1]})


def test_returns_count_turns():
    x = torch.tensor([[1.0, 2.0, 4.0]])
    assert returns_to_go(x, 0.5).tolist() == [[3.0, 4.0, 4.0]]
    assert returns_to_go(x).tolist() == [[7.0, 6.0, 4.0]]
    assert returns_to_go(torch.zeros(2, 0)).shape == (2, 0)


def test_turns_gather_and_spread():
    turn, mask = torch.tensor([[0, 0, -1, 2, 2]]), torch.tensor([[True, True, False, True, False]])
    turns = turns_of(turn, mask)
    assert turns.exists.tolist() == [[True, False, True]]
    assert turns.total(torch.tensor([[1.0, 2.0, NAN, 4.0, NAN]])).tolist() == [[3.0, 0.0, 4.0]]
    assert turns.spread(torch.tensor([[5.0, 6.0, 7.0]])).tolist() == [[5.0, 5.0, 0.0, 7.0, 0.0]]
    assert turns.first(torch.tensor([[False, True, True, True, True]])).tolist() == [[1, 5, 3]]


def test_observations_are_told_apart_by_what_they_hold():
    seen = [
        [{"at": [1, 2], "has": {"key", "lamp"}}, np.array([1, 2]), torch.tensor([1.0, 2.0])],
        [{"has": {"lamp", "key"}, "at": [1, 2]}, np.array([1, 2]), torch.tensor([1, 2])],
        [{"at": [1, 2], "has": {"key"}}, np.array([[1, 2]])],
    ]
    keys = anchor_keys(seen, torch.zeros(3).long())
    assert keys[0, :2].tolist() == keys[1, :2].tolist()
    assert keys[2, 2] == -1
    assert len(set(keys.flatten().tolist())) == 7
    assert canonical(1) != canonical(True)
    assert (anchor_keys(seen[:2], torch.tensor([0, 1]))[0] != anchor_keys(seen[:2], torch.tensor([0, 1]))[1]).all()


def test_texts_that_nearly_agree_share_a_state():
    room = "You are in the kitchen. There is a table and a fridge here. Step {}."
    seen = [[room.format(1), "A dark cellar."], [room.format(2), "A dark cellar!"]]
    group = torch.zeros(2).long()
    near = anchor_keys(seen, group, similarity=0.95)
    assert near[0, 0] == near[1, 0]
    assert near[0, 1] != near[1, 1]
    assert len(set(anchor_keys(seen, group).flatten().tolist())) == 4
    assert anchor_keys(seen, torch.tensor([0, 1]), similarity=0.95)[:, 0].unique().numel() == 2
    with pytest.raises(TypeError, match="observation 0 of trajectory 0 is a int, and similarity 0.9 compares texts"):
        anchor_keys([[1]], torch.zeros(1).long(), similarity=0.9)
