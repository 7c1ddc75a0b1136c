"""Rewards of problems without labels count only where these are trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from guerdon.credit.grouping import first_rows, group_mean
from guerdon.curriculum.trust import PassRateHistory
from guerdon.errors import RecipeError, nearest
from guerdon.registry import register
from guerdon.seeding import derive


@register("shaping", "trapo", output="components", paper="Yang et al. 2025, arXiv 2512.13106")
class Trapo:
    """Learn from true rewards where there are labels, and from the vote on those problems that learn as these do.

    the vote counts on problem u where its history of pass rates moves as the labelled ones' do; see ``trapo_select``

    A problem has a label where the reward ``labelled`` applies: list it with ``when: {labelled: [true]}``, say. The
    vote is set to NaN on labelled problems and on those that are not trusted; with ``weighted_sum`` after it, the
    members of such a group are equal and earn no credit. Problems must come back, or they have no history; under
    epochs over a fixed set a visit is an epoch.

    Args:
        labelled: name of the true reward, which does not apply (NaN) where there is no label.
        vote: name of the reward by majority, such as ``majority_vote`` with ties excluded: a tie is a rate of 0.
        warmup: visits of a problem before its vote may count.
        topk, thres: share of the batch's unlabelled problems that is always trusted, and the score that suffices.
        refresh: see ``PassRateHistory``.
        audit: share of the labelled problems, chosen by their ``task_id``, that are treated as if they had no label, so
            that the log can say how often a trusted vote is right. 0 by default, as in the source.

    Source: Yang et al. 2025, arXiv 2512.13106. (There, warm-up
    and histories go by epochs; histories of unequal length are cut to the shortest of those that are compared.)
    """

    def __init__(
        self,
        *,
        labelled: str,
        vote: str,
        warmup: Annotated[int, Field(ge=2)] = 8,
        topk: Annotated[float, Field(ge=0, le=1)] = 0.1,
        thres: float = 0.4,
        refresh: Literal["extend", "replace"] = "extend",
        audit: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ) -> None:
        if labelled == vote:
            raise RecipeError(f"trapo: labelled and vote are both '{vote}'; name two rewards")
        self.labelled, self.vote, self.audit = labelled, vote, audit
        self.history = PassRateHistory(warmup=warmup, topk=topk, thres=thres, refresh=refresh)

    def __call__(
        self, components: Tensor, component_names: Sequence[str], task_id: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Let the vote count where it is trusted, and remember how this batch went.

        Args:
            components: (N,K) raw rewards.
            component_names: names of the columns.
            task_id: (N,) identity of the problems.

        Returns:
            (N,K) components with both columns changed; and ``accepted``, the share of the unlabelled problems that are
            trusted, and ``reference``, how many histories they were compared with; under ``audit``, where any answer
            is paid by a trusted vote, ``audit_accuracy``, the mean true reward of such answers.

        Raises:
            RecipeError: when a name is not that of a reward.
        """
        names = list(component_names)
        for name in (self.labelled, self.vote):
            if name not in names:
                raise RecipeError(f"trapo: no reward is called '{name}'{nearest(name, names)}")
        true, vote = (components[:, names.index(name)] for name in (self.labelled, self.vote))
        keys = task_id.tolist()
        audited = torch.tensor([self._audited(key) for key in keys], dtype=torch.bool, device=true.device)
        known = ~true.isnan() & ~audited
        solved, agreed = _rates(true, known, task_id), _rates(vote, ~known & ~vote.isnan(), task_id)
        stats = {"reference": float(len(self.history.compared(())[2]))}
        chosen = self.history.select(list(agreed))
        stats["accepted"] = len(chosen) / max(len(agreed), 1)
        trusted = torch.tensor([key in chosen for key in keys], dtype=torch.bool, device=true.device) & ~known
        paid = trusted & audited & (vote > 0) & ~true.isnan()
        if bool(paid.any()):
            stats["audit_accuracy"] = float(true[paid].double().mean())
        self.history.append(list(solved), list(solved.values()), labelled=True)
        self.history.append(list(agreed), list(agreed.values()), labelled=False)
        changed = components.clone()
        changed[:, names.index(self.labelled)] = torch.where(known, true, torch.nan)
        changed[:, names.index(self.vote)] = torch.where(trusted, vote, torch.nan)
        return changed, stats

    def _audited(self, key: int) -> bool:
        return derive(key, "audit") / 2**63 < self.audit

    def state_dict(self) -> dict[str, Any]:
        """All histories."""
        return self.history.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.history.load_state_dict(state)


def _rates(reward: Tensor, valid: Tensor, task_id: Tensor) -> dict[int, float]:
    """Mean reward of each problem over its valid rows."""
    rows = valid.nonzero().flatten()
    keys, first = first_rows(task_id[rows])
    mean = group_mean(reward[rows].double(), task_id[rows])
    return dict(zip(keys.tolist(), mean[first].tolist(), strict=True))
