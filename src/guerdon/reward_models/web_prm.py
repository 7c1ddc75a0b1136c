"""How well a judge tells good actions of web agents from bad ones: by pairs, by steps, and where it was not trained."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guerdon.credit.grouping import first_rows, grouped
from guerdon.reward_models.generative import Candidate, web_state
from guerdon.rewards.judge import PairJudge, text_referee


@dataclass(frozen=True)
class WebStep:
    """One step of a web agent, with a good action and bad ones.

    Attributes:
        environment: where it comes from.
        instruction, observation, history: what was asked, the page as text, and what was done before.
        chosen: the good action.
        rejected: the bad ones; four in the benchmark.
    """

    environment: str
    instruction: str
    observation: str
    chosen: Candidate
    rejected: tuple[Candidate, ...]
    history: tuple[str, ...] = ()

    @property
    def state(self) -> str:
        """What is known before the action."""
        return web_state(self.instruction, self.observation, self.history)


@dataclass(frozen=True)
class WebPrmScore:
    """How a judge did.

    Attributes:
        steps, pairs: how many; a step has as many pairs as bad actions.
        pairwise: share of pairs in which the good action won, mean over both orders.
        best_of_n: share of steps in which it won all, mean over both orders.
        first: share of readable verdicts for whoever stood first; 1/2 without a position bias.
        flipped: share of the pairs with two readable verdicts whose winner depends on the order.
        unreadable: share of questions without a verdict; they count as lost.
    """

    steps: int
    pairs: int
    pairwise: float
    best_of_n: float
    first: float
    flipped: float
    unreadable: float


@dataclass(frozen=True)
class WebPrmReport:
    """How a judge did, apart for the environments it was trained in and those it was not.

    Attributes:
        environments: by name.
        trained, held_out: over the steps of each kind; None where there are none.
    """

    environments: dict[str, WebPrmScore]
    trained: WebPrmScore | None
    held_out: WebPrmScore | None

    @property
    def best_of_n(self) -> float:
        """Mean over environments, each counting once."""
        return sum(score.best_of_n for score in self.environments.values()) / len(self.environments)

    @property
    def pairwise(self) -> float:
        """Mean over environments, each counting once."""
        return sum(score.pairwise for score in self.environments.values()) / len(self.environments)


def web_prm(judge: PairJudge, steps: Sequence[WebStep], *, trained: Collection[str] = ()) -> WebPrmReport:
    """Evaluate a judge of pairs on steps of web agents, every pair in both orders.

    pairwise = pairs won / pairs,  best of n = mean over steps of prod_q [good beats bad_q]

    Each is computed in either order and averaged, so that a judge that always says ``first`` scores 1/2 and not 1, and
    one that guesses has 1/2 and, with four bad actions, 1/16. A reward model trained in one environment can look good
    there alone: look at ``held_out``.

    Args:
        judge: given m prompts, first and second candidates, returns two scores for each, nan or None where it failed;
            a ``GenerativePRM`` is one.
        steps: what to compare.
        trained: names of the environments that it was trained in.

    Raises:
        ValueError: when there are no steps, or one has no bad action.

    Source: WebArbiter (2026), WebPRMBench. (That the orders are averaged is ours: the source asks for both.)
    """
    if not steps or not all(step.rejected for step in steps):
        raise ValueError(f"web_prm has {len(steps)} steps; wanted at least 1, each with a bad action or more")
    owner = torch.tensor([number for number, step in enumerate(steps) for _ in step.rejected])
    states = [steps[i].state for i in owner.tolist()]
    good = [steps[i].chosen.text for i in owner.tolist()]
    bad = [candidate.text for step in steps for candidate in step.rejected]
    pairs = len(states)
    referee = text_referee(judge, [*states, *states], [*good, *bad], both_orders=False, draws=False)
    front, back = torch.arange(pairs), torch.arange(pairs, 2 * pairs)
    scores = referee(torch.cat([front, back]), torch.cat([back, front]))
    # (P,2,2): pair, order, and good before bad in both orders.
    there, turned = scores.chunk(2)
    scores = torch.stack([there, turned.flip(1)], dim=1)
    names = [step.environment for step in steps]
    known = {name: torch.tensor([each == name for each in names])[owner] for name in dict.fromkeys(names)}
    inside = torch.tensor([name in trained for name in names])[owner]
    return WebPrmReport(
        {name: _score(scores[rows], owner[rows]) for name, rows in known.items()},
        _score(scores[inside], owner[inside]) if bool(inside.any()) else None,
        _score(scores[~inside], owner[~inside]) if bool((~inside).any()) else None,
    )


def _score(scores: Tensor, owner: Tensor) -> WebPrmScore:
    """Scores (P,2,2) by pair, order, and good or bad; the step (P,) of each pair."""
    readable = scores.isfinite().all(dim=2)
    won = scores[..., 0] > scores[..., 1]  # nan is not greater
    lost = scores[..., 1] > scores[..., 0]
    _, rows = first_rows(owner)
    every = torch.stack([grouped(x.double(), owner).extreme(largest=False)[rows] for x in won.unbind(dim=1)])
    # The good action stands first in order 0 and second in order 1.
    for_first = (won[:, 0] & readable[:, 0]).sum() + (lost[:, 1] & readable[:, 1]).sum()
    both = readable.all(dim=1)
    flips = (won[:, 0] & lost[:, 1]) | (lost[:, 0] & won[:, 1])
    return WebPrmScore(
        steps=len(rows),
        pairs=len(scores),
        pairwise=float(won.double().mean()),
        best_of_n=float(every.mean()),
        first=float(for_first / readable.sum().clamp(min=1)),
        flipped=float((flips & both).sum() / both.sum().clamp(min=1)),
        unreadable=float((~readable).double().mean()),
    )


def read_web_steps(source: str | Path | Iterable[Mapping[str, Any]]) -> list[WebStep]:
    """Steps from JSON lines or mappings, in the shape of WebPRMBench.

    Each has ``environment``, ``instruction``, ``observation``, ``chosen`` and ``rejected``, and may have ``history``; a
    candidate is a mapping with ``action`` and ``thought``, or the action alone. (The names are ours.)

    Raises:
        ValueError: naming the line and what it lacks.
    """
    rows: Iterable[Mapping[str, Any]]
    if isinstance(source, str | Path):
        rows = [json.loads(line) for line in Path(source).read_text().splitlines() if line.strip()]
    else:
        rows = source
    out = []
    for number, row in enumerate(rows, start=1):
        lacking = [k for k in ("environment", "instruction", "observation", "chosen", "rejected") if not row.get(k)]
        if lacking:
            raise ValueError(f"step {number} lacks {', '.join(lacking)}; it has {', '.join(row) or 'nothing'}")
        rejected = tuple(_candidate(each) for each in row["rejected"])
        history = tuple(str(each) for each in row.get("history", ()))
        environment, instruction, observation = (str(row[k]) for k in ("environment", "instruction", "observation"))
        chosen = _candidate(row["chosen"])
        out.append(WebStep(environment, instruction, observation, chosen, rejected, history))
    return out


def _candidate(given: Any) -> Candidate:
    return (
        Candidate(given) if isinstance(given, str) else Candidate(str(given["action"]), str(given.get("thought", "")))
    )
