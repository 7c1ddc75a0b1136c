"""Distillation where it helps: a teacher's distributions are learned on answers that were good."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from guerdon.objectives import aggregation
from guerdon.objectives.aggregation import TermAggregation, same_shape, token_mean
from guerdon.registry import register


def generalised_jsd(logits: Tensor, teacher_logits: Tensor, *, beta: float = 0.5) -> Tensor:
    """Generalised Jensen-Shannon divergence between a teacher T and a student S, in nats.

    JSD = beta KL(T || M) + (1 - beta) KL(S || M),  M = beta T + (1 - beta) S

    0 if and only if both agree. At the ends the formula is 0; there it stands for its limits divided by beta and by
    1 - beta: the forward KL(T || S) at 0, the reverse KL(S || T) at 1.

    Args:
        logits: (...,V) of the student, differentiable; any constant may be added.
        teacher_logits: (...,V) of the teacher; no gradient reaches them, and they may be minus infinity.
        beta: in [0,1].

    Returns:
        (...) one number for each distribution.

    Source: Agarwal et al. 2024, arXiv 2306.13649 (GKD).
    """
    student, teacher = logits.log_softmax(dim=-1), teacher_logits.detach().log_softmax(dim=-1)
    if beta == 0:
        return kl_between(teacher, student)
    if beta == 1:
        return kl_between(student, teacher)
    middle = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    return beta * kl_between(teacher, middle) + (1 - beta) * kl_between(student, middle)


def kl_between(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of log-probabilities (...,V): (...); symbols that p never takes add nothing."""
    p, taken = log_p.exp(), log_p > -torch.inf
    gap = torch.where(taken, log_p, 0.0) - torch.where(taken, log_q, 0.0)
    return (torch.where(taken, p, 0.0) * gap).sum(dim=-1)


def quality_gated_distill(
    logits: Tensor,
    teacher_logits: Tensor,
    reward: Tensor,
    mask: Tensor,
    *,
    threshold: float = 1.0,
    jsd_beta: float = 0.5,
    aggregate: TermAggregation = "seq_mean",
    max_length: int | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Divergence from a teacher at every token of the answers that were good enough, and of no others.

    loss = aggregate over { i : r_i >= threshold } of JSD_beta(teacher(. | s_t), student(. | s_t))

    On a flawed answer a teacher's advice is about how to go on from the flaw.

    Args:
        logits: (N,T,V) of the student at each token, differentiable.
        teacher_logits: (N,T,V) of the teacher on the same tokens, of the same vocabulary.
        reward: (N,) outcome; nan is not good enough.
        mask: (N,T) true on tokens; nothing off the mask is read, be it nan.
        threshold: tau.
        jsd_beta: see ``generalised_jsd``.
        aggregate, max_length: see ``aggregation.aggregate``; over the good answers, but ``sum_over_max_length`` divides
            by all N.

    Returns:
        The loss, 0 with zero gradient where no answer is good enough; the share ``kept``, and the mean ``divergence``
        of their tokens in nats.

    Raises:
        ValueError: when the shapes of student and teacher differ.

    Source: KEPO: Knowledge-Enhanced Preference Optimization, its code.
    """
    if logits.shape != teacher_logits.shape or logits.shape[:2] != mask.shape:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)}, teacher_logits {tuple(teacher_logits.shape)} and mask "
            f"{tuple(mask.shape)}; wanted (N,T,V) twice, of one vocabulary, and (N,T)"
        )
    good = reward >= threshold
    kept = mask.bool() & good.unsqueeze(1)
    off = ~kept.unsqueeze(-1)
    divergence = generalised_jsd(logits.masked_fill(off, 0.0), teacher_logits.masked_fill(off, 0.0), beta=jsd_beta)
    loss = aggregation.aggregate(divergence, kept, aggregate, max_length=max_length)
    return loss, _seen(divergence, kept, good)


@register("term")
def quality_gated_kl(
    ref_kl: Tensor,
    reward: Tensor,
    mask: Tensor,
    *,
    beta: Annotated[float, Field(ge=0)] = 1.0,
    threshold: float = 1.0,
    aggregate: TermAggregation = "seq_mean",
    max_length: int | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Distillation from the reference policy on the answers that were good enough: the gate, with a reverse KL.

    loss = beta aggregate over { i : r_i >= threshold } of KL(pi || pi_ref)(s_t)

    This is ``quality_gated_distill`` with jsd_beta 1 for the one teacher that a run has at hand, the policy as it began
    (its warm start, or the checkpoint it was loaded from).

    Args:
        ref_kl: (N,T) KL(pi || pi_ref) over the whole vocabulary, differentiable.
        reward: (N,) outcome; nan is not good enough.
        mask: (N,T) true on tokens; nothing off the mask is read.
        beta: weight.
        threshold: least reward of a good answer.
        aggregate, max_length: see ``quality_gated_distill``.

    Returns:
        The loss; the share ``kept`` and the mean ``divergence``.

    Source: KEPO: Knowledge-Enhanced Preference Optimization, its code.
    """
    same_shape(mask, ref_kl=ref_kl)
    good = reward >= threshold
    kept = mask.bool() & good.unsqueeze(1)
    loss = beta * aggregation.aggregate(ref_kl, kept, aggregate, max_length=max_length)
    return loss, _seen(ref_kl, kept, good)


def _seen(divergence: Tensor, kept: Tensor, good: Tensor) -> dict[str, float]:
    share = float(good.double().mean()) if len(good) else 0.0
    return {"kept": share, "divergence": float(token_mean(divergence.detach(), kept))}
