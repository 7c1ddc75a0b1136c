"""Rewards that a judge gives: by comparing the answers to one prompt with each other, or each with its reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import BeforeValidator, Field, SkipValidation
from torch import Tensor

from guerdon.registry import register
from guerdon.rewards.base import batched
from guerdon.rewards.bracket import TOPOLOGIES, Compare, Table
from guerdon.rewards.judges.adapters import AskedPairs, AskedRubric
from guerdon.rewards.judges.base import DESCRIBED, Counting, Judge, resolve_judge_or_function
from guerdon.rewards.judges.questions import QUALITY, JudgeError

Topology = Literal["anchor", "round_robin", "single_elimination", "double_elimination", "swiss"]
# Given the prompts, first and second answers of m pairs: two scores for each pair, (m,2), or one for what each did and
# one for what each said, (m,2,2); from 0 to 10. A pair that it could not judge has None or NaN.
PairJudge = Callable[[Sequence[str], Sequence[str], Sequence[str]], Any]
# Given n texts, n references and the names of d dimensions: (n,d) scores, None or NaN where it could not judge.
RubricJudge = Callable[[Sequence[str], Sequence[str], Sequence[str]], Any]

PairOption = Annotated[PairJudge | Judge, SkipValidation, BeforeValidator(resolve_judge_or_function), DESCRIBED]
RubricOption = Annotated[RubricJudge | Judge, SkipValidation, BeforeValidator(resolve_judge_or_function), DESCRIBED]

HIGHEST = 10.0
CLINICAL = (
    "medical terminology",
    "instruments and anatomy",
    "specificity",
    "procedural workflow context",
    "accuracy of actions",
)


def pair_judge(judge: Any, criteria: str = QUALITY) -> PairJudge:
    """A function of pairs, from such a function, a judge, or what a recipe calls either."""
    judge = resolve_judge_or_function(judge)
    return AskedPairs(judge, criteria) if isinstance(judge, Judge) else judge


class Referee:
    """Asks a pairwise judge in both orders, counts the questions, and calls a draw where the judge fails.

    Both orders together cancel what a judge gives to the answer that it reads first. A score that is missing, not
    finite or outside 0 to 10 makes its question a draw, 5 to 5, or its pair NaN. The questions of one call are asked
    together.

    Args:
        judge: given m first and m second rows, returns their scores, as ``PairJudge`` does.
        both_orders: ask for (a, b) and (b, a), and add up.
        path_weight: weight of the first of two criteria, what was done, against the second, what was said.
        draws: whether a question without a usable answer is a draw; else the scores of its pair are NaN.

    Attributes:
        comparisons, questions, failures: pairs compared, questions asked and questions without a usable answer so far.
        disagreements: pairs in which either order has another winner.
        heard: rows in some question with a usable answer.

    Source: Zhang et al. 2026, arXiv 2601.06487.
    """

    def __init__(
        self,
        judge: Callable[[Tensor, Tensor], Any],
        *,
        both_orders: bool = True,
        path_weight: float = 0.6,
        draws: bool = True,
    ) -> None:
        self.judge, self.both_orders, self.path_weight, self.draws = judge, both_orders, path_weight, draws
        self.comparisons = self.questions = self.failures = self.disagreements = 0
        self.heard: set[int] = set()

    def stats(self) -> dict[str, float]:
        """``comparisons``, ``failures``, and ``order_disagreement``: the share of pairs whose orders disagree."""
        stats = {"comparisons": float(self.comparisons), "failures": float(self.failures)}
        if self.both_orders and self.comparisons:
            stats["order_disagreement"] = self.disagreements / self.comparisons
        return stats

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """Compare rows ``first`` (m,) with rows ``second`` (m,); (m,2) their scores, added up over the orders."""
        self.comparisons += len(first)
        if not self.both_orders:
            return self._ask(first, second)
        there, back = self._ask(torch.cat([first, second]), torch.cat([second, first])).chunk(2)
        back = back.flip(1)
        self.disagreements += int(((there[:, 0] - there[:, 1]) * (back[:, 0] - back[:, 1]) < 0).sum())
        return there + back

    def _ask(self, first: Tensor, second: Tensor) -> Tensor:
        scores = self._read(self.judge(first, second), len(first))
        usable = ((scores >= 0) & (scores <= HIGHEST)).all(dim=1)
        self.questions += len(first)
        self.failures += int((~usable).sum())
        self.heard.update(torch.cat([first[usable], second[usable]]).tolist())
        return torch.where(usable.unsqueeze(1), scores, HIGHEST / 2 if self.draws else math.nan)

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
    is 0 there: watch another beside it, or use ``arena``. A question that the judge fails to answer is a draw; an
    answer that it never judged is a fault.

    Args:
        judge: who compares: ``{backend: openai | local | scripted, ...}``; or a function that, given the prompts, first
            answers and second answers of m pairs, returns two scores from 0 to 10 for each pair, or None where it
            failed; or an import path to either (``package.module:function`` or ``file.py:function``). A function may
            return two scores for each side, for what was done and what was said.
        criteria: what makes an answer good; told to a judge, not to a function.
        topology: who meets whom.
        both_orders: ask twice with the answers exchanged, and add up.
        path_weight: weight of what was done against what was said.

    Source: Zhang et al. 2026, arXiv 2601.06487.
    """

    def __init__(
        self,
        *,
        judge: PairOption,
        criteria: str = QUALITY,
        topology: Topology = "single_elimination",
        both_orders: bool = True,
        path_weight: Annotated[float, Field(ge=0, le=1)] = 0.6,
    ) -> None:
        self.judge = pair_judge(judge, criteria)
        self.topology: Topology = topology
        self.both_orders, self.path_weight = both_orders, path_weight

    def __call__(
        self, prompt: Sequence[str], text: Sequence[str], group: Tensor
    ) -> tuple[list[float | JudgeError], dict[str, float]]:
        """Hold the tournaments of a batch.

        Args:
            prompt: N prompts.
            text: N answers.
            group: (N,) key of the answers to one prompt.

        Returns:
            N places in [0,1], errors in the place of faults; and the numbers of ``comparisons`` and of ``failures`` of
            the judge, the share of pairs with ``order_disagreement``, and what else the judge counts.
        """
        referee = text_referee(self.judge, prompt, text, both_orders=self.both_orders, path_weight=self.path_weight)
        counting = Counting(self.judge)
        standings = tournament(referee, group, topology=self.topology)
        company = torch.unique(group, return_inverse=True, return_counts=True)
        compared = company[2][company[1]] > 1
        places: list[float | JudgeError] = list(standings.reward.tolist())
        for row in compared.nonzero().flatten().tolist():
            if row not in referee.heard:
                places[row] = never_judged(self.judge)
        return places, {**counting.stats(), **referee.stats()}


