"""From a teacher to a student in two steps: first on what the teacher writes, then on what the student writes."""

from __future__ import annotations

from torch import Tensor

from guerdon.credit.teacher import teacher_advantage
from guerdon.objectives import aggregation
from guerdon.objectives.aggregation import TermAggregation, token_mean
from guerdon.objectives.gated_distill import generalised_jsd
from guerdon.objectives.policy import reinforce


def forward_kl_distill(
    logits: Tensor,
    teacher_logits: Tensor,
    mask: Tensor,
    *,
    aggregate: TermAggregation = "seq_mean",
    max_length: int | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Forward KL on a teacher's rollouts: loss = aggregate_t of KL(pi_T(. | s_t) || pi_S(. | s_t)).

    It warms a student up, so that it comes to states in which the teacher knows what to say. Where a teacher's
    distributions are not at hand, imitate its tokens instead (term ``guided_thought``).

    Args:
        logits: (N,T,V) of the student on the teacher's tokens, differentiable.
        teacher_logits: (N,T,V) of the teacher, of the same vocabulary and template.
        mask: (N,T) true on tokens of the answer; prompt and padding are false, and may hold nan.
        aggregate, max_length: see ``aggregation.aggregate``; the mean over an answer's tokens by default.

    Returns:
        The loss, and the mean ``forward_kl`` per token in nats.

    Raises:
        ValueError: when the shapes differ.

    Source: Beyond GRPO and On-Policy Distillation (summary).
    """
    if logits.shape != teacher_logits.shape or logits.shape[:2] != mask.shape:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)}, teacher_logits {tuple(teacher_logits.shape)} and mask "
            f"{tuple(mask.shape)}; wanted (N,T,V) twice, of one vocabulary, and (N,T)"
        )
    mask = mask.bool()
    off = ~mask.unsqueeze(-1)
    divergence = generalised_jsd(logits.masked_fill(off, 0.0), teacher_logits.masked_fill(off, 0.0), beta=0.0)
    loss = aggregation.aggregate(divergence, mask, aggregate, max_length=max_length)
    return loss, {"forward_kl": float(token_mean(divergence.detach(), mask))}


def opd(
    logp: Tensor,
    teacher_logp: Tensor,
    mask: Tensor,
    *,
    most: float | None = None,
    aggregate: TermAggregation = "token_mean",
    max_length: int | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """On-policy distillation: policy gradient on a student's rollouts with a teacher's credit for every token.

    loss = -aggregate_t of A_t log pi_S(a_t | s_t),  A_t = sg(log pi_T(a_t | s_t) - log pi_S(a_t | s_t))

    Its expected gradient is that of the reverse KL(pi_S || pi_T) in the states visited; no group, no baseline. Without
    a warm-up the student comes to states in which the teacher's opinion is arbitrary.

    Args:
        logp: (N,T) log-probability of the student's own actions, differentiable; it has not moved since it sampled.
        teacher_logp: (N,T) under the teacher; no gradient reaches it.
        mask: (N,T) true on actions; nothing off the mask is read.
        most: see ``teacher_advantage``.
        aggregate, max_length: see ``aggregation.aggregate``.

    Returns:
        The loss, and the mean estimate ``reverse_kl`` per action in nats.

    Source: Beyond GRPO and On-Policy Distillation (summary).
    """
    advantage = teacher_advantage(logp, teacher_logp, mask, most=most)
    loss = reinforce(logp, advantage, mask, aggregate=aggregate, max_length=max_length)
    gap = teacher_advantage(logp, teacher_logp, mask)
    return loss, {"reverse_kl": float(-token_mean(gap, mask))}
