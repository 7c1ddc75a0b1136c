"""A judge that holds an answer, or each part of it, against a reference that the policy never sees."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from guerdon.registry import register
from guerdon.rewards.base import batched
from guerdon.rewards.judge_single import references_of
from guerdon.rewards.judges.base import JudgeOption, ask_counted, resolve_judge
from guerdon.rewards.judges.questions import JudgeError, Rating

SUPPORTED = (
    "The answer is an attempt at the prompt, or the beginning of one; the reference is a solution. Rate how far the "
    "attempt has come on a way that the reference shows to be right. Verify, and never fill gaps: what the attempt "
    "does not say counts as absent, and a result that the reference does not support counts as wrong. 1: nothing of "
    "use. 2: a right beginning. 3: about half of the solution. 4: all but the end, or a slip near it. 5: complete and "
    "right."
)


def prefixes_of(text: str, most: int) -> list[int]:
    """Where to cut a text into at most ``most`` parts of about equal length: at line breaks, where one is near.

    An equal share is moved to the line break nearest to it, if one lies within half a share; the last is the whole.

    Args:
        text: to be cut.
        most: parts.

    Returns:
        Rising lengths of the prefixes in characters, the last that of the text; none for an empty text.

    Source: ExpRL cuts by a fixed rule that was not seen; this one is ours.
    """
    breaks = [place + 1 for place, letter in enumerate(text) if letter == "\n"]
    share, cuts = len(text) / most, []
    for part in range(1, most):
        wanted = part * share
        near = min(breaks, key=lambda place: abs(place - wanted), default=None)
        cut = near if near is not None and abs(near - wanted) <= share / 2 else round(wanted)
        if (cuts[-1] if cuts else 0) < cut < len(text):
            cuts.append(cut)
    return [*cuts, len(text)] if text else []


def at_shares(scores: Sequence[Sequence[float]], shares: Sequence[Sequence[float]], mask: Tensor) -> Tensor:
    """Scores of prefixes at the actions with which these are complete: (N,T), 0 elsewhere.

    Args:
        scores: of the prefixes of each text.
        shares: part of the text that each prefix is, in (0,1]. A prefix that is complete with the same action as
            the next gives way to it.
        mask: (N,T) true on actions.
    """
    out = torch.zeros(mask.shape)
    for row, (values, parts) in enumerate(zip(scores, shares, strict=True)):
        places = mask[row].nonzero().flatten()
        for value, part in zip(values, parts, strict=True):
            if len(places):
                out[row, places[min(max(round(part * len(places)), 1), len(places)) - 1]] = value
    return out


@register("reward", "reference_judge", paper="ExpRL: Exploratory RL for LLM Mid-Training, 2026")
@batched
class ReferenceJudge:
    """How far an attempt has come, by a judge that sees the reference: partial progress on problems too hard to solve.

    s~ in {1..5} on a fixed rubric;  as an outcome s = (s~ - 1) / 4, of prefixes s~ at the end of each

    The reference is shown to the judge alone. As an outcome it goes with any group credit; with ``prefixes`` with
    credit ``telescoped_process``, and the reward of a text is then the sum of its prefixes' scores, which says
    little. Nothing is asked twice: verdicts are kept by prompt, reference and prefix.

    Args:
        judge: who judges: ``{backend: openai | local | scripted, ...}``, or an import path to a judge.
        prefixes: into how many parts a text is cut, at line breaks where one is near; without, the whole is
            judged alone. An end is placed at the action that stands at the same share of the text, which is exact
            where tokens are characters, and some tokens off where they are not.
        criteria: the rubric.
        kept: verdicts that are remembered.

    Source: ExpRL: Exploratory RL for LLM Mid-Training, 2026. (The words of the rubric and the cuts are ours.)
    """

    def __init__(
        self,
        *,
        judge: JudgeOption,
        prefixes: Annotated[int, Field(ge=1)] | None = None,
        criteria: str = SUPPORTED,
        kept: Annotated[int, Field(ge=0)] = 100_000,
    ) -> None:
        self.judge = resolve_judge(judge)
        self.prefixes, self.criteria, self.kept = prefixes, criteria, kept
        self._known: dict[str, float] = {}

    def __call__(self, prompt: Sequence[str], text: Sequence[str], answer: Sequence[Any], mask: Tensor) -> Any:
        """Score a batch.

        Args:
            prompt, text, answer: N prompts, attempts and references.
            mask: (N,T) true on actions.

        Returns:
            N scores in [0,1], errors in the place of faults; or (N,T) scores from 1 to 5 at the ends of prefixes, nan
            for a text on a prefix of which the judge failed. And what the judge did.
        """
        cuts = [[len(t)] if self.prefixes is None else prefixes_of(t, self.prefixes) for t in text]
        asked = [
            Rating(prompt=p, answers=(t[:cut],), criteria=self.criteria, reference=r, low=1, high=5)
            for p, t, r, mine in zip(prompt, text, references_of(answer, len(text), True), cuts, strict=True)
            for cut in mine
        ]
        verdicts, stats = self._ask(asked)
        if self.prefixes is None:
            return verdicts, stats
        rows, at = [], 0
        for mine in cuts:
            rows.append(
                [float("nan") if isinstance(v, JudgeError) else 1 + 4 * v for v in verdicts[at : at + len(mine)]]
            )
            at += len(mine)
        shares = [[cut / mine[-1] for cut in mine] for mine in cuts]
        return at_shares(rows, shares, mask.cpu()), stats

    def _ask(self, questions: Sequence[Rating]) -> tuple[list[float | JudgeError], dict[str, float]]:
        """Values in [0,1]; each distinct question is put once."""
        keys = [hashlib.sha256(repr((q.prompt, q.reference, q.answers)).encode()).hexdigest() for q in questions]
        fresh = {key: q for key, q in zip(keys, questions, strict=True) if key not in self._known}
        answers, stats = ask_counted(self.judge, list(fresh.values()))
        new = {k: a if isinstance(a, JudgeError) else float(a.values[0]) for k, a in zip(fresh, answers, strict=True)}
        out = [new[key] if key in new else self._known[key] for key in keys]
        self._known |= {key: value for key, value in new.items() if not isinstance(value, JudgeError)}
        for key in list(self._known)[: max(len(self._known) - self.kept, 0)]:
            del self._known[key]
        return out, stats | {"reused": float(len(questions) - len(fresh))}
