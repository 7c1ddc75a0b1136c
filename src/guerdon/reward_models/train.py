"""Reward models learned from demonstrations or comparisons."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class ImitatedPolicy(Protocol):
    """What inverse reinforcement learning needs of a policy."""

    def sample(self) -> Any:
        """Draw a batch of answers from the policy as it is now, in the form that the reward model reads."""
        ...

    def improve(self, reward: nn.Module) -> None:
        """Take a step towards the reward, held back by the divergence from the reference."""
        ...


def irl_loss(demonstrated: Tensor, sampled: Tensor, *, beta: float = 1.0) -> Tensor:
    """Maximum-likelihood inverse RL: raise the reward of demonstrations above that of the policy's own answers.

    -(mean r(demonstrated) - mean r(sampled)) / beta

    It has no bound of its own: what stops it is the policy, which follows the reward until both have the same mean.

    Args:
        demonstrated: rewards of demonstrations, any number of them.
        sampled: rewards of answers of the current policy, any number of them.
        beta: temperature of the policy that the demonstrations are taken to come from.

    Returns:
        The loss.

    Source: Cheng et al. 2025, arXiv 2503.18991.
    """
    return -(demonstrated.mean() - sampled.mean()) / beta


def ml_irl(
    reward: nn.Module,
    demonstrations: Callable[[], Any],
    policy: ImitatedPolicy,
    *,
    rounds: int = 200,
    reward_steps: int = 1,
    lr: float = 0.05,
    beta: float = 1.0,
    weight_decay: float = 0.0,
) -> list[float]:
    """Learn the reward under which the demonstrations are what an optimal, entropy-seeking policy would do.

    max_r min_pi E_demo[r] / beta - E_pi[r] / beta + KL(pi || pi_ref)

    In turns: the reward climbs ``irl_loss``, the policy improves on the reward. At the end r is beta log(pi_demo /
    pi_ref) up to a constant of each prompt.

    Args:
        reward: model that turns a batch into rewards (n,); it is trained in place.
        demonstrations: draws a batch of demonstrations.
        policy: draws answers, and improves on the reward; see ``FinitePolicy``.
        rounds: turns taken.
        reward_steps: updates of the reward in a turn.
        lr: learning rate of the reward, by Adam.
        beta: temperature.
        weight_decay: shrinks the reward towards 0, which bounds it where demonstrations never do something.

    Returns:
        The gap mean r(demonstrated) - mean r(sampled) before each turn; it goes to 0.

    Source: Cheng et al. 2025, arXiv 2503.18991.
    """
    optimizer = torch.optim.AdamW(reward.parameters(), lr=lr, weight_decay=weight_decay)
    gaps = []
    for _ in range(rounds):
        for step in range(reward_steps):
            demonstrated, sampled = reward(demonstrations()), reward(policy.sample())
            loss = irl_loss(demonstrated, sampled, beta=beta)
            if step == 0:
                gaps.append(float(demonstrated.detach().mean() - sampled.detach().mean()))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        policy.improve(reward)
    return gaps


def category_rewards(
    make: Callable[[], nn.Module],
    demonstrations: Mapping[str, Callable[[], Any]],
    policies: Mapping[str, ImitatedPolicy],
    **options: Any,
) -> nn.ModuleDict:
    """Learn one reward for every category from its own demonstrations, so that none blurs another.

    Args:
        make: builds an untrained reward model.
        demonstrations: for every category, what draws a batch of its demonstrations.
        policies: for every category, the policy that answers its prompts.
        options: of ``ml_irl``.

    Returns:
        The reward model of each category.

    Raises:
        ValueError: when a category has no policy.

    Source: Cheng et al. 2025, arXiv 2503.18991.
    """
    missing = [category for category in demonstrations if category not in policies]
    if missing:
        raise ValueError(f"category '{missing[0]}' has demonstrations but no policy; known: {', '.join(policies)}")
    models = {category: make() for category in demonstrations}
    for category, model in models.items():
        ml_irl(model, demonstrations[category], policies[category], **options)
    return nn.ModuleDict(models)


class FinitePolicy:
    """A policy over finitely many answers, which improves by moving towards the best answer to the reward.

    log pi <- (1 - rate) log pi + rate (log pi_ref + r / beta), normalised

    Args:
        reference: (A,) probabilities of the reference, and of the policy at the start.
        batch: answers per sample.
        generator: source of randomness.
        rate: size of the step; 1 goes all the way to the optimum pi_ref exp(r / beta).
        beta: temperature.
    """

    def __init__(
        self,
        reference: Tensor,
        *,
        batch: int = 64,
        generator: torch.Generator | None = None,
        rate: float = 1.0,
        beta: float = 1.0,
    ) -> None:
        self.reference = reference.log()
        self.logits = self.reference.clone()
        self.batch, self.generator, self.rate, self.beta = batch, generator, rate, beta

    def sample(self) -> Tensor:
        """(batch,) numbers of answers."""
        return torch.multinomial(self.logits.softmax(dim=0), self.batch, replacement=True, generator=self.generator)

    @torch.no_grad()
    def improve(self, reward: nn.Module) -> None:
        """Move towards the optimum of the reward of all answers."""
        best = self.reference + reward(torch.arange(len(self.logits))) / self.beta
        self.logits = ((1 - self.rate) * self.logits + self.rate * best).log_softmax(dim=0)
