"""How good answers, and the models that wrote them, are: win rates, and tables of metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from guerdon.rewards.judge import PairJudge, text_referee


@dataclass(frozen=True)
class ArenaResult:
    """How answers did against their references.

    Attributes:
        outcome: (N,) 1 for a win, 1/2 for a tie, 0 for a loss.
        wins, ties, losses: how many there were.
        failures: questions to which the judge had no usable answer.
    """

    outcome: Tensor
    wins: int
    ties: int
    losses: int
    failures: int

    @property
    def win_rate(self) -> float:
        """Share of wins, a tie counting half."""
        return float(self.outcome.mean())


def arena(
    judge: PairJudge,
    prompts: Sequence[str],
    answers: Sequence[str],
    references: Sequence[str],
    *,
    both_orders: bool = True,
    path_weight: float = 0.6,
) -> ArenaResult:
    """Let each answer meet the reference answer to its prompt, before the judge that training uses.

    Args:
        judge: given the prompts, first answers and second answers of m pairs, returns two scores from 0 to 10 for each
            pair, or None where it failed.
        prompts, answers, references: N each.
        both_orders: ask twice with the two exchanged, and add up.
        path_weight: weight of what was done against what was said, for a judge that scores both.

    Returns:
        The outcome of every meeting, and their sums.

    Raises:
        ValueError: when the numbers of prompts, answers and references differ, or are 0.

    Source: Zhang et al. 2026, arXiv 2601.06487.
    """
    n = len(prompts)
    if not n or not n == len(answers) == len(references):
        raise ValueError(
            f"{n} prompts, {len(answers)} answers and {len(references)} references; wanted as many of each, at least 1"
        )
    texts = [*answers, *references]
    referee = text_referee(judge, [*prompts, *prompts], texts, both_orders=both_orders, path_weight=path_weight)
    ours, theirs = referee(torch.arange(n), torch.arange(n, 2 * n)).unbind(dim=1)
    wins, ties = ours > theirs, ours == theirs
    outcome = wins + 0.5 * ties
    return ArenaResult(outcome, int(wins.sum()), int(ties.sum()), n - int((wins | ties).sum()), referee.failures)


@dataclass(frozen=True)
class MetricTable:
    """Mean of a metric in every cell, and over the cells.

    Attributes:
        cells: mean of each (dataset, task, metric).
        macro: mean over the cells, each counting once however many rows it has.
    """

    cells: dict[tuple[str, str, str], float]
    macro: float


def metric_table(rows: Iterable[Mapping[str, Any]], metrics: Mapping[str, Callable[[Any, Any], float]]) -> MetricTable:
    """Score predictions, and average over each dataset and task before averaging over those.

    Args:
        rows: mappings with ``dataset``, ``task``, ``prediction``, ``gold`` and the name of a ``metric``.
        metrics: the functions (prediction, gold) behind the names.

    Raises:
        ValueError: when there is no row, or a row names an unknown metric.

    Source: Su et al. 2025, arXiv 2512.06581.
    """
    scores: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        name = row["metric"]
        if name not in metrics:
            raise ValueError(f"no metric '{name}'; known: {', '.join(metrics)}")
        scores.setdefault((row["dataset"], row["task"], name), []).append(metrics[name](row["prediction"], row["gold"]))
    if not scores:
        raise ValueError("no rows to score")
    cells = {cell: sum(values) / len(values) for cell, values in scores.items()}
    return MetricTable(cells, sum(cells.values()) / len(cells))
