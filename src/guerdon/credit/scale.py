"""Credit scaled by how much its prompt deserves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from guerdon.credit.grouping import group_mean
from guerdon.registry import register
from guerdon.shaping.normalise import cells_of
from guerdon.shaping.uncertainty import Sign, UsualGap, dynamic_scale


@register("credit", "dynamic_scale", paper="Cheng et al. 2025, arXiv 2503.18991", aliases=("grpo_s",), needs_group=True)
class DynamicScale:
    """Credit times one factor per prompt: more where the answers lie far from the demonstration.

    It adjusts the credit before it: ``credit: [grpo, dynamic_scale]`` is the published GRPO-S.

    Args:
        coverage: name of the reward that says how well an answer covers the demonstration, from 0 to 1
            (``sentence_coverage``, weight 0); None leaves the hardness out.
        demonstration: what the demonstration itself earns: a number (1 under a 0/1 verifier), or the name of the
            reward that says it (weight 0); None leaves the gap out. The gap is this minus the outcome.
        category: key in the problems' metadata that names the category, for which usual gaps are kept apart.
        hardness_sign, gap_sign: see ``dynamic_scale``.
        tau: outliers of the gap lie beyond this many median absolute deviations.
        momentum: of the usual gap.

    Source: Cheng et al. 2025, arXiv 2503.18991. (Outlier rule and momentum are ours.)
    """

    def __init__(
        self,
        *,
        coverage: str | None = "sentence_coverage",
        demonstration: float | str | None = 1.0,
        category: str | None = None,
        hardness_sign: Sign = 1,
        gap_sign: Sign = 1,
        tau: Annotated[float, Field(gt=0)] = 3.0,
        momentum: Annotated[float, Field(ge=0, le=1)] = 0.9,
    ) -> None:
        if coverage is None and demonstration is None:
            raise ValueError("dynamic_scale: coverage and demonstration are both null, so nothing is left to scale by")
        self.coverage, self.demonstration, self.category = coverage, demonstration, category
        self.signs: dict[str, Sign] = {"hardness_sign": hardness_sign, "gap_sign": gap_sign}
        self.usual = UsualGap(tau=tau, momentum=momentum)

    def __call__(
        self,
        advantage: Tensor,
        reward: Tensor,
        group: Tensor,
        components: Tensor,
        component_names: Sequence[str],
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> tuple[Tensor, dict[str, float]]:
        """Scale the credit of a batch, then let it move the usual gaps.

        Args:
            advantage: (N,T) credit of each action.
            reward: (N,) outcome of each trajectory.
            group: (N,) key of the trajectories that share a prompt.
            components: (N,K) raw rewards.
            component_names: their names.
            metadata: what the task knows of the N problems.

        Returns:
            (N,T) scaled credit; and the smallest and the largest factor, ``scale_min`` and ``scale_max``.

        Raises:
            ValueError: when there is no reward of a name that was given.
        """
        columns = dict(zip(component_names, components.unbind(dim=1), strict=True))
        hardness = None if self.coverage is None else 1 - _column(columns, self.coverage, "coverage")
        gap = usual = None
        if self.demonstration is not None:
            best: Any = self.demonstration
            if isinstance(best, str):
                best = _column(columns, best, "demonstration")
            gap, usual = self.usual(best - reward, cells_of(len(reward), self.category, metadata))
        alpha = group_mean(dynamic_scale(hardness, gap, usual, **self.signs).to(advantage.dtype), group)
        return advantage * alpha.unsqueeze(1), {"scale_min": alpha.min().item(), "scale_max": alpha.max().item()}

    def state_dict(self) -> dict[str, Any]:
        """The usual gap of every category."""
        return self.usual.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.usual.load_state_dict(state)


def _column(columns: Mapping[str, Tensor], name: str, option: str) -> Tensor:
    if name not in columns:
        raise ValueError(
            f"dynamic_scale: no reward '{name}' among {', '.join(columns)}; list it under 'rewards' with weight 0, "
            f"or set {option}: null"
        )
    return columns[name].nan_to_num(0.0)
