"""One reward at the end of an answer leaves PPO to find out which tokens earned it. RTO trains a second model by DPO
on pairs of answers, and rewards every token by how much more that model likes it than the reference does.

Networks add neighbouring digits modulo 6, twenty times, and imitation has made them right about a quarter of the time.
They are preferred, and rewarded at the end, for the number of right digits, which is what their critic sees besides the
digits to add. With the published weights a token earns 0.05 at most beside an outcome of standard deviation 1, and what
that saves is small: two steps of 43. A weight of 1 without a bound is tried on an anchor that has seen a quarter of the
pairs: it is hacked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from guerdon.claims.core import Check, Claim, Mutation, below, equal, every_seed, paired
from guerdon.claims.testbeds.sequences import Adam, Networks, Writing
from guerdon.credit.step import gae
from guerdon.objectives.policy import ppo_clip
from guerdon.objectives.preference import dpo
from guerdon.objectives.value import value
from guerdon.rewards.likelihood import TokenReward, rto_token_reward
from guerdon.rollouts import at_last_action
from guerdon.seeding import torch_generator

DIGITS, LENGTH, PAIRS, ANSWERS = 6, 20, 512, 48
FEW = 128
BOUND = 0.05


def in_one_piece(
    reward: Tensor, anchor_logp: Tensor, ref_logp: Tensor, old_logp: Tensor, mask: Tensor, **options: Any
) -> TokenReward:
    """Give the sum of all tokens' rewards to the last."""
    whole = rto_token_reward(reward, anchor_logp, ref_logp, old_logp, mask, **options).reward
    return TokenReward(at_last_action(whole, mask.bool()), whole)


