"""Which problems without labels to trust: those whose pass rate moves as that of the labelled ones does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor


def zscores(series: Tensor, *, eps: float = 1e-8) -> Tensor:
    """(n,T) each series minus its mean over time, divided by its unbiased deviation plus ``eps``.

    A constant series, and one of fewer than two numbers, becomes 0.
    """
    if series.shape[1] < 2 or not len(series):
        return torch.zeros_like(series)
    centred = series - series.mean(dim=1, keepdim=True)
    still = (series == series[:, :1]).all(dim=1, keepdim=True)
    return torch.where(still, 0.0, centred / (series.std(dim=1, keepdim=True) + eps))


def trapo_score(labelled: Tensor, unlabelled: Tensor) -> Tensor:
    """How much the history of each problem resembles those of the labelled ones.

    score(u) = mean_d cos(z_u, z_d),  z = ``zscores`` over time, so each cosine is Pearson's correlation

    Args:
        labelled: (D,T) pass rates of the reference problems.
        unlabelled: (U,T) pass rates of the others, against their majority answers.

    Returns:
        (U,) in [-1,1]; 0 for a constant history, or without a reference.

    Raises:
        ValueError: when the lengths differ.

    Source: Yang et al. 2025, arXiv 2512.13106.
    """
    if labelled.shape[1] != unlabelled.shape[1]:
        raise ValueError(
            f"histories have {labelled.shape[1]} and {unlabelled.shape[1]} numbers; cut both to the shorter length"
        )
    if not len(labelled):
        return unlabelled.new_zeros(len(unlabelled))
    ours, theirs = (torch.nn.functional.normalize(zscores(x.double()), dim=1) for x in (unlabelled, labelled))
    return (ours @ theirs.T).mean(dim=1)


def trapo_select(labelled: Tensor, unlabelled: Tensor, *, topk: float = 0.1, thres: float = 0.4) -> Tensor:
    """Trust the problems whose history resembles those of the labelled ones most, or enough.

    accepted(u) = score(u) among the largest max(1, floor(topk U)), or score(u) >= thres;  see ``trapo_score``

    The share is always accepted, even where nothing is reliable; ``topk: 0`` leaves the threshold alone. A z-score
    drops the level: a history that rises early and stays at a wrong answer looks like one that learns.

    Args:
        labelled: (D,T) pass rates of the reference problems.
        unlabelled: (U,T) pass rates of the others, against their majority answers.
        topk: share that is accepted at least, in [0,1]; at least one problem, unless it is 0.
        thres: score from which on a problem is accepted.

    Returns:
        (U,) bool.

    Raises:
        ValueError: when the lengths differ, or topk lies outside [0,1].

    Source: as ``trapo_score``.
    """
    if not 0 <= topk <= 1:
        raise ValueError(f"topk is {topk}, wanted a share in [0,1]")
    score = trapo_score(labelled, unlabelled)
    accepted = score >= thres
    if topk and len(score):
        best = max(1, int(topk * len(score)))
        accepted[score.argsort(descending=True, stable=True)[:best]] = True
    return accepted


class PassRateHistory:
    """Remembers how often each problem was solved, visit by visit, and says which ones without labels to trust.

    Args:
        warmup: visits of a problem before it is trusted or serves as a reference.
        topk, thres: see ``trapo_select``.
        refresh: what a trusted problem does to the reference: ``extend``: it joins those trusted before; ``replace``:
            where one that is trusted already is trusted again, all of them leave first, as in the release.

    Raises:
        ValueError: when warmup is below 2, for a history of one number has no direction.

    Source: as ``trapo_score``.
    """

    def __init__(
        self,
        *,
        warmup: int = 8,
        topk: float = 0.1,
        thres: float = 0.4,
        refresh: Literal["extend", "replace"] = "extend",
    ) -> None:
        if warmup < 2:
            raise ValueError(f"warmup is {warmup}, wanted 2 visits or more; 8 is the source's")
        self.warmup, self.topk, self.thres, self.refresh = warmup, topk, thres, refresh
        self.rates: dict[int, list[float]] = {}
        self.labelled: set[int] = set()
        self.trusted: set[int] = set()

    def append(self, task_id: Sequence[int], rate: Sequence[float], *, labelled: bool) -> None:
        """Take in how often problems were solved at this visit.

        Args:
            task_id: of the problems, each once.
            rate: share of right answers, by the label or by the majority; 0 where there is no majority.
            labelled: which of the two.
        """
        for key, value in zip(task_id, rate, strict=True):
            self.rates.setdefault(int(key), []).append(float(value))
        (self.labelled.update if labelled else self.labelled.difference_update)(int(key) for key in task_id)

    def compared(self, task_id: Sequence[int]) -> tuple[list[int], Tensor, Tensor]:
        """Those of some problems that are known long enough, their histories (U,T), and those of the reference (D,T).

        All are cut to the shortest of them.
        """
        ripe = [int(key) for key in task_id if len(self.rates.get(int(key), ())) >= self.warmup]
        known = sorted((self.labelled | self.trusted) & self.rates.keys())
        reference = [key for key in known if len(self.rates[key]) >= self.warmup]
        shortest = min((len(self.rates[key]) for key in (*ripe, *reference)), default=0)
        ours, theirs = (
            torch.tensor([self.rates[key][:shortest] for key in keys], dtype=torch.float64).reshape(len(keys), shortest)
            for keys in (ripe, reference)
        )
        return ripe, ours, theirs

    def select(self, task_id: Sequence[int]) -> set[int]:
        """The problems without labels that are trusted now, which join the reference.

        Args:
            task_id: of the problems of the batch that have no label, each once.
        """
        ripe, ours, theirs = self.compared(task_id)
        if not ripe or not len(theirs):
            return set()
        accepted = trapo_select(theirs, ours, topk=self.topk, thres=self.thres).tolist()
        chosen = {key for key, good in zip(ripe, accepted, strict=True) if good}
        if self.refresh == "replace" and chosen & self.trusted:
            self.trusted = set()
        self.trusted |= chosen
        return chosen

    def state_dict(self) -> dict[str, Any]:
        """All histories, and what is trusted."""
        return {
            "rates": {str(key): list(values) for key, values in self.rates.items()},
            "labelled": sorted(self.labelled),
            "trusted": sorted(self.trusted),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.rates = {int(key): [float(x) for x in values] for key, values in state["rates"].items()}
        self.labelled, self.trusted = set(state["labelled"]), set(state["trusted"])
