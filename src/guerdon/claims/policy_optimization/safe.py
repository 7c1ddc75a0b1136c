"""A policy that finds a flaw in its reward drifts away from its reference, and forgets what the reward was meant for.
SAFE leaves some KL free, and pulls back above a threshold that follows the reward, harder where little entropy is left;
its critic believes nearly the lower of two values.

Small networks write four terms of a progression and then an end. The reward is the share of right terms and up to 0.1
for length; meant are right answers, which nine in ten are at the start. The baseline is PPO with one head and a fixed
weight of 0.05 on the KL, as published, but with a gradient, which the release's penalty lacks on average. The gain is
the controller's: with a plain critic the fall is 0.44, and the last KL 0.34. It shows where the flaw pulls hard enough
to drag the fixed weight past SAFE's threshold. Where it does not, what SAFE leaves free is used up for nothing: with a
bonus of 0.05, half the learning rate and 400 batches SAFE falls by 0.25, PPO by 0.14 (three seeds). A weight chosen in
hindsight is better, too: 0.2 falls by 0.13 and ends at a KL of 0.12, though 0.1 falls by 0.57 and ends at 0.61. No step
comes near the limit of the preview, which is tried by hand alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from guerdon.claims.core import Check, Claim, Mutation, above, below, check, equal, paired
from guerdon.claims.testbeds.sequences import Adam, Networks, Writing, imitate, progressions
from guerdon.credit.critic_baseline import CriticBaseline
from guerdon.objectives.aggregation import token_mean
from guerdon.objectives.controlled import AsymmetricKL, EntropyGatedKL
from guerdon.objectives.divergence import kl
from guerdon.objectives.policy import ppo_clip
from guerdon.objectives.value import huber_value, value
from guerdon.policies.critic import SoftMinCritic, follow, slow_critics
from guerdon.seeding import torch_generator
from guerdon.training.preview import shorten

MODULUS, RIGHT, LENGTH = 7, 4, 10
END = MODULUS
BONUS, BATCH, STEPS, RATE, UPDATES = 0.1, 64, 300, 2e-3, 2


class Parts(NamedTuple):
    """What is under test."""

    critic: Callable[..., Any]
    control: Callable[..., Any]
    sibling: Callable[..., Any]
    preview: Callable[..., dict[str, float]]


class Learner(NamedTuple):
    """What two ways to learn differ in: a critic, its loss, and what holds the policy to its reference."""

    critic: Callable[[int], nn.Module]
    value: Callable[..., Any]
    control: Callable[[], Callable[..., Any]]


class Run(NamedTuple):
    """What training showed, (S,steps) each: right answers, the reward, and exact KL per action."""

    true: Tensor
    reward: Tensor
    kl: Tensor


def problems() -> tuple[Writing, Tensor, Tensor]:
    """Four terms of an arithmetic progression, then the end; prompts (P,2) and answers (P,T), filled up with ends."""
    task, _, _ = progressions(MODULUS + 1, LENGTH)
    prompt = torch.cartesian_prod(torch.arange(MODULUS), torch.arange(MODULUS))
    terms = (prompt[:, :1] + torch.arange(1, RIGHT + 1) * prompt[:, 1:]) % MODULUS
    return task, prompt, nn.functional.pad(terms, (0, LENGTH - RIGHT), value=END)


def scores(tokens: Tensor, answer: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Reward (...), a share of right terms and a bonus for length; whether the answer is right; the actions (...,T)."""
    ends = tokens == END
    ended = ends.int().cumsum(dim=-1)
    length = (ended == 0).sum(dim=-1)
    right = ((tokens == answer) & (ended == 0)).sum(dim=-1)
    reward = right / RIGHT + BONUS * length / LENGTH
    return reward, ((right == RIGHT) & (length == RIGHT)).float(), (ended == 0) | (ends & (ended == 1))


def fixed(beta: float) -> Callable[[], Callable[..., Any]]:
    """A penalty on the KL with a fixed weight."""

    def penalty(logp: Tensor, ref_logp: Tensor, entropy: Tensor, mask: Tensor, reward: Tensor, step: int) -> Any:
        return kl(logp, ref_logp, mask, beta=beta)

    return lambda: penalty


