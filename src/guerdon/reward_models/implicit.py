"""Rewards of tokens without labels of steps: how much likelier a model of right answers finds them than a reference."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from guerdon.credit.grouping import group_mean, grouped, leave_one_out_mean, per_action, whiten
from guerdon.credit.process import steps_of
from guerdon.credit.step import gae
from guerdon.registry import register

PAPER = "Cui et al. 2025, arXiv 2502.01456"
Discount = Annotated[float, Field(ge=0, le=1)]


def implicit_rewards(prm_logp: Tensor, ref_logp: Tensor, mask: Tensor, *, beta: float = 0.05) -> Tensor:
    """Reward of each token: r_t = beta log(pi_prm(y_t) / pi_ref(y_t)).

    They add up to beta times the log ratio of the answer, which is the logit that it is right (``implicit_loss``).

    Args:
        prm_logp: (N,T) log-probability of each action under the reward model, a language model.
        ref_logp: (N,T) under the reference, from which the reward model began.
        mask: (N,T) true on actions; prompt and padding are off it and never read.
        beta: the release gives credit to the raw log ratio and has beta in the loss alone. Behind ``prime``, which
            whitens, that weighs the outcome less by this factor.

    Returns:
        (N,T), differentiable, 0 off the mask.

    Source: Cui et al. 2025, arXiv 2502.01456; Yuan et al. 2024, arXiv 2412.01981.
    """
    off = ~mask.bool()
    return beta * (prm_logp.masked_fill(off, 0.0) - ref_logp.masked_fill(off, 0.0))


def implicit_loss(
    prm_logp: Tensor, ref_logp: Tensor, mask: Tensor, right: Tensor, *, beta: float = 0.05, keep: Tensor | None = None
) -> Tensor:
    """Binary cross-entropy of sigmoid(beta sum_t log(pi_prm / pi_ref)) against the outcome.

    Args:
        prm_logp, ref_logp, mask: see ``implicit_rewards``.
        right: (N,) whether an answer is right, or a share in [0,1].
        beta: of the rewards.
        keep: (N,) answers that are learned from, such as those of ``mixed_groups``; all by default.

    Returns:
        The mean over the kept answers that have a token; 0 where there is none.

    Source: Cui et al. 2025, arXiv 2502.01456.
    """
    counted = mask.bool().any(dim=1)
    if keep is not None:
        counted = counted & keep.bool()
    within = mask.bool() & counted.unsqueeze(1)
    logit = implicit_rewards(prm_logp, ref_logp, within, beta=beta).sum(dim=1)
    target = right.to(logit.dtype).masked_fill(~counted, 0.0)
    loss = binary_cross_entropy_with_logits(logit, target, reduction="none")
    return torch.where(counted, loss, 0.0).sum() / counted.sum().clamp(min=1)


def mixed_groups(outcome: Tensor, group: Tensor, *, low: float = 0.2, high: float = 0.8) -> Tensor:
    """(N,) answers whose group is neither too hard nor too easy: low <= mean outcome <= high.

    Args:
        outcome: (N,) 1 for right and 0 for wrong.
        group: (N,) key of the trajectories that share a start.
        low, high: bounds of the share of right answers.
    """
    share = group_mean(outcome, group)
    slack = torch.finfo(share.dtype).eps
    return (share >= low - slack) & (share <= high + slack)


def to_largest_return(rewards: Tensor, mask: Tensor) -> Tensor:
    """Divide rewards (N,T) by the largest |sum of what is to come| at any action of the batch; their ratios stay."""
    kept = rewards.masked_fill(~mask.bool(), 0.0)
    to_come = kept.flip(1).cumsum(dim=1).flip(1).masked_fill(~mask.bool(), 0.0)
    largest = to_come.abs().amax() if to_come.numel() else to_come.new_zeros(())
    return kept / torch.where(largest > 0, largest, 1.0)


def above_other_answers(
    rewards: Tensor, group: Tensor, mask: Tensor, *, form: Literal["mean", "released"] = "mean"
) -> Tensor:
    """Rewards of tokens, less the mean reward of a token in the other answers of the group.

    mean: r_{i,t} - m_i,  m_i = (1 / (K-1)) sum_{j != i} mean_t r_{j,t}
    released: r_{i,t} K / (K-1) - (1 / (K-1)) sum_j mean_t r_{j,t}: the same on average over an answer, and by
    K / (K-1) further from that average

    Args:
        rewards: (N,T).
        group: (N,) key of the trajectories that share a start.
        mask: (N,T) true on actions; an answer without any is no other answer.
        form: which.

    Returns:
        (N,T), 0 off the mask and in a group of one.
    """
    mask = mask.bool()
    kept, length = rewards.masked_fill(~mask, 0.0), mask.sum(dim=1)
    mean = kept.sum(dim=1) / length.clamp(min=1)
    stats = grouped(mean, group, length > 0)
    size, others = stats.count(), leave_one_out_mean(mean, group, length > 0)
    above = kept - others.unsqueeze(1)
    if form == "released":
        above = above + (kept - mean.unsqueeze(1)) / (size - 1).clamp(min=1).unsqueeze(1)
    return above.masked_fill(~(mask & (size > 1).unsqueeze(1)), 0.0)


@register("credit", paper=PAPER, needs_group=True)
def prime(
    dense: Tensor,
    group: Tensor,
    mask: Tensor,
    components: Tensor,
    component_names: Sequence[str],
    component_weights: Tensor | None = None,
    *,
    outcome: str,
    accuracy: tuple[float, float] | None = (0.2, 0.8),
    process_weight: float = 1.0,
    outcome_weight: float = 1.0,
    process_gamma: Discount = 1.0,
    outcome_gamma: Discount = 1.0,
    form: Literal["mean", "released"] = "mean",
    scale: bool = False,
    eps: float = 1e-8,
    ddof: int = 1,
) -> tuple[Tensor, dict[str, float]]:
    """Rewards of tokens and the outcome, each against the other answers, summed to the end and whitened together.

    A_{i,t} = whiten(sum_{s >= t} gamma_p^{s-t} p_{i,s} + gamma_o^{L_i-t} (o_i - mean_{j != i} o_j))

    p: ``above_other_answers`` of what ``dense`` holds beside the outcome, which is what ``implicit_rewards`` gave.
    Where these are 0 this is ``rloo`` on the outcome, whitened. The statistics are those of all actions of the answers
    that count.

    Args:
        dense: (N,T) reward of each action.
        group: (N,) key of the trajectories that share a start.
        mask: (N,T) true on actions.
        components, component_names, component_weights: the rewards by name, to find the outcome.
        outcome: name of the reward that says whether an answer is right, by 1 and 0.
        accuracy: groups whose share of right answers is outside get no credit and enter no statistic; None for all.
            The reward model must be kept from them too: see ``mixed_groups`` and ``implicit_loss``.
        process_weight, outcome_weight: of the two sources.
        process_gamma, outcome_gamma: discounts per action.
        form: of the comparison with the other answers.
        scale: first divide the rewards of tokens by the largest of their returns in the batch.
        eps: added to the standard deviation.
        ddof: 1 for the sample standard deviation, 0 for the population one.

    Returns:
        (N,T) A_{i,t}, 0 off the mask, in a group of one and where it does not count; and the share of the answers that
        are ``kept``.

    Raises:
        RecipeError: when no reward is called like the outcome.

    Source: Cui et al. 2025, arXiv 2502.01456.
    """
    mask = mask.bool()
    steps = steps_of(dense, mask, components, component_names, component_weights, outcome=outcome)
    acted = mask.any(dim=1)
    kept = acted & (grouped(steps.outcome, group, acted).count() > 1)
    if accuracy is not None:
        kept = kept & mixed_groups(steps.outcome, group, low=accuracy[0], high=accuracy[1])
    counted = mask & kept.unsqueeze(1)
    rewards = to_largest_return(steps.score, counted) if scale else steps.score
    process = above_other_answers(rewards, group, counted, form=form)
    above = torch.where(kept, steps.outcome - leave_one_out_mean(steps.outcome, group, kept), 0.0)
    left = mask.flip(1).cumsum(dim=1).flip(1) - 1
    at_end = per_action(above, counted) * torch.tensor(outcome_gamma, dtype=dense.dtype) ** left.clamp(min=0)
    total = process_weight * _to_come(process, counted, process_gamma) + outcome_weight * at_end
    advantage = whiten(total, None, counted, eps=eps, ddof=ddof)
    return advantage, {"kept": kept.double().mean().item() if len(kept) else 0.0}


class ImplicitPRM:
    """A reward model of tokens that learns from outcomes while the policy does.

    It is a language model which begins as the reference; outcomes of the policy's own answers are all it needs, so
    that it follows the policy. ``frozen`` keeps it as it is, which an offline reward model is: it goes stale where the
    policy moves.

    Args:
        logp: gives (N,T) log-probabilities of the actions of a batch under the model, differentiable.
        parameters: what of it is learned.
        beta: of the rewards.
        lr: learning rate, by Adam.
        max_grad_norm: gradients are clipped to this norm; None for no bound.
        order: ``update_first`` scores a batch once the model has learned from it, ``score_first`` before (the
            release's "after" and "before" name the update's place likewise).
        frozen: never learn.

    Source: Cui et al. 2025, arXiv 2502.01456.
    """

    def __init__(
        self,
        logp: Callable[[Any], Tensor],
        parameters: Iterable[Tensor],
        *,
        beta: float = 0.05,
        lr: float = 1e-6,
        max_grad_norm: float | None = 10.0,
        order: Literal["update_first", "score_first"] = "update_first",
        frozen: bool = False,
    ) -> None:
        self.logp, self.parameters = logp, list(parameters)
        self.beta, self.max_grad_norm, self.order, self.frozen = beta, max_grad_norm, order, frozen
        self.optimizer = torch.optim.Adam(self.parameters, lr=lr)

    def __call__(
        self, batch: Any, ref_logp: Tensor, mask: Tensor, right: Tensor, keep: Tensor | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """Score a batch of answers, and learn from it.

        Args:
            batch: what ``logp`` is asked about.
            ref_logp: (N,T) log-probability of each action under the reference.
            mask: (N,T) true on actions.
            right: (N,) whether an answer is right.
            keep: (N,) answers that are learned from; all by default.

        Returns:
            (N,T) rewards, without gradient; the ``loss`` before learning, nan where nothing was learned.
        """
        rewards, stats = None, {"loss": float("nan")}
        if self.order == "score_first" or self.frozen:
            rewards = self._score(batch, ref_logp, mask)
        if not self.frozen:
            stats = {"loss": self._learn(batch, ref_logp, mask, right, keep)}
        return self._score(batch, ref_logp, mask) if rewards is None else rewards, stats

    @torch.no_grad()
    def _score(self, batch: Any, ref_logp: Tensor, mask: Tensor) -> Tensor:
        return implicit_rewards(self.logp(batch), ref_logp, mask, beta=self.beta)

    def _learn(self, batch: Any, ref_logp: Tensor, mask: Tensor, right: Tensor, keep: Tensor | None) -> float:
        with torch.enable_grad():
            loss = implicit_loss(self.logp(batch), ref_logp.detach(), mask, right, beta=self.beta, keep=keep)
            self.optimizer.zero_grad()
            loss.backward()
        if self.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        self.optimizer.step()
        return loss.item()


def _to_come(rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """(N,T) discounted sum from each action on."""
    nothing = torch.zeros_like(rewards)
    ended = torch.ones(len(rewards), dtype=torch.bool)
    return gae(rewards, nothing, mask, nothing.sum(dim=1), ended, gamma=gamma, lam=1.0, whiten=False).returns
