import math

import pytest
import torch

from guerdon.claims.testbeds.gflow import generators, hypergrid, programs, set_building

GRAPHS = {"sets": set_building(5, 3)[0], "grid": hypergrid(3)[0], "tree": programs(3, 2)[0]}


@pytest.mark.parametrize("name", GRAPHS)
def test_exact_flows_end_in_proportion_to_the_reward(name):
    graph = GRAPHS[name]
    reward = torch.rand(len(graph.child), generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1
    log_flow, log_policy = graph.flow(reward.log())
    wanted = torch.where(graph.terminal, reward, 0.0)
    assert log_flow[0].exp().item() == pytest.approx(wanted.sum().item())
    ends = graph.ends(log_policy.masked_fill(~graph.allowed, 0.0).unsqueeze(0))[0]
    assert torch.allclose(ends, wanted / wanted.sum())


@pytest.mark.parametrize("name", GRAPHS)
def test_samples_follow_the_policy(name):
    graph = GRAPHS[name]
    logits = torch.randn(2, *graph.child.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    paths = graph.sample(logits, 20_000, generators([0, 1], "test"))
    assert paths.done.all()
    ends = graph.ends(logits)
    assert torch.allclose(ends.sum(dim=1), torch.ones(2).double())
    for s in range(2):
        share = torch.bincount(paths.last[s], minlength=len(graph.child)) / 20_000
        assert (share - ends[s]).abs().max() < 0.02
    logp, log_pb = graph.logp(logits, paths)
    allowed = graph.allowed[paths.states[..., :-1], paths.actions]
    assert allowed[paths.mask].all()
    assert (logp[~paths.mask] == 0).all()
    # The chance of a terminal is the sum over ways to it, so the mean of P_B / P_F over samples that end there is 1.
    ratio = torch.where(paths.last == paths.last[0, 0], (log_pb - logp).sum(-1).exp(), 0.0)
    assert ratio[0].mean().item() == pytest.approx(1.0, abs=0.1)


def test_sizes_and_parents():
    graph, holds = set_building()
    assert len(graph.child) == sum(math.comb(8, k) for k in range(5))
    assert graph.terminal.sum() == 70
    assert torch.allclose(graph.log_pb[1:].exp() * holds.sum(dim=1)[1:], torch.ones(162).double())
    grid, cells = hypergrid(4)
    assert grid.terminal.sum() == 16
    assert grid.log_pb[5].exp() == 0.5
    assert grid.log_pb[1] == 0
    assert cells[7].tolist() == [1, 3]
    tree, words = programs(2, 3)
    assert (tree.log_pb == 0).all()
    assert words.tolist()[5] == [1, 0, 1]
    state = 0
    for action in (1, 0, 1):
        state = int(tree.child[state, action])
    assert state == len(tree.child) - 8 + 5


def test_cut_trajectories_end_before_their_terminal():
    graph = GRAPHS["sets"]
    draws = generators([0], "cut")
    paths = graph.sample(torch.zeros(1, *graph.child.shape, dtype=torch.float64), 2000, draws)
    cut = paths.cut(0.7, draws)
    assert (~cut.done).double().mean().item() == pytest.approx(0.7, abs=0.04)
    length = cut.mask.sum(dim=-1)
    assert length.min() >= 1
    assert (length[~cut.done] < 3).all()
    assert torch.equal(graph.terminal[cut.last], cut.done)
    assert torch.equal(cut.states.gather(-1, length.unsqueeze(-1)).squeeze(-1), cut.last)
