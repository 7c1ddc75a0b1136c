import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.credit.step_potential import potentials_of, spae, spae_advantage, step_potential
from guerdon.errors import RecipeError

quick = settings(derandomize=True, deadline=None, max_examples=25)


def probes(*rows):
    """Metadata of answers from (end, accuracy, confidence) of their steps."""
    names = ("ends", "accuracy", "confidence")
    return [
        {
            "step_probe": dict(
                zip(names, map(list, zip(*steps, strict=True)), strict=True) if steps else ((n, []) for n in names)
            )
        }
        for steps in rows
    ]


def test_corners():
    accuracy, confidence = torch.tensor([1.0, 0.0, 0.0, 1.0]), torch.tensor([1.0, 1.0, 0.0, 0.0])
    assert step_potential(accuracy, confidence).tolist() == [1.0, -1.0, 0.0, 0.5]


def test_actions_find_their_steps():
    mask = torch.tensor([[True, False, True, True, True], [True] * 5])
    known = probes([(0, 1.0, 1.0), (2, 0.0, 1.0)], [])
    steps = potentials_of(known, mask, torch.float64)
    # Action 3, behind the last end, belongs to the last step; an answer without an end is one step.
    assert steps.step.tolist() == [[0, 0, 1, 1, 1], [0] * 5]
    assert steps.exists.tolist() == [[True, True], [True, False]]
    assert steps.value.tolist() == [[1.0, -1.0], [0.0, 0.0]]


def test_saturated_steps_are_counted_before_each():
    mask, reward = torch.ones(2, 3).bool(), torch.tensor([1.0, 0.0], dtype=torch.float64)
    known = probes(*[[(0, 1.0, 1.0), (1, 1.0, 1.0), (2, 1.0, 1.0)]] * 2)
    credit, stats = spae(reward, torch.zeros(2).long(), mask, known)
    f = [1.0, 1 - 0.5 * (1 - math.exp(-1)), 1 - 0.5 * (1 - math.exp(-2))]
    assert f == pytest.approx([1, 0.684, 0.568], abs=1e-3)
    assert (credit[0] / credit[0, 0]).tolist() == pytest.approx(f)
    assert (credit[1] / credit[0]).tolist() == pytest.approx([-1.0] * 3)
    assert stats == pytest.approx({"solving": 1.0, "checking": 2.0, "right_to_wrong": 0.5, "spared": 2 / 3})


def test_single_steps_leave_the_outcome():
    mask, reward = torch.ones(2, 2).bool(), torch.tensor([1.0, 0.0], dtype=torch.float64)
    credit, _ = spae(reward, torch.zeros(2).long(), mask, probes([], [(1, 0.9, 0.1)]))
    assert credit[0].tolist() == pytest.approx((-credit[1]).tolist())
    assert float(credit[0, 0]) == pytest.approx(math.sqrt(3) / 2)  # 0.5 over a deviation of 0.5 sqrt(4/3)


def test_a_missing_probe():
    with pytest.raises(RecipeError, match=r"sample 1 has none; list source 'step_probe'"):
        potentials_of([*probes([]), {}], torch.ones(2, 1).bool(), torch.float32)


step = st.tuples(st.floats(0, 1), st.floats(0, 1))
answers = st.lists(st.tuples(st.lists(step, max_size=4), st.integers(0, 2), st.booleans()), min_size=1, max_size=6)


@quick
@given(answers, st.integers(0, 99))
def test_against_brute_force(rows, seed):
    random = torch.Generator().manual_seed(seed)
    mask = torch.rand(len(rows), 9, generator=random) > 0.3
    mask[:, 0] = True
    reward = torch.tensor([float(r) for _, _, r in rows], dtype=torch.float64)
    group = torch.tensor([g for _, g, _ in rows])
    known = []
    for i, (steps, _, _) in enumerate(rows):
        kept = steps[: int(mask[i].sum())]
        known += probes([(place, a, c) for place, (a, c) in enumerate(kept)])
    credit, _ = spae(reward, group, mask, known)

    phis = [
        [1.5 * a * c + 0.5 * a - c for a, c in zip(p["accuracy"], p["confidence"], strict=True)] or [0.0]
        for p in (k["step_probe"] for k in known)
    ]
    changes = [[0.0, *(y - x for x, y in pairwise(phi))] for phi in phis]
    flat = [x for row in changes for x in row]
    low, high = min(flat), max(flat)
    raised = [[math.exp((x - low) / (high - low) if high > low else 0.0) for x in row] for row in changes]
    mean = sum(x for row in raised for x in row) / len(flat)
    whole = torch.zeros_like(mask, dtype=torch.float64)
    for i, g in enumerate(group.tolist()):
        outcome = float(reward[i] - reward[group == g].mean())
        for action, t in enumerate(mask[i].nonzero().flatten().tolist()):
            k = min(action, len(phis[i]) - 1)
            seen = sum(phi > 0.9 for phi in phis[i][:k])
            whole[i, t] = outcome * (1 - 0.5 * (1 - math.exp(-seen))) + 0.5 * (raised[i][k] - mean)
    values = whole[mask]
    spread = values.std() if len(values) > 1 else torch.zeros(())
    wanted = torch.where(mask, (whole - values.mean()) / (spread + 1e-8), 0.0)
    if float(spread) > 1e-6 or len(values) == 1:
        torch.testing.assert_close(
            credit, wanted if len(values) > 1 else torch.zeros_like(wanted), atol=1e-5, rtol=1e-4
        )
    assert (credit[~mask] == 0).all()
    order = torch.randperm(len(rows), generator=random)
    again, _ = spae(reward[order], group[order], mask[order], [known[i] for i in order.tolist()])
    torch.testing.assert_close(again, credit[order], atol=1e-6, rtol=1e-6)


def test_nothing_is_read_where_there_is_no_step():
    mask, reward = torch.ones(2, 3).bool(), torch.tensor([1.0, 0.0], dtype=torch.float64)
    steps = potentials_of(probes([(0, 0.5, 0.5), (1, 0.9, 0.9)], [(0, 0.1, 0.1)]), mask, torch.float64)
    dirty = steps._replace(value=steps.value.masked_fill(~steps.exists, math.nan))
    group = torch.zeros(2).long()
    torch.testing.assert_close(spae_advantage(reward, group, mask, dirty), spae_advantage(reward, group, mask, steps))
