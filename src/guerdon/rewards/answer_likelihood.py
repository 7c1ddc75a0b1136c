"""Rewards without a verifier: how likely the policy finds the reference answer once it has reasoned.

Source ``reference_answer`` writes the reference behind what the policy wrote and marks its tokens ``external``; the
rewards, the credit and the term of this family read them there. One reading of each trajectory is all it costs: no
answer is sampled and none is compared.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from guerdon.credit.grouping import grouped
from guerdon.rewards.forms import Score, batched, reward

_PAPER = "Likelihood-Based Reward Designs for General LLM Reasoning, 2026"
Kind = Literal["log_prob", "avg_log_prob", "prob", "avg_prob"]


def likelihood_reward(logp: Tensor, valid: Tensor, *, kind: Kind = "log_prob") -> Tensor:
    """How likely an answer is, from the log-probabilities of its n tokens; differentiable.

    log_prob: l = sum_t log p_t;  avg_log_prob: l / n;  prob: e^l;  avg_prob: (1/n) sum_t p_t

    The probability falls exponentially with the length of an answer, and so do the differences between good and bad
    reasoning: on long answers nothing is learned from it. Its logarithm has no such scale.

    Args:
        logp: (N,A) log p_t of each token of each answer, in nats.
        valid: (N,A) true where there is a token; nothing else is read.
        kind: one of the above.

    Returns:
        (N,); 0 (log_prob, avg_log_prob, avg_prob) or 1 (prob) for an answer without tokens.

    Source: Likelihood-Based Reward Designs for General LLM Reasoning, 2026; ``prob`` is VeriFree's and ``avg_prob``
        RLPR's.
    """
    valid = valid.bool()
    log_p = logp.masked_fill(~valid, 0.0)
    count = valid.sum(dim=1).clamp(min=1)
    if kind == "avg_prob":
        return log_p.exp().masked_fill(~valid, 0.0).sum(dim=1) / count
    total = log_p.sum(dim=1)
    return total.exp() if kind == "prob" else total / count if kind == "avg_log_prob" else total


@reward(paper=_PAPER)
@batched
def answer_likelihood(
    old_logp: Tensor, mask: Tensor, external: Tensor | None = None, *, kind: Kind = "log_prob"
) -> list[Score]:
    """How likely the reference answer is after what the policy wrote.

    See ``likelihood_reward`` for the kinds. Pair it with credit ``rloo``, which does not divide by the deviation, and
    with term ``answer_term`` for the exact gradient.

    Args:
        old_logp: (N,T) log-probability of each token when it was written.
        mask: (N,T) true on actions and on tokens of the reference.
        external: (N,T) true on tokens of the reference, as source ``reference_answer`` marks them.
        kind: what of the probabilities of the answer's tokens is the reward.

    Returns:
        One score each; it does not apply where there is no reference, as in evaluation. Its detail holds the
        number of ``tokens`` and their mean log-probability, ``mean_logp``.

    Source: Likelihood-Based Reward Designs for General LLM Reasoning, 2026.
    """
    there = torch.zeros_like(mask).bool() if external is None else external.bool() & mask.bool()
    count = there.sum(dim=1)
    value = likelihood_reward(old_logp, there, kind=kind)
    mean = likelihood_reward(old_logp, there, kind="avg_log_prob")
    rows = zip(value.tolist(), mean.tolist(), count.tolist(), strict=True)
    return [Score(v, valid=n > 0, detail={"mean_logp": round(m, 4), "tokens": n} if n else None) for v, m, n in rows]


def log_mean_prob(logp: Tensor, group: Tensor) -> Tensor:
    """Logarithm of the mean probability of each group, log (1/G) sum_i e^l_i; differentiable.

    Over N samples of reasoning it estimates log E[pi(a*|p,z)] (log-prob-MC_N); from below, for a logarithm is concave.

    Args:
        logp: (N,) l, the log-probability of the whole answer after each reasoning.
        group: (N,) key of the trajectories that share a start.

    Returns:
        (N,), the same for all members of a group.
    """
    top = grouped(logp.detach(), group).extreme(largest=True)
    share = grouped((logp - top).exp(), group)
    return top + share.mean().log()


def perplexity(mean_logp: Tensor) -> Tensor:
    """Perplexity of reference answers, exp(-mean_i l_i / n_i), from their mean log-probabilities per token (N,)."""
    return (-mean_logp.mean()).exp()
