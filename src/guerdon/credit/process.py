"""Credit from scores of the steps of an answer, each compared with the others before it is added up.

Scores of steps reach a credit in ``dense``: a reward with one number per action gives each step's score at the step's
last action and 0 elsewhere, and one with a number per turn is placed at the turn's last action. A step therefore ends
at every action whose score is not 0, and reaches back to the end of the one before; actions behind the last end belong
to no step. A score of exactly 0 ends no step. Rewards with one number per answer stand at its last action in
``dense`` too; the one that is named as ``outcome`` is taken out again and treated apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from guerdon.credit.grouping import group_mean, grouped, leave_one_out_mean, per_action, whiten
from guerdon.errors import RecipeError, nearest
from guerdon.registry import register
from guerdon.rollouts import at_last_action

# What rounding leaves of an outcome that is taken out of ``dense`` is no score.
ROUNDING = 1e-5

Positive = Annotated[float, Field(gt=0)]


class Steps(NamedTuple):
    """The steps of N answers.

    Attributes:
        score: (N,T) at the last action of each step, 0 elsewhere.
        ends: (N,T) true at the last action of each step.
        outcome: (N,) of each answer; 0 where none is named.
    """

    score: Tensor
    ends: Tensor
    outcome: Tensor

    def of_action(self, x: Tensor) -> Tensor:
        """Hand every action what stands at the end of its step, (N,T); 0 to actions of no step."""
        width = x.shape[1]
        place = torch.arange(width, device=x.device)
        following = torch.where(self.ends, place, width).flip(1).cummin(dim=1).values.flip(1)
        return torch.nn.functional.pad(x, (0, 1)).gather(1, following)

    def actions(self, mask: Tensor) -> Tensor:
        """(N,T) number of actions of each step at its end, 0 elsewhere."""
        count = mask.cumsum(dim=1)
        until = torch.where(self.ends, count, 0).cummax(dim=1).values
        before = torch.nn.functional.pad(until, (1, -1))
        return torch.where(self.ends, count - before, 0)


def steps_of(
    dense: Tensor,
    mask: Tensor,
    components: Tensor | None = None,
    component_names: Sequence[str] | None = None,
    component_weights: Tensor | None = None,
    *,
    outcome: str | None = None,
) -> Steps:
    """Tell the scores of steps from the outcome.

    Args:
        dense: (N,T) reward of each action, of which all but the outcome are scores of steps.
        mask: (N,T) true on actions.
        components: (N,K) rewards of each answer; nan counts as 0.
        component_names: their names.
        component_weights: (K,) weights with which they entered ``dense``; 1 by default.
        outcome: name of the component that is the outcome; without one, all of ``dense`` are scores of steps.

    Raises:
        RecipeError: when no component has that name.
    """
    mask = mask.bool()
    score, result = dense.masked_fill(~mask, 0.0), dense.new_zeros(len(dense))
    if outcome is not None:
        names = list(component_names or ())
        if components is None or outcome not in names:
            raise RecipeError(f"outcome: no reward is called '{outcome}'{nearest(outcome, names)}")
        result = components[:, names.index(outcome)].nan_to_num(0.0).to(dense.dtype)
        weight = 1.0 if component_weights is None else component_weights[names.index(outcome)].to(dense.dtype)
        score = score - at_last_action(result * weight, mask)
        score = torch.where(score.abs() < ROUNDING * (1 + result.abs().unsqueeze(1)), 0.0, score)
    return Steps(score, score != 0, result)


def min_form_rewards(score: Tensor, ends: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Rewards of steps whose sum from any step on is nearly the least score that is still to come.

    p*_k = w_k p_k,  w = softmax(-p / temperature) over the steps of an answer

    Up to the worst step the sum is about its score, behind it about 0. So no number of good steps makes up for a bad
    one, and the return stays within the range of the scores.

    Args:
        score: (N,T) p at the ends of steps; nothing else is read.
        ends: (N,T) true there.
        temperature: the lower, the closer to the least score; the higher, the closer to the mean.

    Returns:
        (N,T) p*, 0 elsewhere.

    Source: Cheng et al. 2025, arXiv 2504.15275.
    """
    cost = torch.where(ends, -score / temperature, float("-inf"))
    most = cost.amax(dim=1, keepdim=True)
    weight = (cost - torch.where(most.isfinite(), most, 0.0)).exp()
    return torch.where(ends, score * weight, 0.0) / weight.sum(dim=1, keepdim=True).clamp(min=1e-30)