def soft_optimum(length: int = 3, symbols: int = 3, beta: float = 0.5) -> dict[str, Tensor]:
    """All answers (N,T) of a random reference with a random reward, and the best policy under a KL penalty.

    V(y_<t) = beta log E_ref exp(r / beta) over what may follow;  advantage_t = V(y_<=t) - V(y_<t)
    """
    generator = torch_generator(0, "soft optimum")
    answers = torch.cartesian_prod(*[torch.arange(symbols)] * length)
    reward = torch.randn(len(answers), generator=generator, dtype=torch.float64)
    tables = [torch.randn(symbols**t, symbols, generator=generator, dtype=torch.float64) for t in range(length)]
    ref = [table.log_softmax(dim=1) for table in tables]
    values = [reward]
    for t in reversed(range(length)):
        values.insert(0, beta * (ref[t] + values[0].view(-1, symbols) / beta).logsumexp(dim=1))
    prefix = [torch.arange(len(answers)) // symbols ** (length - t) for t in range(length + 1)]
    steps = list(zip(ref, prefix[:-1], answers.T, strict=True))
    ref_logp = torch.stack([table[before, symbol] for table, before, symbol in steps], dim=1)
    advantage = torch.stack([values[t + 1][prefix[t + 1]] - values[t][prefix[t]] for t in range(length)], dim=1)
    best = ref_logp.sum(dim=1) + reward / beta  # of whole answers, up to a constant; conditionals by summing out
    best = best.log_softmax(dim=0)
    sums = [torch.logsumexp(best.view(symbols**t, -1), dim=1) for t in range(length + 1)]
    logp = torch.stack([sums[t + 1][prefix[t + 1]] - sums[t][prefix[t]] for t in range(length)], dim=1)
    return {"reward": reward, "anchor_logp": logp, "ref_logp": ref_logp, "advantage": advantage}


def right_sums(prompt: Tensor) -> Tensor:
    """(...,T) sums of neighbours in (...,T+1)."""
    return (prompt[..., :-1] + prompt[..., 1:]) % DIGITS


def observe(prompt: Tensor, tokens: Tensor) -> Tensor:
    """Which two digits to add, how far the answer has come, and how many digits were right so far."""
    asked = pad(torch.eye(DIGITS**2)[DIGITS * prompt[..., :-1] + prompt[..., 1:]], (0, 0, 0, 1))
    place = torch.arange(LENGTH + 1).expand(*tokens.shape[:2], -1)
    right = pad((tokens == right_sums(prompt)).cumsum(dim=-1), (1, 0))
    return torch.cat([asked, torch.stack([place, right], dim=-1) / LENGTH], dim=-1)


TASK = Writing(DIGITS, LENGTH, DIGITS**2 + 2, observe)


def prompts(generators: list[torch.Generator], rows: int) -> Tensor:
    """(S,rows,LENGTH + 1) random digits."""
    return torch.stack([torch.randint(DIGITS, (rows, LENGTH + 1), generator=g) for g in generators])


class Course(NamedTuple):
    """By step, for every seed (S,T): share of right digits, and log pi_anchor / pi_ref of the answers."""

    right: Tensor
    liked: Tensor


class World:
    """Networks that imitation has taught a little, and the same after DPO on pairs of their answers."""

    def __init__(self, seeds: int, *, pairs: int = PAIRS, first_seed: int = 0) -> None:
        self.seeds = list(range(first_seed, first_seed + seeds))
        self.ref = Networks(TASK, self.seeds, hidden=32)
        optimizer, generators = Adam(self.ref, 3e-3), self.generators("imitation")
        for _ in range(20):
            prompt = prompts(generators, 32)
            optimizer.step(-self.ref.read(prompt, right_sums(prompt)).logp.mean(dim=(1, 2)).sum())
        self.anchor = self.preferring(self.ref.copy(), pairs)

    def generators(self, purpose: str) -> list[torch.Generator]:
        """One of each seed."""
        return [torch_generator(seed, purpose) for seed in self.seeds]

    def preferring(self, networks: Networks, pairs: int, steps: int = 150) -> Networks:
        """Train them by DPO on pairs of the reference's answers, the one with more right digits preferred."""
        generators = self.generators("pairs")
        prompt, seed = prompts(generators, pairs), torch.arange(len(self.seeds)).unsqueeze(1)
        pair = torch.stack([self.ref.write(prompt, generators) for _ in range(2)])
        count = (pair == right_sums(prompt)).sum(dim=-1)
        order = count.argsort(dim=0, descending=True, stable=True)
        pair = pair.gather(0, order.unsqueeze(-1).expand_as(pair))
        differ = count[0] != count[1]
        with torch.no_grad():
            before = torch.stack([self.ref.read(prompt, answers).logp.sum(dim=-1) for answers in pair])
        optimizer = Adam(networks, 3e-3)
        for _ in range(steps):
            rows = torch.stack([torch.randint(pairs, (64,), generator=g) for g in generators])
            now = [networks.read(prompt[seed, rows], answers[seed, rows]).logp.sum(dim=-1) for answers in pair]
            better, worse = (x - then[seed, rows] for x, then in zip(now, before, strict=True))
            known = differ[seed, rows]
            losses = [dpo(b[k], w[k], beta=0.1)[0] for b, w, k in zip(better, worse, known, strict=True)]
            optimizer.step(torch.stack(losses).sum())
        return networks

    def agreement(self) -> Tensor:
        """(S,) correlation of the anchor's log-ratio of a token with whether the token is right, on fresh answers."""
        generators = self.generators("agreement")
        prompt = prompts(generators, 256)
        answers = self.ref.write(prompt, generators)
        with torch.no_grad():
            ratio = self.anchor.read(prompt, answers).logp - self.ref.read(prompt, answers).logp
        both = torch.stack([ratio, (answers == right_sums(prompt)).float()], dim=1).flatten(2)
        return torch.stack([torch.corrcoef(x)[0, 1] for x in both])

    def train(self, method: Callable[..., TokenReward], *, steps: int = 80, **options: Any) -> Course:
        """PPO from the reference, two updates per batch of ``ANSWERS``; outcomes are normalised by the reference's."""
        policy, generators, seeds = self.ref.copy(), self.generators("ppo"), len(self.seeds)
        optimizer = Adam(policy, 3e-3)
        scale = self.generators("scale")
        prompt = prompts(scale, 256)
        first = (self.ref.write(prompt, scale) == right_sums(prompt)).sum(dim=-1).float()
        mean, std = first.mean(dim=1, keepdim=True), first.std(dim=1, keepdim=True)
        mask = torch.ones(seeds * ANSWERS, LENGTH, dtype=torch.bool)
        right, liked = [], []
        for _ in range(steps):
            prompt = prompts(generators, ANSWERS)
            answers = policy.write(prompt, generators)
            with torch.no_grad():
                old, anchor, ref = (x.read(prompt, answers) for x in (policy, self.anchor, self.ref))
            count = (answers == right_sums(prompt)).sum(dim=-1).float()
            right.append(count.mean(dim=1) / LENGTH)
            liked.append((anchor.logp - ref.logp).sum(dim=-1).mean(dim=1))
            outcome = ((count - mean) / std).flatten()
            logp, values = old.logp.flatten(0, 1), old.values.flatten(0, 1)
            dense = method(outcome, anchor.logp.flatten(0, 1), ref.logp.flatten(0, 1), logp, mask, **options).dense
            nothing = torch.zeros(len(mask))
            credit, returns = gae(dense, values, mask, nothing, mask[:, 0], gamma=1.0, lam=0.95, whiten=False)
            credit = _whitened(credit.view(seeds, -1)).view_as(dense)
            for _ in range(2):
                now = policy.read(prompt, answers)
                loss, _ = ppo_clip(now.logp.flatten(0, 1), logp, credit, mask)
                error, _ = value(now.values.flatten(0, 1), values, returns, mask)
                optimizer.step((loss + error) * seeds)
        return Course(torch.stack(right, dim=1), torch.stack(liked, dim=1))


def _whitened(x: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 for each seed."""
    return (x - x.mean(dim=1, keepdim=True)) / x.std(dim=1, keepdim=True)


def steps_until(curve: Tensor, share: float) -> Tensor:
    """(S,) first step at which a curve (S,T) reaches the share; T if it never does."""
    reached = curve >= share
    return torch.where(reached.any(dim=1), reached.int().argmax(dim=1), curve.shape[1])


def run(method: Callable[..., TokenReward], seeds: int) -> Iterator[Check]:
    """The optimum by enumeration, two answers by hand, then PPO with and without."""
    best = soft_optimum()
    advantage, mask = best.pop("advantage"), torch.ones(27, 3, dtype=torch.bool)
    free: dict[str, Any] = {"beta_anchor": 0.5, "beta_ref": 0.0, "beta_reward": 0.0, "max_anchor": None}
    dense, whole = method(**best, old_logp=best["ref_logp"], mask=mask, **free)
    yield equal("rewards of all tokens under the best policy: its soft advantages", dense, advantage, tol=1e-9)
    apart = [x - x.mean() for x in (whole, best["reward"])]
    yield equal("their sums against the rewards of answers, up to a constant", *apart, tol=1e-9)

    given = {
        "reward": torch.tensor([1.0, 30.0]),
        "anchor_logp": torch.tensor([[-1.0, 7.0, -0.5, 9.0], [-3.0, -1.0, 9.0, -2.0]]),
        "ref_logp": torch.tensor([[-1.5, -7.0, -4.0, 9.0], [-2.0, -1.0, -9.0, -3.0]]),
        "old_logp": torch.tensor([[-1.0, 2.0, -3.0, 9.0], [-2.0, -2.0, 5.0, -1.0]]),
        "mask": torch.tensor([[1, 0, 1, 0], [1, 1, 0, 1]]).bool(),
    }
    tokens = [[0.05 * 0.5 - 0.01 * 0.5, 0, BOUND - 0.01 + 1, 0], [-0.05, 0.01, 0, 0.05 - 0.02 + 10]]
    yield equal("two answers with tokens that are no actions", method(**given).dense, tokens)
    sums = method(**given, beta_reward=0.0, max_anchor=None).reward
    difference = 0.05 * (4.0 - 0.0) - 0.01 * (1.5 - 1.0)
    yield equal("difference of their sums without outcome and bound", sums[0] - sums[1], difference)
    wild = 100 * torch.randn(2, 4, generator=torch_generator(0, "wild"))
    extreme = method(**given | {"anchor_logp": wild}, beta_ref=0.0, beta_reward=0.0).dense
    yield below("largest reward of a token whatever the anchor says", extreme.abs().max(), BOUND + 1e-6)

    world = World(seeds)
    yield every_seed("correlation of the anchor's log-ratio with right tokens", world.agreement(), above=0.5)
    ours, outcome, end = world.train(method), world.train(method, beta_anchor=0.0), world.train(in_one_piece)
    what, reached = "steps until 60 % of the digits are right", steps_until(ours.right, 0.6)
    yield paired(
        what,
        reached,
        steps_until(outcome.right, 0.6),
        better="lower",
        curves={"rto": ours.right, "outcome alone": outcome.right, "the same sum at the end": end.right},
        axis="share of right digits by step",
    )
    same = steps_until(end.right, 0.6)
    yield paired(f"{what}, against the same sum at the end", reached, same, better="lower")

    world = World(seeds, pairs=FEW)
    bounded, hacked = world.train(method), world.train(method, beta_anchor=1.0, max_anchor=None)
    what = f"anchor of {FEW} pairs, weight 1 without bound against the published weights"
    yield paired(f"{what}: log pi_anchor / pi_ref of answers at the end", hacked.liked[:, -1], bounded.liked[:, -1])
    fewer = (hacked.right[:, -1], bounded.right[:, -1])
    yield paired(f"{what}: share of right digits at the end", *fewer, better="lower")


CLAIM = Claim(
    system="rto",
    run=run,
    method=rto_token_reward,
    mutation=Mutation("the sum of the tokens' rewards is given to the last token", in_one_piece),
    recipe="""
policy: {name: tiny_lm, width: 64, layers: 2, value_head: true}
preference: {steps: 100, pairs: 32, lr: 1.0e-3}
shaping: [weighted_sum, rto_token_reward]
credit: {name: gae, gamma: 1.0, lam: 0.95}
terms: [value]
""",
    seeds=5,
)
