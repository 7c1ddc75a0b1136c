"""Rewards that a judge gives: by comparing the answers to one prompt with each other, or each with its reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from guerdon.registry import import_object, register
from guerdon.rewards.base import batched
from guerdon.rewards.bracket import TOPOLOGIES, Compare, Table

Topology = Literal["anchor", "round_robin", "single_elimination", "double_elimination", "swiss"]
# Given the prompts, first and second answers of m pairs: two scores for each pair, (m,2), or one for what each did and
# one for what each said, (m,2,2); from 0 to 10. A pair that it could not judge has None or NaN.
PairJudge = Callable[[Sequence[str], Sequence[str], Sequence[str]], Any]
# Given n texts, n references and the names of d dimensions: (n,d) scores, None or NaN where it could not judge.
RubricJudge = Callable[[Sequence[str], Sequence[str], Sequence[str]], Any]

HIGHEST = 10.0
CLINICAL = (
    "medical terminology",
    "instruments and anatomy",
    "specificity",
    "procedural workflow context",
    "accuracy of actions",
)


def _resolve(judge: Any) -> Any:
    return import_object(judge) if isinstance(judge, str) else judge


class Referee:
    """Asks a pairwise judge in both orders, counts the questions, and calls a draw where the judge fails.

    Both orders together cancel what a judge gives to the answer that it reads first. A score that is missing, not
    finite or outside 0 to 10 makes its question a draw, 5 to 5. The questions of one call are asked together.

    Args:
        judge: given m first and m second rows, returns their scores, as ``PairJudge`` does.
        both_orders: ask for (a, b) and (b, a), and add up.
        path_weight: weight of the first of two criteria, what was done, against the second, what was said.

    Attributes:
        comparisons, questions, failures: pairs compared, questions asked and questions without a usable answer so far.

    Source: Zhang et al. 2026, arXiv 2601.06487.
    """

    def __init__(
        self, judge: Callable[[Tensor, Tensor], Any], *, both_orders: bool = True, path_weight: float = 0.6
    ) -> None:
        self.judge, self.both_orders, self.path_weight = judge, both_orders, path_weight
        self.comparisons = self.questions = self.failures = 0

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """Compare rows ``first`` (m,) with rows ``second`` (m,); (m,2) their scores, added up over the orders."""
        self.comparisons += len(first)
        if not self.both_orders:
            return self._ask(first, second)
        there, back = self._ask(torch.cat([first, second]), torch.cat([second, first])).chunk(2)
        return there + back.flip(1)

    def _ask(self, first: Tensor, second: Tensor) -> Tensor:
        scores = self._read(self.judge(first, second), len(first))
        failed = ~((scores >= 0) & (scores <= HIGHEST)).all(dim=1, keepdim=True)
        self.questions += len(first)
        self.failures += int(failed.sum())
        return torch.where(failed, HIGHEST / 2, scores)

    def _read(self, result: Any, m: int) -> Tensor:
        if not isinstance(result, Tensor):
            known = [
                None if pair is None else torch.as_tensor(pair, dtype=torch.get_default_dtype()) for pair in result
            ]
            shape = next((pair.shape for pair in known if pair is not None), torch.Size([2]))
            result = torch.stack([torch.full(shape, math.nan) if pair is None else pair for pair in known])
        if result.shape not in ((m, 2), (m, 2, 2)):
            raise ValueError(f"the judge gave shape {tuple(result.shape)} for {m} pairs, want ({m}, 2) or ({m}, 2, 2)")
        scores = result.to(torch.get_default_dtype())
        if scores.ndim == 3:
            scores = self.path_weight * scores[..., 0] + (1 - self.path_weight) * scores[..., 1]
        return scores


class Standings(NamedTuple):
    """How a tournament ended.

    Attributes:
        reward: (N,) 1 for the best of a group, 0 for the last.
        comparisons: pairs that were compared.
    """

    reward: Tensor
    comparisons: int


def tournament(compare: Compare, group: Tensor, *, topology: Topology = "single_elimination") -> Standings:
    """Rank the members of every group by comparing pairs of them.

    reward = 1 - rank / (n - 1), rank 0 best

    ``anchor``: all against the first; n - 1 comparisons, ranked by score. ``round_robin``: all against all;
    n (n - 1) / 2, a win counts 1, a draw 1/2. In these two, equals share the best of their ranks, and the last has 0.
    ``single_elimination``: seeded by a round against the first; 2 n - 2. Losers of one round are ordered by their mean
    score. ``double_elimination``: the second loss is the last; 2 n - 2, or one more. ``swiss``: ceil(log2 n) rounds
    among equals without a rematch, then by the points of those one has met (Buchholz). In these three, exact equals
    share the mean of their ranks. For n no power of 2, the best seeds have no opponent in the first round; a bye counts
    1 in ``swiss``.

    Args:
        compare: given rows (m,) and rows (m,), returns their scores (m,2): the greater wins, equal ones draw. All
            comparisons of a round are asked for at once. A ``Referee`` is one.
        group: (N,) key; the first row of each group is its anchor.
        topology: who meets whom.

    Returns:
        Rewards in [0,1] and the number of comparisons; 0 for a group of one, and where every comparison was a draw.

    Raises:
        ValueError: for an unknown topology.

    Source: Zhang et al. 2026, arXiv 2601.06487. (In the release the Swiss ranking loses track of who is who.)
    """
    if topology not in TOPOLOGIES:
        raise ValueError(f"no topology '{topology}'; known: {', '.join(TOPOLOGIES)}")
    reward = torch.zeros(len(group))
    comparisons = 0
    order = torch.argsort(group.cpu(), stable=True)
    sizes = torch.unique_consecutive(group.cpu()[order], return_counts=True)[1]
    blocks = order.split(sizes.tolist())
    for size in sizes[sizes > 1].unique().tolist():
        rows = torch.stack([block for block in blocks if len(block) == size])
        table = Table(compare, rows)
        placed = TOPOLOGIES[topology](table)
        reward[rows] = torch.where(table.decided.unsqueeze(1), placed, 0.0)
        comparisons += table.comparisons
    return Standings(reward.to(group.device), comparisons)


@register("reward", "tournament", paper="Zhang et al. 2026, arXiv 2601.06487", needs_group=True)
@batched
class Tournament:
    """Place of each answer in a tournament among the answers to its prompt: see the function ``tournament``.

    A judge that scores answers one by one puts them all into a narrow band, in which its noise decides; asked which of
    two is better it sees the difference. The published method is this reward with credit ``rank_to_advantage``, groups
    of 16 and objective ``ppo_clip`` with upper clip 0.28. Held-out evaluation has one answer per prompt, so this reward
    is 0 there: watch another beside it, or use ``arena``.

    Args:
        judge: given the prompts, first answers and second answers of m pairs, returns two scores from 0 to 10 for each
            pair, or None where it failed: a function, or an import path to one (``package.module:function`` or
            ``file.py:function``). It may return two scores for each side, for what was done and what was said.
        topology: who meets whom.
        both_orders: ask twice with the answers exchanged, and add up.
        path_weight: weight of what was done against what was said.

    Source: Zhang et al. 2026, arXiv 2601.06487.
    """

    def __init__(
        self,
        *,
        judge: Annotated[PairJudge, BeforeValidator(_resolve)],
        topology: Topology = "single_elimination",
        both_orders: bool = True,
        path_weight: Annotated[float, Field(ge=0, le=1)] = 0.6,
    ) -> None:
        self.judge: PairJudge = _resolve(judge)
        self.topology: Topology = topology
        self.both_orders, self.path_weight = both_orders, path_weight

    def __call__(self, prompt: Sequence[str], text: Sequence[str], group: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Hold the tournaments of a batch.

        Args:
            prompt: N prompts.
            text: N answers.
            group: (N,) key of the answers to one prompt.

        Returns:
            (N,) places in [0,1], and the numbers of ``comparisons`` and of ``failures`` of the judge.
        """
        referee = text_referee(self.judge, prompt, text, both_orders=self.both_orders, path_weight=self.path_weight)
        standings = tournament(referee, group, topology=self.topology)
        stats = {"comparisons": float(standings.comparisons), "failures": float(referee.failures)}
        return standings.reward, stats