def process_advantage(
    rewards: Tensor, steps: Steps, group: Tensor, mask: Tensor, *, baseline: Literal["token", "step"] = "token"
) -> Tensor:
    """Reward to come from each step on, less what the other answers of the group earn on average.

    A_t = sum_{l >= k(t)} (r_l - b_i n_l),  b_i = sum_{j != i} R_j / sum_{j != i} L_j,  R_j = sum_l r_{j,l}

    Args:
        rewards: (N,T) r at the ends of steps.
        steps: of the answers.
        group: (N,) key of the trajectories that share a start.
        mask: (N,T) true on actions.
        baseline: ``token``: n_l is the number of actions of the step and L_j that of the answer's steps together.
            ``step``: n_l is 1 and L_j the number of steps; it favours fewer and longer steps.

    Returns:
        (N,T), the same for all actions of a step; 0 off the mask, behind the last step and in a group of one.
    """
    mask = mask.bool()
    size = (steps.actions(mask) if baseline == "token" else steps.ends).to(rewards.dtype)
    total, length = rewards.sum(dim=1), size.sum(dim=1)
    others = leave_one_out_mean(length, group)
    per_unit = leave_one_out_mean(total, group) / torch.where(others > 0, others, 1.0)
    above = rewards - per_unit.unsqueeze(1) * size
    several = grouped(total, group).count() > 1
    return (above.flip(1).cumsum(dim=1).flip(1) * several.unsqueeze(1)).masked_fill(~mask, 0.0)


@register("credit", paper="Cheng et al. 2025, arXiv 2504.15275", needs_group=True)
def min_form(
    dense: Tensor,
    group: Tensor,
    mask: Tensor,
    components: Tensor | None = None,
    component_names: Sequence[str] | None = None,
    component_weights: Tensor | None = None,
    *,
    temperature: Positive = 0.1,
    outcome: str | None = None,
    outcome_weight: float = 1.0,
    baseline: Literal["token", "step"] = "token",
    least_steps: Annotated[int, Field(ge=0)] = 0,
    skip_ends: bool = False,
) -> tuple[Tensor, dict[str, float]]:
    """An answer is worth what its worst step is, so that good steps can't be farmed.

    A_t = sum_{l >= k(t)} (p*_l - b_i n_l) + outcome_weight (v_i - mean_{j != i} v_j)

    p*: ``min_form_rewards`` of the steps' scores; b_i n_l: ``process_advantage``; v: the outcome. Without an outcome
    this is the method's mode PRM, with no scores of steps VR, with both PRM+VR, for which outcomes of a tenth of the
    prompts are enough. The published method has groups of 4 and a KL of 1e-3, here the term ``kl``; in the release the
    KL enters the reward.

    Args:
        dense: (N,T) reward of each action: the score of each step, in [-1,1], at its last action.
        group: (N,) key of the trajectories that share a start.
        mask: (N,T) true on actions.
        components, component_names, component_weights: the rewards by name, to find the outcome.
        temperature: of the softmin.
        outcome: name of the reward that says whether an answer is right.
        outcome_weight: of the outcome.
        baseline: see ``process_advantage``.
        least_steps: an answer of fewer steps counts as one step of score -1. A model of steps likes an answer that
            derives nothing ("thanks!"), and 0 for no step is more than a hard step earns.
        skip_ends: give the last action of each step no process credit, as in the source, where it is a separator. Here
            it may be a word, so that this is off by default.

    Returns:
        (N,T) A_t, 0 off the mask; and the means over answers of the number of ``steps`` and of the ``worst`` score.

    Raises:
        RecipeError: when no reward is called like the outcome.

    Source: Cheng et al. 2025, arXiv 2504.15275.
    """
    mask = mask.bool()
    steps = steps_of(dense, mask, components, component_names, component_weights, outcome=outcome)
    steps = _lengthened(steps, mask, least_steps)
    rewards = min_form_rewards(steps.score, steps.ends, temperature=temperature)
    process = process_advantage(rewards, steps, group, mask, baseline=baseline)
    if skip_ends:
        process = process.masked_fill(steps.ends, 0.0)
    above = outcome_weight * (steps.outcome - leave_one_out_mean(steps.outcome, group))
    worst = torch.where(steps.ends, steps.score, float("inf")).amin(dim=1)
    scored = steps.ends.any(dim=1)
    mean = (torch.where(scored, worst, 0.0).sum() / scored.sum().clamp(min=1)).item()
    return process + per_action(above, mask), {"steps": _mean(steps.ends.sum(dim=1)), "worst": mean}


