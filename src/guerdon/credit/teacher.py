"""Credit of actions from what a teacher thinks of them."""

from __future__ import annotations

import torch
from torch import Tensor

from guerdon.objectives.aggregation import same_shape, token_mean
from guerdon.registry import register


def teacher_advantage(logp: Tensor, teacher_logp: Tensor, mask: Tensor, *, most: float | None = None) -> Tensor:
    """How much likelier a teacher would have taken each action: A_t = log pi_T(a_t | s_t) - log pi_S(a_t | s_t).

    On the student's own samples the expected policy gradient with this credit is that of -KL(pi_S || pi_T) in the
    states that were visited; how actions change which states come next is left out.

    Args:
        logp: (N,T) log-probability of each action under the student that sampled it.
        teacher_logp: (N,T) under the teacher, which reads the same tokens.
        mask: (N,T) true on actions; nothing off the mask is read.
        most: bound of the size of A; none by default.

    Returns:
        (N,T) A without gradient, 0 off the mask.

    Source: Beyond GRPO and On-Policy Distillation (summary). (The bound is ours.)
    """
    same_shape(mask, logp=logp, teacher_logp=teacher_logp)
    advantage = torch.where(mask.bool(), teacher_logp - logp, 0.0).detach()
    return advantage if most is None else advantage.clamp(-most, most)


@register("credit")
def on_policy_distill(
    old_logp: Tensor, ref_logp: Tensor, mask: Tensor, *, most: float | None = None
) -> tuple[Tensor, dict[str, float]]:
    """Credit by a teacher, without reward and without a group: A_t = log pi_T(a_t) - log pi_S(a_t).

    The teacher is the reference, the one other policy that a run has at hand. Use it with one update per batch.

    Args:
        old_logp: (N,T) log-probability of each action when it was sampled.
        ref_logp: (N,T) under the teacher.
        mask: (N,T) true on actions.
        most: see ``teacher_advantage``.

    Returns:
        (N,T) A, and the mean of -A as ``reverse_kl``, an estimate of KL(pi_S || pi_T) per action in nats.

    Source: Beyond GRPO and On-Policy Distillation (summary).
    """
    advantage = teacher_advantage(old_logp, ref_logp, mask, most=most)
    return advantage, {"reverse_kl": float(-token_mean(teacher_advantage(old_logp, ref_logp, mask), mask))}