def text_referee(
    judge: PairJudge, prompt: Sequence[str], text: Sequence[str], *, both_orders: bool = True, path_weight: float = 0.6
) -> Referee:
    """A referee that compares rows of a batch of texts."""
    prompts, texts = list(prompt), list(text)

    def ask(first: Tensor, second: Tensor) -> Any:
        left, right = first.tolist(), second.tolist()
        return judge([prompts[i] for i in left], [texts[i] for i in left], [texts[i] for i in right])

    return Referee(ask, both_orders=both_orders, path_weight=path_weight)


def rubric_score(scores: Tensor, *, lowest: float = 1.0, highest: float = 5.0) -> Tensor:
    """Mean of the scores on several dimensions, brought to [0,1].

    (mean_d s_d - lowest) / (highest - lowest)

    Args:
        scores: (N,D).
        lowest, highest: ends of the scale.

    Returns:
        (N,); NaN where a dimension has no score on the scale.

    Source: Su et al. 2025, arXiv 2512.06581.
    """
    usable = ((scores >= lowest) & (scores <= highest)).all(dim=1)
    return torch.where(usable, (scores.mean(dim=1) - lowest) / (highest - lowest), math.nan)


@register("reward", "comparative_rubric_judge", paper="Su et al. 2025, arXiv 2512.06581")
@batched
class ComparativeRubricJudge:
    """How close a text comes to its reference on each of several dimensions, in the eyes of a judge.

    (mean of the scores 1 to 5 - 1) / 4

    The judge is asked for closeness to the reference, not for quality. The published reward for captions is the mean of
    this and a semantic similarity, each mapped by shaping ``percentile_logistic``. A text that the judge did not score
    on every dimension is a fault.

    Args:
        judge: given N texts, N references and the names of the dimensions, returns N rows of scores from 1 to 5: a
            function, or an import path to one.
        dimensions: what is compared; the source's five for surgical video by default.

    Source: Su et al. 2025, arXiv 2512.06581.
    """

    def __init__(
        self,
        *,
        judge: Annotated[RubricJudge, BeforeValidator(_resolve)],
        dimensions: Annotated[list[str], Field(min_length=1)] | None = None,
    ) -> None:
        self.judge: RubricJudge = _resolve(judge)
        self.dimensions = list(dimensions or CLINICAL)

    def __call__(self, text: Sequence[str], answer: Sequence[Any]) -> Tensor:
        """Score a batch.

        Args:
            text: N texts that the policy wrote.
            answer: N reference texts.

        Returns:
            (N,) in [0,1]; NaN where the judge gave no score on the scale.

        Raises:
            ValueError: when the judge does not give one row of scores per text.
        """
        rows = self.judge(list(text), [str(a) for a in answer], self.dimensions)
        wanted = len(self.dimensions)
        if not isinstance(rows, Tensor):
            known = [
                [math.nan] * wanted if row is None else [math.nan if s is None else s for s in row] for row in rows
            ]
            ragged = next((row for row in known if len(row) != wanted), None)
            if ragged is not None:
                raise ValueError(
                    f"the judge gave {len(ragged)} scores for a text, want one for each of {wanted} dimensions"
                )
            rows = torch.tensor(known, dtype=torch.get_default_dtype())
        if rows.shape != (len(text), wanted):
            raise ValueError(f"the judge gave shape {tuple(rows.shape)}, want {len(text)} rows of {wanted} scores")
        return rubric_score(rows.to(torch.get_default_dtype()))
