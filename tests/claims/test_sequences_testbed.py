import itertools

import pytest
import torch

from guerdon.claims.testbeds.sequences import Adam, Countdown, Networks, imitate, progressions
from guerdon.seeding import torch_generator


def drawn(networks, prompt, rows=64):
    generators = [torch_generator(seed, "test") for seed in networks.seeds]
    asked = prompt[torch.arange(rows) % len(prompt)].expand(len(networks.seeds), -1, -1)
    return asked, networks.write(asked, generators)


@pytest.mark.parametrize("task", [progressions()[0], progressions(whole=True)[0], Countdown().writing()])
def test_what_is_seen_before_a_symbol_depends_on_the_symbols_before_it_alone(task):
    g = torch.Generator().manual_seed(0)
    prompt = torch.randint(7, (1, 5, 2), generator=g)
    tokens = torch.randint(task.symbols, (1, 5, task.length), generator=g)
    seen = task.observe(prompt, tokens)
    assert seen.shape == (1, 5, task.length + 1, task.size)
    for t in range(task.length):
        changed = tokens.clone()
        changed[..., t] = (changed[..., t] + 1) % task.symbols
        other = task.observe(prompt, changed)
        assert torch.equal(other[:, :, : t + 1], seen[:, :, : t + 1])
        assert (other[:, :, t + 1] != seen[:, :, t + 1]).any(dim=-1).any()


def test_progressions_by_hand():
    _, prompt, answer = progressions(7, 4)
    assert answer[(prompt == torch.tensor([5, 3])).all(dim=1)].tolist() == [[1, 4, 0, 3]]
    assert len(prompt) == 49


def test_whole_progressions_show_all_symbols_so_far():
    task, _, _ = progressions(3, 2, whole=True)
    seen = task.observe(torch.tensor([[[1, 0]]]), torch.tensor([[[2, 1]]]))[0, 0].tolist()
    asked, first, second = [0, 1, 0, 1, 0, 0], [0, 0, 1], [0, 1, 0]
    assert seen[0] == [*asked, 0, 0, 0, 0, 0, 0, 1, 0, 0]
    assert seen[1] == [*asked, *first, 0, 0, 0, 0, 1, 0]
    assert seen[2] == [*asked, *first, *second, 0, 0, 1]


def test_countdown_by_hand():
    world = Countdown(7, 3)
    prompt = torch.tensor([[2, 5], [2, 6]])
    tokens = torch.tensor([[0, 1, 2], [0, 1, 2]])  # 2 + 1 = 3, + 3 = 6, * 2 = 5
    assert world.numbers(prompt, tokens).tolist() == [[2, 3, 6, 5]] * 2
    assert world.right(prompt, tokens).tolist() == [True, False]


def test_hope_is_what_a_search_over_all_traces_finds():
    world = Countdown(11, 3)
    g = torch.Generator().manual_seed(1)
    prompt = world.prompt[torch.randint(len(world.prompt), (40,), generator=g)]
    tokens = torch.randint(4, (40, 3), generator=g)
    hope = world.hopeful(prompt, tokens)
    for i in range(40):
        for t in range(4):
            rest = itertools.product(range(4), repeat=3 - t)
            whole = torch.tensor([[*tokens[i, :t].tolist(), *more] for more in rest])
            assert hope[i, t] == world.right(prompt[i].expand(len(whole), 2), whole).any()
    assert world.right(world.prompt.unsqueeze(1), world.traces).any(dim=1).all()
    assert not hope.all()


def test_samples_follow_the_probabilities():
    world = Countdown(7, 2)
    networks = Networks(world.writing(), [3, 4], hidden=16)
    _, tokens = drawn(networks, world.prompt[:1], 20_000)
    assert ((tokens >= 0) & (tokens < 4)).all()
    every = world.traces.expand(2, -1, -1)
    exact = networks.read(world.prompt[:1].expand(2, 16, -1), every).logp.sum(dim=-1).exp()
    assert exact.sum(dim=1).tolist() == pytest.approx([1.0, 1.0], abs=1e-5)
    share = torch.stack([(tokens == trace).all(dim=-1).float().mean(dim=1) for trace in world.traces], dim=1)
    assert (share - exact).abs().max() < 0.012
    assert (exact[0] - exact[1]).abs().max() > 0.02


def test_greedy_writes_the_likeliest_symbol_each_time():
    networks = Networks(progressions()[0], [0], hidden=16)
    prompt = torch.tensor([[[3, 4], [1, 2]]])
    tokens = networks.write(prompt)
    assert torch.equal(networks.read(prompt, tokens).log_probs.argmax(dim=-1), tokens)


def test_a_seed_is_itself_whatever_runs_beside_it():
    task, prompt, answer = progressions(5, 3)
    both, alone = (Networks(task, seeds, hidden=16) for seeds in ([0, 1], [1]))
    for networks in (both, alone):
        imitate(networks, prompt, answer, steps=20)
    asked, tokens = drawn(alone, prompt)
    mine = both.read(asked.expand(2, -1, -1), tokens.expand(2, -1, -1)).logp
    assert torch.allclose(mine[1:], alone.read(asked, tokens).logp, atol=1e-5)
    assert not torch.allclose(mine[0], mine[1], atol=1e-2)


def test_the_networks_of_one_seed_say_what_they_say_among_others():
    task, prompt, answer = progressions(5, 3)
    networks = Networks(task, [0, 1, 2], hidden=8)
    ask, tell = prompt.expand(3, -1, -1), answer.expand(3, -1, -1)
    for index in range(3):
        one = networks.only(index)
        assert one.seeds == [index]
        assert torch.allclose(one.read(ask[:1], tell[:1]).logp[0], networks.read(ask, tell).logp[index], atol=1e-6)
    assert networks.seeds == [0, 1, 2]


def test_imitation_makes_the_answer_likely_and_a_copy_stays_as_it_was():
    task, prompt, answer = progressions(5, 3)
    networks = Networks(task, [0], hidden=32)
    before = networks.copy()
    imitate(networks, prompt, answer, steps=300, lr=1e-2)
    now, then = (n.read(prompt.unsqueeze(0), answer.unsqueeze(0)).logp.exp().mean().item() for n in (networks, before))
    assert now > 0.8
    assert then < 0.4


def test_policy_and_critic_share_nothing_and_values_lie_where_they_belong():
    task, prompt, answer = progressions(5, 3)
    networks = Networks(task, [0], hidden=8)
    ask, tell = prompt.unsqueeze(0), answer.unsqueeze(0)
    before = networks.read(ask, tell)
    wanted = torch.arange(4.0)  # the number of symbols written so far
    update = Adam(networks, 0.05)
    for _ in range(100):  # the first step leaves the hidden layer alone, for the last one begins at 0
        now = networks.read(ask, tell)
        update.step((now.values - wanted[:3]).square().sum() + (now.end_value - wanted[3]).square().sum())
    after = networks.read(ask, tell)
    assert torch.equal(after.logp, before.logp)
    assert torch.equal(networks.value_after(ask, tell), torch.cat([after.values, after.end_value.unsqueeze(-1)], -1))
    assert (networks.value_after(ask, tell) - wanted).abs().max() < 0.5