def single_head(width: int) -> nn.Module:
    """A plain critic of the same form as one of SAFE's two."""
    inner = width // 4
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, 1))


def imitated(seeds: int) -> Networks:
    """Networks that write about nine in ten answers right."""
    task, prompts, answers = problems()
    networks = Networks(task, range(seeds))
    imitate(networks, prompts, answers, steps=500, lr=1e-2)
    return networks


def train(learner: Learner, reference: Networks) -> Run:
    """Learn from the reward, all seeds at once; networks, critics and controllers of each are its own."""
    task, prompts, answers = problems()
    networks, everyone, critics = reference.copy(), reference.seeds, []
    for seed in everyone:
        torch.manual_seed(seed)
        critics.append(learner.critic(task.size))
    optimizer = Adam(networks, RATE)
    critic_optimizer = torch.optim.Adam([p for critic in critics for p in critic.parameters()], lr=RATE)
    credits, controls = [CriticBaseline() for _ in everyone], [learner.control() for _ in everyone]
    generators = [torch_generator(seed, "safe") for seed in everyone]
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    for step in range(STEPS):
        rows = torch.stack([torch.randint(len(prompts), (BATCH,), generator=g) for g in generators])
        prompt = prompts[rows]
        tokens = networks.write(prompt, generators)
        reward, true, mask = scores(tokens, answers[rows])
        states = task.observe(prompt, tokens)[:, :, :-1]
        with torch.no_grad():
            before, then = networks.read(prompt, tokens), reference.read(prompt, tokens)
            apart = (before.log_probs.exp() * (before.log_probs - then.log_probs)).sum(dim=-1)
            values = [_slow_values(critic, x) for critic, x in zip(critics, states, strict=True)]
        credit = [c(*fields)[0] for c, *fields in zip(credits, reward, values, mask, strict=True)]
        seen.append((true.mean(dim=1), reward.mean(dim=1), (apart * mask).sum(dim=(1, 2)) / mask.sum(dim=(1, 2))))
        for _ in range(UPDATES):
            now = networks.read(prompt, tokens)
            entropy = -(now.log_probs.exp() * now.log_probs).sum(dim=-1)
            loss = torch.zeros(())
            for s in range(len(everyone)):
                acted, gained = mask[s], credit[s]
                loss = loss + ppo_clip(now.logp[s], before.logp[s], gained.advantage, acted)[0]
                loss = loss + controls[s](now.logp[s], then.logp[s], entropy[s], acted, reward[s], step)[0]
                loss = loss + learner.value(critics[s](states[s]).squeeze(-1), values[s], gained.returns, acted)[0]
                loss = loss - 0.01 * token_mean(entropy[s], acted)
            critic_optimizer.zero_grad()
            optimizer.step(loss)
            critic_optimizer.step()
            for critic in critics:
                follow(critic)
    return Run(*(torch.stack(x, dim=1) for x in zip(*seen, strict=True)))


def _slow_values(critic: nn.Module, states: Tensor) -> Tensor:
    with slow_critics(critic):
        return critic(states).squeeze(-1)


def drawdown(curve: Tensor) -> Tensor:
    """(S,) largest fall of a curve (S,steps) from its best so far, by means of ten batches."""
    smooth = curve.unfold(1, 10, 10).mean(dim=-1)
    return (smooth.cummax(dim=1).values - smooth).amax(dim=1)


def believed(critic: Any, first: float, second: float) -> float:
    """What a critic makes of two heads that say ``first`` and ``second``."""
    made = critic(8)
    with torch.no_grad():
        for head, said in ((made.heads.first, first), (made.heads.second, second)):
            head[-1].weight.zero_()
            head[-1].bias.fill_(said)
        return float(made(torch.randn(1, 8)))


