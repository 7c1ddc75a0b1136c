"""Right and wrong traces that somebody wrote once are learned from by making policy and value consistent with the
outcome at every state: the value falls where a trace goes wrong, and there the policy learns.

A tree of eight traces is solved exactly. Then networks that reach a goal by four operations 30 % of the time leave 16
traces of each prompt, and OREO learns from these, as do imitation of those that passed and DPO on pairs, all at the
best of the learning rates 0.003, 0.01 and 0.03. Imitation also clones wrong traces that pass by luck, so there OREO is
far ahead, with an exact verifier a little. A value wants data: with 3 traces of each prompt imitation is better (0.83
against 0.70 on five other seeds, exact verifier). The beam's value sees whether a whole trace has met the goal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from guerdon.claims.core import Check, Claim, Mutation, equal, paired
from guerdon.claims.testbeds.sequences import Adam, Countdown, Networks, Reading, imitate
from guerdon.credit.token import one_of_each
from guerdon.inference.tree import value_beam
from guerdon.objectives.offline import oreo
from guerdon.objectives.policy import Objective
from guerdon.objectives.preference import dpo, log_ratio_of_answers
from guerdon.seeding import torch_generator

WORLD, TRACES, LUCK, STEPS, BATCH, LR = Countdown(7, 4), 16, 0.2, 600, 64, 0.03


def without_value(
    logp: Tensor, ref_logp: Tensor, value_prediction: Tensor, *others: Tensor, **options: Any
) -> Objective:
    """OREO whose value is 0 everywhere."""
    return oreo(logp, ref_logp, 0 * value_prediction, *others, **options)


def one_step(method: Callable[..., Objective]) -> Tensor:
    """Gradient of the policy's loss of one trace: an action, a tool's token, an action."""
    logp = torch.tensor([[-1.0, 5.0, -2.0]], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, False, True]])
    value = torch.tensor([[0.5, 9.0, 0.2]], dtype=torch.float64)
    reward, turn = torch.ones(1, dtype=torch.float64), torch.zeros_like(mask).long()
    loss, _ = method(logp, logp.detach(), value, reward, mask, turn, beta=0.5, kl_weight=0.0)
    return torch.autograd.grad(loss, logp)[0][0]


def tree(method: Callable[..., Objective], beta: float, **options: Any) -> tuple[Tensor, Tensor]:
    """Solve two actions at three depths on all eight traces; how far the policy and the first value are off."""
    actions = torch.tensor(list(product((0, 1), repeat=3)))
    state = torch.stack([0 * actions[:, 0], 1 + actions[:, 0], 3 + 2 * actions[:, 0] + actions[:, 1]], dim=1)
    ref = torch.randn(7, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log_softmax(dim=1)
    reward = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    ref_logp, mask, turn = ref[state, actions], torch.ones(8, 3).bool(), torch.tensor([0, 0, 1]).expand(8, 3)
    logits, values = ref.clone().requires_grad_(), torch.zeros(7, dtype=torch.float64, requires_grad=True)
    update = torch.optim.Adam([logits, values], lr=0.05)
    for _ in range(600):
        logp = logits.log_softmax(dim=1)[state, actions]
        loss, _ = method(logp, ref_logp, values[state], reward, mask, turn, beta=beta, kl_weight=0.0, **options)
        update.zero_grad()
        loss.backward()
        update.step()
    tilted = ref_logp.sum(dim=1) + reward / beta
    trained = logits.log_softmax(dim=1)[state, actions].sum(dim=1).exp()
    return (trained - tilted.softmax(dim=0)).abs().max(), values[0] - beta * tilted.logsumexp(dim=0)


@dataclass(frozen=True)
class Offline:
    """Traces (S,N,T) of a policy for prompts (S,N,2), and which of them passed."""

    start: Networks
    prompt: Tensor
    tokens: Tensor
    passed: Tensor
    group: Tensor

    @classmethod
    def collect(cls, seeds: Sequence[int], luck: float) -> Offline:
        """Imitate random right traces until about 30 % are right, and write; wrong ones pass with chance ``luck``."""
        networks = Networks(WORLD.writing(), seeds)
        right = WORLD.right(WORLD.prompt.unsqueeze(1), WORLD.traces).float()
        shown = WORLD.traces[torch.multinomial(right, 1, generator=torch.Generator().manual_seed(0)).squeeze(1)]
        imitate(networks, WORLD.prompt, shown, steps=95, lr=1e-2)
        group = torch.arange(len(WORLD.prompt)).repeat_interleave(TRACES)
        prompt = WORLD.prompt[group].expand(len(seeds), -1, -1)
        generators = [torch_generator(seed, "traces") for seed in seeds]
        tokens = networks.write(prompt, generators)
        lucky = torch.stack([torch.rand(len(group), generator=g) for g in generators]) < luck
        return cls(networks, prompt, tokens, WORLD.right(prompt, tokens) | lucky, group)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Prompts, traces and outcomes of rows (S,B)."""
        seed = torch.arange(len(rows)).unsqueeze(1)
        return self.prompt[seed, rows], self.tokens[seed, rows], self.passed[seed, rows]

    def train(self, learn: Callable[..., Tensor], draw: Callable[..., Tensor], lr: float) -> Networks:
        """Learn from batches of rows: ``draw(seed, generator) -> (B,)``, ``learn(now, start, passed) -> loss``."""
        networks = self.start.copy()
        update = Adam(networks, lr)
        generators = [torch_generator(seed, "order") for seed in networks.seeds]
        for _ in range(STEPS):
            prompt, tokens, passed = self.batch(torch.stack([draw(s, g) for s, g in enumerate(generators)]))
            with torch.no_grad():
                start = self.start.read(prompt, tokens)
            update.step(learn(networks.read(prompt, tokens), start, passed))
        return networks

    def oreo(self, method: Callable[..., Objective], beta: float = 0.03, lr: float = LR) -> Networks:
        """The end of a trace is one more state, whose only action is certain."""

        def learn(now: Reading, start: Reading, passed: Tensor) -> Tensor:
            logp, ref_logp = (pad(x.logp, (0, 1)).flatten(0, 1) for x in (now, start))
            values = torch.cat([now.values, now.end_value.unsqueeze(-1)], dim=-1).flatten(0, 1)
            kl = (now.log_probs.exp() * (now.log_probs - start.log_probs)).sum(dim=-1)
            states, turn = torch.ones_like(logp).bool(), torch.zeros_like(logp).long()
            ref_kl = pad(kl, (0, 1)).flatten(0, 1)
            loss, _ = method(logp, ref_logp, values, passed.flatten().float(), states, turn, ref_kl, beta=beta)
            return loss * len(passed)

        return self.train(learn, lambda s, g: torch.randint(len(self.group), (BATCH,), generator=g), lr)

    def imitation(self, lr: float = LR) -> Networks:
        """Cross-entropy of the traces that passed."""
        rows = [passed.nonzero().flatten() for passed in self.passed]

        def draw(seed: int, generator: torch.Generator) -> Tensor:
            return rows[seed][torch.randint(len(rows[seed]), (BATCH,), generator=generator)]

        return self.train(lambda now, *_: -now.logp.mean(dim=(1, 2)).sum(), draw, lr)

    def preference(self, beta: float = 1.0, lr: float = LR) -> Networks:
        """DPO on a trace that passed and one that did not, of the same prompt."""

        def draw(seed: int, generator: torch.Generator) -> Tensor:
            passed, uniform = self.passed[seed], torch.rand(len(self.group), generator=generator)
            chosen = one_of_each(passed, self.group, uniform).nonzero().flatten()
            better = chosen[passed[chosen]]
            worse = chosen[~passed[chosen]]
            pairs = torch.randint(len(better), (BATCH // 2,), generator=generator)
            return torch.cat([better[pairs], worse[pairs]])

        def learn(now: Reading, start: Reading, passed: Tensor) -> Tensor:
            gain = log_ratio_of_answers(now.logp.flatten(0, 1), start.logp.flatten(0, 1), torch.ones(1).bool())
            better, worse = gain.view(len(passed), 2, -1).unbind(dim=1)
            return dpo(better.flatten(), worse.flatten(), beta=beta)[0] * len(passed)

        return self.train(learn, draw, lr)


@torch.no_grad()
def success(networks: Networks) -> Tensor:
    """(S,) exact chance that a trace ends at the goal, over all prompts."""
    count, seeds = len(WORLD.prompt), len(networks.seeds)
    prompt, tokens = WORLD.prompt.repeat_interleave(len(WORLD.traces), dim=0), WORLD.traces.repeat(count, 1)
    chance = networks.read(prompt.expand(seeds, -1, -1), tokens.expand(seeds, -1, -1)).logp.sum(dim=-1).exp()
    return (chance * WORLD.right(prompt, tokens)).sum(dim=1) / count


def greedy(networks: Networks) -> Tensor:
    """(S,) share of prompts whose likeliest operations lead to the goal."""
    prompt = WORLD.prompt.expand(len(networks.seeds), -1, -1)
    return WORLD.right(prompt, networks.write(prompt)).float().mean(dim=1)


@dataclass(frozen=True)
class Operations:
    """Steps of a search: the likeliest operations of one seed's networks for one prompt."""

    networks: Networks
    prompt: Tensor

    def extend(self, states: Sequence[tuple[int, ...]], count: int, depth: int) -> list[list[tuple[int, ...]]]:
        likeliest = self.networks.read(*self._padded(states)).log_probs[0, :, depth].topk(count).indices
        return [[(*state, a) for a in row] for state, row in zip(states, likeliest.tolist(), strict=True)]

    def ended(self, state: tuple[int, ...]) -> bool:
        return len(state) == WORLD.length

    def values(self, states: Sequence[tuple[int, ...]]) -> list[float]:
        return self.networks.value_after(*self._padded(states))[0, :, len(states[0])].tolist()

    def _padded(self, states: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
        rows = torch.tensor([[*state, *[0] * (WORLD.length - len(state))] for state in states])
        return self.prompt.expand(1, len(rows), -1), rows.unsqueeze(0)


def beam(networks: Networks) -> Tensor:
    """(S,) share of prompts of which a beam over operations, led by the value, finds the goal."""
    found = []
    for index in range(len(networks.seeds)):
        one = networks.only(index)
        searches = [Operations(one, prompt) for prompt in WORLD.prompt]
        best = [value_beam((), steps, steps.values, width=4, branch=2)[0].state for steps in searches]
        found.append(WORLD.right(WORLD.prompt, torch.tensor(best)).float().mean())
    return torch.stack(found)


def value_changes(networks: Networks, data: Offline) -> tuple[Tensor, Tensor]:
    """(S,) mean change of V at first wrong steps, from which the goal is out of reach, and at steps that keep it."""
    change = networks.value_after(data.prompt, data.tokens).diff(dim=-1)
    hope = WORLD.hopeful(data.prompt, data.tokens)
    wrong, kept = hope[..., :-1] & ~hope[..., 1:], hope[..., 1:]
    first, second = ((change * where).sum(dim=(1, 2)) / where.sum(dim=(1, 2)) for where in (wrong, kept))
    return first, second


def run(method: Callable[..., Objective], seeds: int) -> Iterator[Check]:
    """The tree, then traces of which some passed by luck, then of an exact verifier."""
    yield equal("gradient of two actions with a tool's token between them", one_step(method), [-0.25, 0.0, -0.4])
    for granularity in ("token", "step"):
        policy, value = tree(method, 0.5, granularity=granularity)
        yield equal(f"largest error of a trace's probability, {granularity} by {granularity}", policy, 0.0, tol=1e-2)
        yield equal("V of the first state beside beta log E[exp(r / beta)]", value, 0.0, tol=1e-2)

    data = Offline.collect(range(seeds), LUCK)
    ours, imitated, preferred = data.oreo(method), data.imitation(), data.preference()
    what = "success where a wrong trace passes one time in five"
    yield paired(f"{what}, against imitation of what passed", success(ours), success(imitated))
    yield paired(f"{what}, against DPO", success(ours), success(preferred))
    wrong, kept = value_changes(ours, data)
    yield paired("change of V at the first wrong step, beside right steps", wrong, kept, better="lower", margin=0.1)
    yield paired("goals found by a beam led by V, against greedy operations", beam(ours), greedy(ours))

    exact = Offline.collect(range(seeds), 0.0)
    ours, imitated, preferred = exact.oreo(method), exact.imitation(), exact.preference()
    yield paired("success with an exact verifier, against DPO", success(ours), success(preferred))
    yield paired("success with an exact verifier, against imitation", success(ours), success(imitated))


CLAIM = Claim(
    system="oreo",
    run=run,
    method=oreo,
    mutation=Mutation("the value is 0 everywhere", without_value),
    recipe="""
policy: {name: tiny_lm, width: 64, layers: 2, value_head: true}
objective: {name: oreo, beta: 0.03}
""",
    seeds=5,
)