@register("credit", paper="He et al. 2025, arXiv 2507.23317", needs_group=True)
def thought_level(
    dense: Tensor,
    group: Tensor,
    mask: Tensor,
    components: Tensor,
    component_names: Sequence[str],
    component_weights: Tensor | None = None,
    *,
    outcome: str,
    alpha: Positive = 1.0,
    adaptive: bool = True,
    threshold: float = 0.0,
    eps: float = 1e-4,
    ddof: int = 1,
) -> tuple[Tensor, dict[str, float]]:
    """Outcome against the group, less on the wrong thoughts of right answers, and only on what led to wrong ones.

    right answer: A_t = v_i, and v_i - r_c in steps that are marked;  r_c = alpha (share of right answers in the group)
    wrong answer: A_t = v_i in steps that are marked and behind the last step, 0 in the others
    v_i = (o_i - mean_g o) / (std_g o + eps)

    A reader of the answers, who need not be able to solve them, labels steps: -1 marks those of a right answer that
    were wrong and were taken back later, and those of a wrong answer that lead to it; 1 stands at all others. Steps
    that follow one another with the same label are one thought, and because the credit of a step depends on its own
    label alone, splitting a thought changes nothing. Labels are not normalised. While hardly anybody in the group is
    right, trying what is wrong costs next to nothing.

    Args:
        dense: (N,T) reward of each action: the label of each step at its last action. Only the sign counts.
        group: (N,) key of the trajectories that share a start.
        mask: (N,T) true on actions.
        components, component_names, component_weights: the rewards by name, to find the outcome.
        outcome: name of the reward that says whether an answer is right.
        alpha: the source says that it is positive; the value is ours.
        adaptive: whether r_c follows the share of right answers; else it is alpha.
        threshold: an answer is right if its outcome is above this; it serves for 0 and 1 as for -1 and 1.
        eps: added to the standard deviation.
        ddof: 1 for the sample standard deviation, 0 for the population one.

    Returns:
        (N,T) A_t, 0 off the mask, and throughout in a group that is all wrong; and the shares of the actions of right
        and of wrong answers that are ``marked_right`` and ``marked_wrong``.

    Raises:
        RecipeError: when no reward is called like the outcome.

    Source: He et al. 2025, arXiv 2507.23317.
    """
    mask = mask.bool()
    steps = steps_of(dense, mask, components, component_names, component_weights, outcome=outcome)
    right = steps.outcome > threshold
    relative = whiten(steps.outcome, group, eps=eps, ddof=ddof)
    penalty = alpha * group_mean(right.to(relative.dtype), group) if adaptive else torch.full_like(relative, alpha)
    label = steps.of_action(steps.score)
    marked = label < 0
    in_right = relative.unsqueeze(1) - penalty.unsqueeze(1) * marked
    in_wrong = torch.where(label > 0, 0.0, relative.unsqueeze(1))
    advantage = torch.where(right.unsqueeze(1), in_right, in_wrong).masked_fill(~mask, 0.0)
    told = {}
    for name, rows in (("marked_right", right), ("marked_wrong", ~right)):
        told[name] = ((marked & mask)[rows].sum() / mask[rows].sum().clamp(min=1)).item()
    return advantage, told


def _lengthened(steps: Steps, mask: Tensor, least: int) -> Steps:
    """The steps, where an answer of fewer than ``least`` is one step of score -1."""
    short = per_action((steps.ends.sum(dim=1) < least).to(steps.score.dtype), mask)
    whole = at_last_action(short.amax(dim=1), mask)
    ends = torch.where(short > 0, whole > 0, steps.ends)
    return Steps(torch.where(short > 0, -whole, steps.score), ends, steps.outcome)


def _mean(x: Tensor) -> float:
    return x.double().mean().item() if len(x) else 0.0