def slope_of(loss: Tensor, logits: Tensor) -> Tensor:
    """Gradient in the logits; 0 where the loss has none."""
    return torch.autograd.grad(loss, logits, retain_graph=True)[0] if loss.requires_grad else torch.zeros_like(logits)


class Choice:
    """A policy of one choice out of three: as much of a policy and of its rollouts as a preview reads."""

    def __init__(self) -> None:
        self.logits = torch.zeros(3, dtype=torch.float64)
        self.mask = torch.ones(3, 1, dtype=torch.bool)

    @property
    def logp(self) -> Tensor:
        """(3,1) of each choice."""
        return self.logits.log_softmax(dim=0).unsqueeze(1)

    def trainable(self) -> dict[str, Tensor]:
        """Its weights."""
        return {"logits": self.logits}

    def evaluate(self, rollouts: Choice) -> Choice:
        """Itself."""
        return rollouts


def previewed(preview: Any, size: float) -> tuple[float, float]:
    """KL of a trial step of this size, and of what is left of it."""
    policy = Choice()
    before, logp = {"logits": policy.logits.clone()}, policy.logp
    policy.logits[0] += size
    tried = (logp.exp() * (logp - policy.logp)).sum()
    preview(policy, before, policy, logp, limit=0.5)
    return float(tried), float((logp.exp() * (logp - policy.logp)).sum())


def controllers(method: Parts) -> Iterator[Check]:
    """Gate, threshold, penalty and gradient of the control, and of its sibling."""
    calm, peaked = (method.control().update({"kl": 5.0, "entropy": h, "reward": 0.5}) for h in (1.9, 0.9))
    yield equal("penalty at KL 5 in the first batch, entropy 1.9, and its slope", list(calm.values()), [2.5e-4, 0.01])
    yield equal("the same at entropy 0.9, times", [peaked[k] / calm[k] for k in calm], [2.0, 2.0])
    generator, control, seen = torch_generator(0, "safe thresholds"), method.control(), []
    for reward in (torch.randn(400, generator=generator).cumsum(dim=0) * 30).tolist():
        control.update({"kl": 0.0, "entropy": 1.0, "reward": reward})
        seen.append(control.threshold)
    yield equal("lowest and highest threshold under wild rewards", [min(seen), max(seen)], [0.1, 0.6])

    actions, mask = (
        torch.tensor([[0], [0], [1], [2]]),
        torch.ones(4, 1, dtype=torch.bool),
    )  # as often as they are likely
    logits = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64).log().requires_grad_()
    log_probs, reference = logits.log_softmax(dim=0), torch.tensor([0.1, 0.1, 0.8], dtype=torch.float64).log()
    divergence = (log_probs.exp() * (log_probs - reference)).sum()
    reward, entropy = torch.full((4,), 0.5), torch.ones(4, 1, dtype=torch.float64)
    exact = slope_of(divergence, logits)
    sampled = (log_probs[actions], reference[actions])
    control, sibling = method.control(threshold=0.05), method.sibling(threshold=0.05)
    for step in range(11):  # until the average of the KL is past the threshold
        control(*sampled, entropy, mask, reward, step)
    loss, told = control(*sampled, entropy, mask, reward, 11)
    first, second = (sibling(*sampled, mask, step)[0] for step in (0, 1))
    yield above("excess of the average KL over the threshold after 12 batches", told["kl_short"] - told["threshold"], 0)
    yield equal("gradient of the penalty, in that of the KL", slope_of(loss, logits), told["slope"] * exact, tol=1e-8)
    yield equal("value of the penalty", loss, told["penalty"])
    yield equal("the sibling's first batch", slope_of(first, logits), torch.zeros(3))
    by_hand = 2 * 0.1 * (divergence.detach() - 0.05) * exact
    yield equal("gradient of its second", slope_of(second, logits), by_hand, tol=1e-8)
    vague, rising = method.sibling().update({"kl": -1.0}), method.sibling()
    yield equal("the sibling's penalty on a policy vaguer than the reference", vague["penalty"], 0.0)
    told = [rising.update({"kl": 0.01 * batch - 0.6}) for batch in range(51)][-1]
    yield equal("and on KL that rises by 0.01 a batch below the threshold", told["penalty"], 5e-4)


