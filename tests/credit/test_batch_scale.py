import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.credit.batch_scale import batch_scaled
from guerdon.credit.group import grpo

quick = settings(derandomize=True, deadline=None, max_examples=25)


def test_a_lone_success_is_not_blown_up():
    lone, half = torch.zeros(16), torch.tensor([1.0, 0.0]).repeat(24)
    lone[0] = 1.0
    reward, group = torch.cat([lone, half]), torch.arange(4).repeat_interleave(16)
    mask = torch.ones(64, 2).bool()
    apart = grpo(reward, group, mask, eps=0.0)
    assert apart[0, 0] / apart[16, 0] == pytest.approx(3.873, abs=1e-3)
    assert apart[0, 0] == pytest.approx(3.75)
    together, stats = batch_scaled(reward, group, mask, eps=0.0)
    assert together[0, 0] / together[16, 0] == pytest.approx(1.875)
    assert together[0, 0] == pytest.approx(0.9375 / (12.9375 / 63) ** 0.5)
    assert stats == {"accepted": 1.0}


values = st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=20)


@quick
@given(values, st.integers(0, 99))
def test_formula_permutation_padding_and_garbage(rows, seed):
    group = torch.tensor([g for g, _ in rows])
    reward = torch.tensor([r for _, r in rows], dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(len(rows), 4, generator=generator) < 0.7
    out, stats = batch_scaled(reward, group, mask, eps=1e-6)
    useful = [i for i, (g, _) in enumerate(rows) if len({r for h, r in rows if h == g}) > 1 and bool(mask[i].any())]
    centred = [reward[i] - reward[group == group[i]].mean() for i in useful]
    assert stats["accepted"] == pytest.approx(len(useful) / len(rows))
    wanted = torch.zeros(len(rows), dtype=torch.float64)
    if useful:
        a = torch.stack(centred)
        spread = a.std() if len(useful) > 1 else torch.zeros(())
        wanted[useful] = (a - a.mean()) / (spread + 1e-6)
    assert torch.allclose(out, wanted.unsqueeze(1) * mask, atol=1e-9)
    assert torch.isfinite(out).all()

    order = torch.randperm(len(rows), generator=generator)
    assert torch.allclose(batch_scaled(reward[order], group[order], mask[order])[0], out[order], atol=1e-9)
    padded = torch.cat([mask, torch.zeros(len(rows), 2).bool()], dim=1)
    assert torch.allclose(batch_scaled(reward, group, padded)[0][:, :4], out)


def test_statistics_count_trajectories_not_tokens():
    reward, group = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 0.0]), torch.tensor([0, 0, 1, 1, 1, 1])
    short, long = torch.ones(6, 1).bool(), torch.ones(6, 9).bool()
    long[:3, 1:] = False
    assert torch.equal(batch_scaled(reward, group, short)[0][:, 0], batch_scaled(reward, group, long)[0][:, 0])


def test_silent_groups_singletons_and_nothing():
    reward, group = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.7]), torch.tensor([0, 0, 1, 1, 2])
    out, stats = batch_scaled(reward, group, torch.ones(5, 1).bool(), eps=0.0)
    assert out.abs().max() == 0
    assert stats["accepted"] == 0.0
    assert batch_scaled(torch.zeros(0), torch.zeros(0).long(), torch.zeros(0, 3).bool())[0].shape == (0, 3)
