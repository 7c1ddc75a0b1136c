"""Actions that were unlikely and not noise, held up against repeated negative credit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from guerdon.errors import RecipeError
from guerdon.objectives import aggregation
from guerdon.objectives.aggregation import Aggregation, same_shape, token_mean
from guerdon.objectives.divergence import k3
from guerdon.objectives.policy import Objective, surrogate
from guerdon.registry import register

PROXY = "proxy_logp"  # where the batch's payload holds the proxy
FILTERED_LOGIT = -1e4  # of a symbol that the filter drops: far below any log-probability, and finite
MAX_PENALTY = 10.0


def filtered_proxy_logprob(
    logits: Tensor, tokens: Tensor, *, kappa: float = 0.02, threshold: float | None = None
) -> Tensor:
    """Log-probability of actions under the policy without its unlikeliest symbols, renormalised.

    proxy(v) = pi(v) / sum_{u kept} pi(u) if v is kept, else e^-10000;  v is kept if pi(v) >= kappa max_u pi(u)

    Args:
        logits: (...,V) of the policy that sampled.
        tokens: (...) the actions.
        kappa: share of the largest probability that a symbol needs to be kept.
        threshold: probability that it needs instead; the likeliest symbol is always kept.

    Returns:
        (...) without gradient. A kept symbol has gained, one that was dropped is near -10000.

    Raises:
        ValueError: when kappa or the threshold is no share.

    Source: Huang et al. 2025, arXiv 2510.03222 (Lp-Reg), and its code.
    """
    for name, value in (("kappa", kappa), ("threshold", threshold)):
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}, wanted a share between 0 and 1; the source's kappa is 0.02")
    log_probs = logits.detach().log_softmax(dim=-1)
    largest = log_probs.amax(dim=-1, keepdim=True)
    if threshold is None:
        floor = largest + (math.log(kappa) if kappa else -math.inf)
    else:
        floor = largest.clamp(max=math.log(threshold) if threshold else -math.inf)
    kept = log_probs.masked_fill(log_probs < floor, FILTERED_LOGIT).log_softmax(dim=-1)
    return kept.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


@register("objective", paper="Huang et al. 2025, arXiv 2510.03222")
def lp_reg(
    logp: Tensor,
    old_logp: Tensor,
    advantage: Tensor,
    mask: Tensor,
    payload: Mapping[str, Tensor],
    *,
    beta: Annotated[float, Field(ge=0)] = 1.0,
    share_neg: Annotated[float, Field(ge=0, le=1)] = 0.01,
    share_pos: Annotated[float, Field(ge=0, le=1)] = 0.0,
    clip_low: Annotated[float, Field(ge=0)] = 1.0,
    clip_high: Annotated[float, Field(ge=0)] = 9.0,
    aggregate: Aggregation = "token_mean",
    max_length: int | None = None,
) -> Objective:
    """Clipped policy gradient in which unlikely actions with negative credit are drawn towards a noise-free proxy.

    -rho A + beta k3(log pi, q), unclipped, for selected actions;  -min(rho A, clip(rho) A) for the others
    k3(lp, q) = e^(q - lp) - (q - lp) - 1, at most 10;  its slope in lp is 1 - e^(q - lp)

    Selected are, among the actions with negative credit, the share of lowest log pi, of these those with log pi < q,
    which the proxy has raised. A dropped symbol has q near -10000 and is left to its credit. Source
    ``lp_reg_proxy`` writes q, by the policy that sampled. Where the tail has no mass, the proxy is the
    policy and nothing changes. Which actions are lowest depends on the minibatch.

    Args:
        logp, old_logp, advantage, mask: (N,T), see ``surrogate``.
        payload: its ``proxy_logp`` (N,T) is q, see ``filtered_proxy_logprob``; no gradient reaches it.
        beta: weight of the penalty.
        share_neg: of the actions with negative credit that can be selected. The source has 0.01, and 0.005 for its
            largest model. A share of fewer than two actions selects none, as in the source's code.
        share_pos: the same of those with positive credit.
        clip_low, clip_high: distances from 1. The source's are so far that on-policy nothing is cut.
        aggregate, max_length: see ``surrogate``.

    Returns:
        The loss and its stats, with ``selected_fraction`` of all actions and ``penalty``, the mean of k3 over these.

    Raises:
        RecipeError: when the payload holds no proxy.

    Source: Huang et al. 2025, arXiv 2510.03222 (Lp-Reg), and its code.
    """
    if PROXY not in payload.keys():  # noqa: SIM118  # a TensorDict iterates over rows
        raise RecipeError(
            f"objective 'lp_reg' needs the log-probability of each action under the filtered policy, which this "
            f"batch's payload lacks ('{PROXY}'); list source 'lp_reg_proxy' under sampling.sources"
        )
    proxy = payload[PROXY].detach()
    same_shape(mask, logp=logp, old_logp=old_logp, advantage=advantage, proxy_logp=proxy)
    mask = mask.bool()
    known = logp.detach().masked_fill(~mask, 0.0)
    credit = advantage.detach().masked_fill(~mask, 0.0)
    candidates = _lowest(known, mask & (credit < 0), share_neg) | _lowest(known, mask & (credit > 0), share_pos)
    selected = candidates & (known < proxy)
    bounds = {"hi_pos": 1 + clip_high, "lo_neg": 1 - clip_low}
    reduced = {"aggregate": aggregate, "max_length": max_length}
    loss, stats = surrogate(logp, old_logp, credit, mask, (~selected).to(known), **bounds, **reduced)
    free, _ = surrogate(logp, old_logp, credit, mask, selected.to(known), **reduced)
    raised = k3(torch.where(selected, logp, 0.0), torch.where(selected, proxy, 0.0)).clamp(-MAX_PENALTY, MAX_PENALTY)
    useful = (credit != 0).any(dim=1)
    penalty = aggregation.aggregate(raised, mask, aggregate, max_length=max_length, useful=useful)
    stats["selected_fraction"] = token_mean(selected.to(known), mask).item()
    stats["penalty"] = token_mean(raised.detach(), selected).item()
    return loss + free + beta * penalty, stats


def _lowest(logp: Tensor, among: Tensor, share: float) -> Tensor:
    """The share of lowest log-probability of some actions; none where that is fewer than two."""
    count = int(int(among.sum()) * share + 1e-9)
    out = torch.zeros_like(among)
    if count < 2:
        return out
    ranked = logp.masked_fill(~among, math.inf).flatten()
    return out.flatten().index_fill_(0, ranked.topk(count, largest=False).indices, True).reshape(among.shape)
