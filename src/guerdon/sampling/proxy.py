"""Plain samples with what the sampling policy would have said of them without its unlikeliest tokens."""

from __future__ import annotations

from guerdon.errors import RecipeError
from guerdon.objectives.low_probability import PROXY, filtered_proxy_logprob
from guerdon.registry import register
from guerdon.rollouts import Rollouts
from guerdon.sampling.sources import Draw, Source


@register("source", "lp_reg_proxy", paper="Huang et al. 2025, arXiv 2510.03222")
class FilteredProxy(Source):
    """The policy's plain samples, with the filtered log-probability of each action that objective ``lp_reg`` reads.

    See ``filtered_proxy_logprob``. It is taken when the batch is sampled, from the policy that samples, at the
    sampling temperature. That reads the batch once more, with the logits of the whole vocabulary.

    Args:
        kappa: share of the largest probability below which a token is dropped.
        threshold: probability below which it is dropped, instead.

    Source: Huang et al. 2025, arXiv 2510.03222 (Lp-Reg), and its code.
    """

    when = "sampling"
    replaces = True

    def __init__(self, *, kappa: float = 0.02, threshold: float | None = None) -> None:
        self.kappa, self.threshold = kappa, threshold

    def draw(self, draw: Draw) -> Rollouts:
        """The batch."""
        assert draw.starts is not None
        rollouts = draw.policy.sample(draw.starts, draw.sampling, seed=draw.seed)
        if rollouts.tokens is None:
            raise RecipeError(
                f"source 'lp_reg_proxy' needs a policy that writes, and '{type(draw.policy).__name__}' does not; use "
                "policy 'tiny_lm' or 'causal_lm'"
            )
        logits = draw.policy.evaluate(rollouts, logits=True).logits
        assert logits is not None
        options = {"kappa": self.kappa, "threshold": self.threshold}
        rollouts.payload[PROXY] = filtered_proxy_logprob(logits, rollouts.tokens, **options)
        return rollouts