def run(method: Parts, seeds: int) -> Iterator[Check]:
    """Critic, controllers and preview by hand; then a reward that can be hacked."""
    wanted = 1 - 0.3 * (math.log1p(math.exp(-1 / 0.3)) - math.log(2))
    yield equal("heads that say 1 and 1, and 1 and 2", [believed(method.critic, 1, x) for x in (1, 2)], [1.0, wanted])
    pairs = torch.randn(50, 2, generator=torch_generator(0, "safe heads")).tolist()
    inside = all(min(a, b) - 1e-6 <= believed(method.critic, a, b) <= (a + b) / 2 + 1e-6 for a, b in pairs)
    yield check("fifty pairs of heads: believed is", inside, expected="from their minimum to their mean", seen=inside)
    critic = method.critic(8)
    with torch.no_grad():
        for p in critic.parameters():
            p.add_(1)
    follow(critic)
    apart = torch.cat([(p - q).flatten() for p, q in zip(critic.parameters(), critic.buffers(), strict=True)]).detach()
    yield equal(
        "distance left of the slow copy, least and largest, of 1", [apart.min(), apart.max()], [0.95, 0.95], 1e-5
    )
    yield from controllers(method)
    tried, left = previewed(method.preview, 4.0)
    yield above("KL of a step that is too long", tried, 0.5)
    yield below("KL of what a preview leaves of it", left, 0.5)
    small = previewed(method.preview, 0.5)
    yield equal("KL that is left of a short step", small[1], small[0], tol=1e-12)

    start = imitated(seeds)
    ours = train(Learner(method.critic, huber_value, method.control), start)
    theirs = train(Learner(single_head, value, fixed(0.05)), start)
    curves = {"safe": ours.true, "ppo": theirs.true}
    falls = [drawdown(x.true) for x in (ours, theirs)]
    yield paired("largest fall of right answers", *falls, better="lower", curves=curves, axis="right answers by batch")
    last = [x.kl[:, -30:].mean(dim=1) for x in (ours, theirs)]
    yield paired("KL per action at the end", *last, better="lower")
    mean = [x.reward.mean(dim=1) for x in (ours, theirs)]
    relative = mean[0] / mean[1]
    yield paired("mean reward in training, in PPO's, less 2 %", relative, torch.ones(seeds), margin=-0.02, share=1.0)


class NumberOnly(EntropyGatedKL):
    """Adds the penalty as a number."""

    def __call__(self, *fields: Any) -> tuple[Tensor, dict[str, float]]:
        """The penalty without a gradient."""
        loss, told = super().__call__(*fields)
        return loss.detach(), told


class SiblingNumberOnly(AsymmetricKL):
    """Adds the penalty as a number."""

    def __call__(self, *fields: Any) -> tuple[Tensor, dict[str, float]]:
        """The penalty without a gradient."""
        loss, told = super().__call__(*fields)
        return loss.detach(), told


def unseen(policy: Any, before: Any, rollouts: Any, logp: Tensor, *, limit: float) -> dict[str, float]:
    """Shorten nothing."""
    return {}


CLAIM = Claim(
    system="safe",
    run=run,
    method=Parts(SoftMinCritic, EntropyGatedKL, AsymmetricKL, shorten),
    mutation=Mutation(
        "penalties are numbers without a gradient, the critic believes the larger value, and no step is shortened",
        Parts(partial(SoftMinCritic, temperature=-0.3), NumberOnly, SiblingNumberOnly, unseen),
    ),
    recipe="""
policy: {name: tiny_lm, width: 64, layers: 2, value_head: soft_min}
credit: critic_baseline
terms:
  - {name: huber_value, coef: 0.5, delta: 0.5, clip: 0.2}
  - {name: entropy_gated_kl, coef: 0.1, threshold: 0.3}
  - {name: entropy, beta: 0.01}
training: {steps: 400, max_step_kl: 0.5}
""",
    seeds=5,
)
