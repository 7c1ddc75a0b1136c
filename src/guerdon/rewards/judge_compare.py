"""Rewards from a judge that compares answers to one prompt: two at a time, or all of them at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from guerdon.registry import register
from guerdon.rewards.base import Score, batched
from guerdon.rewards.judge import PairOption, never_judged, pair_judge, text_referee
from guerdon.rewards.judge_single import Results, scored
from guerdon.rewards.judges.base import Counting, JudgeOption, ask_counted, resolve_judge
from guerdon.rewards.judges.questions import QUALITY, Answer, JudgeError, Question, Ranking, Verdict

Ties = Literal["half", "first", "fault"]
ALONE = Score(math.nan, valid=False, detail="nothing to compare with")


@register("reward", "judge_pairwise", paper="Zheng et al. 2023, arXiv 2306.05685")
@batched
class JudgePairwise:
    """Share of comparisons that an answer wins: against the others to its prompt, or against the reference answer.

    Every pair is asked about in both orders, and the two verdicts are added up, for judges favour what they read first:
    where the orders name different winners the pair is a tie. ``order_disagreement`` in the metrics is the share of
    such pairs. A pair that lacks a verdict in either order does not count; an answer without a pair that counts is a
    fault. In a group of one there is nothing to compare, and the reward does not apply.

    Args:
        judge: who compares: ``{backend: openai | local | scripted, ...}``; a function as for ``tournament``; or an
            import path to either.
        against: the other answers of the ``group``, or the problem's ``reference`` answer.
        opponents: how many others each answer meets on average, at most; all by default, which takes n - 1 questions
            per answer, those who come next in the batch if set, which takes two for each.
        both_orders: ask twice with the answers exchanged.
        ties: a tie counts ``half``; or as a win of the one that comes ``first`` in the batch (of the answer, against
            the reference); or not at all, as if the judge had failed (``fault``).
        criteria: what makes an answer good; told to a judge, not to a function.

    Source: Zheng et al. 2023, arXiv 2306.05685.
    """

    def __init__(
        self,
        *,
        judge: PairOption,
        against: Literal["group", "reference"] = "group",
        opponents: Annotated[int, Field(ge=1)] | None = None,
        both_orders: bool = True,
        ties: Ties = "half",
        criteria: str = QUALITY,
    ) -> None:
        self.judge = pair_judge(judge, criteria)
        self.against, self.opponents, self.both_orders = against, opponents, both_orders
        self.ties: Ties = ties

    def __call__(
        self, prompt: Sequence[str], text: Sequence[str], group: Tensor, answer: Sequence[Any] | None = None
    ) -> Results:
        """Compare the answers of a batch.

        Args:
            prompt, text: N prompts and answers.
            group: (N,) key of the answers to one prompt.
            answer: N reference answers.

        Returns:
            N shares in [0,1], errors in the place of faults; and the numbers of ``comparisons`` and ``failures``,
            ``order_disagreement``, ``ties``, and what else the judge counts.
        """
        n = len(text)
        if self.against == "reference" and (answer is None or any(a is None for a in answer)):
            raise ValueError("against: reference, but some problems have no reference answer; set against: group")
        references = [str(a) for a in answer] if self.against == "reference" and answer is not None else []
        pairs = [(row, n + row) for row in range(n)] if references else meetings(group, self.opponents)
        counting = Counting(self.judge)
        referee = text_referee(
            self.judge, [*prompt, *prompt], [*text, *references], both_orders=self.both_orders, draws=False
        )
        first, second = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(dim=1)
        ours, theirs = referee(first, second).unbind(dim=1) if pairs else (torch.zeros(0), torch.zeros(0))
        won = outcomes(ours, theirs, self.ties)
        shares = mean_outcome(won, first, second, n)
        met = {row for pair in pairs for row in pair}
        results: list[Score | JudgeError] = []
        for row, share in enumerate(shares.tolist()):
            if row not in met:
                results.append(ALONE)
            else:
                results.append(never_judged(self.judge) if math.isnan(share) else Score(share))
        return results, {**counting.stats(), **referee.stats(), "ties": float((ours == theirs).sum())}


def meetings(group: Tensor, opponents: int | None = None) -> list[tuple[int, int]]:
    """Pairs of rows of one group: all of them, or each row with the ``opponents`` that follow it, around the corner."""
    pairs: list[tuple[int, int]] = []
    for key in torch.unique(group):
        rows = (group == key).nonzero().flatten().tolist()
        if opponents is None or opponents >= len(rows) - 1:
            pairs += combinations(rows, 2)
            continue
        circle = {(i, (i + k) % len(rows)) for i in range(len(rows)) for k in range(1, opponents + 1)}
        pairs += sorted({(rows[min(pair)], rows[max(pair)]) for pair in circle})
    return pairs


def outcomes(ours: Tensor, theirs: Tensor, ties: Ties = "half") -> Tensor:
    """1 where the first of a pair has the greater score, 0 where the second has, a tie by its rule; NaN stays NaN.

    Args:
        ours, theirs: (m,) scores of the first and second of each pair.
        ties: 1/2 (``half``), 1 (``first``) or NaN (``fault``).
    """
    tie = {"half": 0.5, "first": 1.0, "fault": math.nan}[ties]
    won = torch.where(ours == theirs, tie, (ours > theirs).to(ours))
    return torch.where(ours.isnan() | theirs.isnan(), math.nan, won)


def mean_outcome(won: Tensor, first: Tensor, second: Tensor, n: int) -> Tensor:
    """(N,) mean outcome of the pairs in which each row stands, 1 - outcome for the second; NaN pairs don't count.

    NaN where no pair counts.
    """
    counts = ~won.isnan()
    rows = torch.cat([first[counts], second[counts]])
    shares = torch.cat([won[counts], 1 - won[counts]])
    total = torch.zeros(max(n, int(rows.max()) + 1 if len(rows) else 0)).index_add(0, rows, shares.float())
    return (total / torch.bincount(rows, minlength=len(total)))[:n]


@register("reward", "judge_ranking", paper="Sun et al. 2023, arXiv 2304.09542", needs_group=True)
@batched
class JudgeRanking:
    """Place of an answer among those to its prompt, by a judge that reads them all at once and ranks them.

    1 - rank / (n - 1), mean over the orders in which they are listed

    One question per group and order, so the cheapest comparison there is; with many long answers also the least exact.
    The answers are listed as they come and backwards, for judges favour certain places; ``order_disagreement`` in the
    metrics is the share of pairs that the two rankings order differently. A ranking that is no permutation is no
    verdict, and a group that lacks one in either order is a fault. In a group of one the reward does not apply.

    Args:
        judge: who ranks: ``{backend: openai | local | scripted, ...}``, or an import path to a judge.
        both_orders: ask twice, the second time with the list turned round.
        criteria: what makes an answer good.
        fallback: value of the answers of a group whose ranking could not be read; a fault if null.

    Source: Sun et al. 2023, arXiv 2304.09542.
    """

    def __init__(
        self,
        *,
        judge: JudgeOption,
        both_orders: bool = True,
        criteria: str = QUALITY,
        fallback: float | None = None,
    ) -> None:
        self.judge = resolve_judge(judge)
        self.both_orders, self.criteria, self.fallback = both_orders, criteria, fallback

    def __call__(self, prompt: Sequence[str], text: Sequence[str], group: Tensor) -> Results:
        """Rank the answers of a batch; groups of at most 26.

        Args:
            prompt, text: N prompts and answers.
            group: (N,) key of the answers to one prompt.

        Returns:
            N places in [0,1], errors in the place of faults; ``order_disagreement``, and what the judge did.
        """
        prompts, texts = list(prompt), list(text)
        results: list[Score | JudgeError] = [ALONE] * len(texts)
        lists: list[list[int]] = []
        questions: list[Question] = []
        for key in torch.unique(group):
            rows = (group == key).nonzero().flatten().tolist()
            if len(rows) == 1:
                continue
            try:
                asked = [
                    Ranking(prompt=prompts[rows[0]], answers=tuple(texts[row] for row in order), criteria=self.criteria)
                    for order in ((rows, rows[::-1]) if self.both_orders else (rows,))
                ]
            except JudgeError as error:
                for row in rows:
                    results[row] = error
                continue
            lists.append(rows)
            questions += asked
        answers, stats = ask_counted(self.judge, questions)
        orders = 2 if self.both_orders else 1
        disagreements = []
        for i, rows in enumerate(lists):
            verdict, disagreement = merged(answers[orders * i : orders * (i + 1)])
            disagreements += [] if disagreement is None else [disagreement]
            for place, row in enumerate(rows):
                results[row] = scored(verdict, self.fallback, lambda values, place=place: values[place])
        if disagreements:
            stats["order_disagreement"] = math.fsum(disagreements) / len(disagreements)
        return results, stats


def merged(answers: Sequence[Answer]) -> tuple[Answer, float | None]:
    """One ranking from that of a list and, if there is one, that of the list turned round.

    Returns:
        The mean places, or the first error; and the share of pairs that the two order differently.
    """
    failed = next((answer for answer in answers if isinstance(answer, JudgeError)), None)
    if failed is not None:
        return failed, None
    there, *back = [answer for answer in answers if isinstance(answer, Verdict)]
    if not back:
        return there, None
    turned = back[0].values[::-1]
    pairs = list(combinations(range(len(turned)), 2))
    differ = sum((there.values[i] - there.values[j]) * (turned[i] - turned[j]) < 0 for i, j in pairs)
    mean = tuple((a + b) / 2 for a, b in zip(there.values, turned, strict=True))
    return Verdict(mean, there.reason), differ / len(pairs)