def never_judged(judge: Any) -> JudgeError:
    """The error of an answer about which a judge of pairs had nothing usable to say."""
    problem = getattr(judge, "problem", "") or "the judge gave no usable scores"
    return JudgeError(f"no comparison of this answer has a verdict; the last failure: {problem}")


def text_referee(
    judge: PairJudge,
    prompt: Sequence[str],
    text: Sequence[str],
    *,
    both_orders: bool = True,
    path_weight: float = 0.6,
    draws: bool = True,
) -> Referee:
    """A referee that compares rows of a batch of texts."""
    prompts, texts = list(prompt), list(text)

    def ask(first: Tensor, second: Tensor) -> Any:
        left, right = first.tolist(), second.tolist()
        return judge([prompts[i] for i in left], [texts[i] for i in left], [texts[i] for i in right])

    return Referee(ask, both_orders=both_orders, path_weight=path_weight, draws=draws)


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
        judge: who scores: ``{backend: openai | local | scripted, ...}``; or a function that, given N texts, N
            references and the names of the dimensions, returns N rows of scores from 1 to 5; or an import path to one
            of the two.
        dimensions: what is compared; the source's five for surgical video by default.

    Source: Su et al. 2025, arXiv 2512.06581.
    """

    def __init__(
        self,
        *,
        judge: RubricOption,
        dimensions: Annotated[list[str], Field(min_length=1)] | None = None,
    ) -> None:
        judge = resolve_judge_or_function(judge)
        self.judge: RubricJudge = AskedRubric(judge) if isinstance(judge, Judge) else judge
        self.dimensions = list(dimensions or CLINICAL)

    def __call__(self, text: Sequence[str], answer: Sequence[Any]) -> Tensor | tuple[Tensor, dict[str, float]]:
        """Score a batch.

        Args:
            text: N texts that the policy wrote.
            answer: N reference texts.

        Returns:
            (N,) in [0,1]; NaN where the judge gave no score on the scale. Beside it what the judge did, if it counts.

        Raises:
            ValueError: when the judge does not give one row of scores per text.
        """
        counting = Counting(self.judge)
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
        scores, stats = rubric_score(rows.to(torch.get_default_dtype())), counting.stats()
        return (scores, stats) if stats else scores
