"""Trajectories of several turns: what the policy writes, and what somebody else puts behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from guerdon.engine.generate import Completions, GenerationOptions
from guerdon.engine.padding import right_pad
from guerdon.seeding import derive

Truncation = Literal["stop", "drop_oldest", "discard_all"]


class Reply(NamedTuple):
    """What follows a turn.

    Attributes:
        tokens: put behind what the row wrote; they are no actions.
        goes_on: whether the row writes another turn.
        finished: where it does not, whether it ended by itself rather than being cut.
        answers: whether this counts as a turn of its own, so that what is written next belongs to the following one.
    """

    tokens: Sequence[int] = ()
    goes_on: bool = True
    finished: bool = False
    answers: bool = True


class Partner(Protocol):
    """Whoever the policy takes turns with: a tool, or environments."""

    def reply(self, rows: Sequence[int], written: Sequence[Sequence[int]], ended: Sequence[bool]) -> Sequence[Reply]:
        """Answer the rows that have just written a turn.

        Args:
            rows: their places.
            written: the tokens of this turn.
            ended: whether the turn ended by itself rather than by its budget.
        """
        ...

    def budget(self, row: int, actions: int) -> int:
        """Most tokens of a row's next turn, once it has drawn so many ``actions``."""
        ...


class Write(Protocol):
    """``generate`` for one model."""

    def __call__(
        self, prefixes: Sequence[Sequence[int]], settings: GenerationOptions, *, seed: int, **options: object
    ) -> Completions: ...


@dataclass(frozen=True)
class Context:
    """How much of a trajectory a model reads before it writes a turn.

    Attributes:
        limit: most tokens of prompt, history and turn; none by default.
        truncation: what is done where a turn might not fit. ``stop`` ends the trajectory as cut. ``drop_oldest`` leaves
            out the oldest turns, as many as it takes, and ``discard_all`` everything but the prompt and what was last
            replied (the context policy of search agents). A trajectory whose last reply alone is too long is cut.
    """

    limit: int | None = None
    truncation: Truncation = "stop"


@dataclass(frozen=True)
class TurnCompletions(Completions):
    """Completions of several turns; ``mask`` is false on what others wrote, and the numbers are 0 there.

    Attributes:
        present: (N,T) bool, true on tokens, whoever wrote them.
        turn: (N,T) int64 turn of each action, counted from 0; -1 off the mask.
        begins: (N,T) int64 the first of the row's tokens that was read beside the prompt when this one was drawn.
    """

    present: Tensor = field(kw_only=True)
    turn: Tensor = field(kw_only=True)
    begins: Tensor = field(kw_only=True)


class Row:
    """One trajectory while it is written."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self.prompt = list(prompt)
        self.tokens: list[int] = []
        self.numbers: list[list[float]] = [[], [], []]  # logp, entropy, sampled_logp
        self.turn: list[int] = []
        self.begins: list[int] = []
        self.replies: list[int] = []  # where each reply begins
        self.begin = self.turns = self.actions = 0
        self.finished = False

    @classmethod
    def part(cls, prompt: Sequence[int], out: TurnCompletions, row: int, turns: int) -> Row:
        """The first turns of a trajectory, with what was replied to them, to be gone on with."""
        this, known = cls(prompt), out.turn[row].tolist()
        width = next((place for place, turn in enumerate(known) if turn >= turns), len(known))
        width = min(width, int(out.present[row].sum()))
        this.tokens, this.turn = out.tokens[row, :width].tolist(), known[:width]
        this.begins = out.begins[row, :width].tolist()
        this.numbers = [x[row, :width].tolist() for x in (out.logp, out.entropy, out.sampled_logp)]
        acted = [turn >= 0 for turn in this.turn]
        this.replies = [place for place in range(1, width) if acted[place - 1] and not acted[place]]
        this.begin = this.begins[-1] if this.begins else 0
        this.turns, this.actions = turns, sum(acted)
        return this

    def prefix(self) -> list[int]:
        """What is read before the next turn."""
        return self.prompt + self.tokens[self.begin :]

    def fits(self, context: Context, budget: int) -> bool:
        """Whether a turn can be written, after older ones have been left out if need be."""
        if context.limit is None:
            return True
        room = context.limit - len(self.prompt) - budget
        if context.truncation != "stop" and len(self.tokens) - self.begin > room and self.replies:
            later = [place for place in self.replies if place > self.begin]
            fitting = [place for place in later if len(self.tokens) - place <= room]
            if context.truncation == "discard_all":
                fitting = fitting[-1:]
            self.begin = fitting[0] if fitting else self.begin
        return len(self.tokens) - self.begin <= room

    def forget_reply(self) -> None:
        """Leave out what was replied to the last turn, for nothing will be written behind it."""
        while self.turn and self.turn[-1] < 0:
            for mine in (self.tokens, self.turn, self.begins, *self.numbers):
                mine.pop()

    def take(self, out: Completions, place: int) -> list[int]:
        """Go on with what was drawn; return it."""
        drawn = out.mask[place]
        tokens = out.tokens[place][drawn].tolist()
        for mine, theirs in zip(self.numbers, (out.logp, out.entropy, out.sampled_logp), strict=True):
            mine.extend(theirs[place][drawn].tolist())
        self._append(tokens, self.turns)
        self.actions += len(tokens)
        return tokens

    def write(self, tokens: Sequence[int]) -> None:
        """Go on with a turn that was not drawn as it stands: its log-probabilities are unknown, and 0."""
        self._fill(len(tokens))
        self._append(tokens, self.turns)
        self.actions += len(tokens)

    def insert(self, tokens: Sequence[int]) -> None:
        """Go on with what somebody else wrote."""
        self.replies.append(len(self.tokens))
        self._fill(len(tokens))
        self._append(tokens, -1)

    def _fill(self, count: int) -> None:
        for mine in self.numbers:
            mine.extend([0.0] * count)

    def _append(self, tokens: Sequence[int], turn: int) -> None:
        self.tokens += tokens
        self.turn += [turn] * len(tokens)
        self.begins += [self.begin] * len(tokens)


def rollout_in_turns(
    write: Write,
    prompts: Sequence[Sequence[int]],
    settings: GenerationOptions,
    partner: Partner,
    *,
    seed: int,
    pad: int,
    path: str,
    rows: Sequence[int] | None = None,
    context: Context | None = None,
    begun: Sequence[Row] | None = None,
    ended: Callable[[Tensor, TurnCompletions], None] | None = None,
) -> TurnCompletions:
    """Write one trajectory per prompt, in rounds: all that still write draw a turn, and then hear what follows.

    The first turn is the completion that the same seed gives by itself.

    Args:
        write: ``generate`` of the model that writes.
        prompts: token ids of each.
        settings: how to draw.
        partner: who replies, and how long a turn may be.
        seed: together with ``rows`` decides every draw.
        pad: token id that fills unused positions.
        path: names the draws of later turns among others of the same seed.
        rows: identity of each row; its index by default.
        context: how much is read; all by default.
        begun: trajectories to go on with, in place of empty ones.
        ended: called after each round with the rows that ended in it, and what has been written so far.

    Returns:
        N rows.
    """
    names = list(range(len(prompts))) if rows is None else list(rows)
    written = [Row(prompt) for prompt in prompts] if begun is None else list(begun)
    context, turn = context or Context(), 0
    writing = [row for row in range(len(prompts)) if partner.budget(row, written[row].actions) > 0]
    while writing:
        budgets = {row: partner.budget(row, written[row].actions) for row in writing}
        ready = [row for row in writing if written[row].fits(context, budgets[row])]
        for row in set(writing) - set(ready):
            written[row].forget_reply()
        drawn, out = _draw(write, written, ready, names, budgets, settings, derive(seed, path, turn) if turn else seed)
        going = []
        for row, reply in zip(ready, partner.reply(ready, drawn, out) if ready else (), strict=True):
            if reply.tokens:
                written[row].insert(reply.tokens)
            written[row].turns += reply.answers
            written[row].finished = reply.finished
            going += [row] if reply.goes_on else []
        if ended is not None and len(going) < len(writing):
            ended(torch.tensor(sorted(set(writing) - set(going))), together(written, pad))
        writing, turn = going, turn + 1
    return together(written, pad)


def _draw(
    write: Write,
    written: Sequence[Row],
    ready: Sequence[int],
    names: Sequence[int],
    budgets: dict[int, int],
    settings: GenerationOptions,
    seed: int,
) -> tuple[list[list[int]], list[bool]]:
    """Draw a turn of each row; return the tokens, and which turns ended by themselves."""
    if not ready:
        return [], []
    out = write(
        [written[row].prefix() for row in ready],
        settings,
        seed=seed,
        rows=[names[row] for row in ready],
        budgets=[budgets[row] for row in ready],
    )
    return [written[row].take(out, place) for place, row in enumerate(ready)], out.finished.tolist()


def together(written: Sequence[Row], pad: int) -> TurnCompletions:
    """Rows of one length."""
    tokens, present = right_pad([row.tokens for row in written], pad)

    def padded(kind: int) -> Tensor:
        values = torch.tensor([number for row in written for number in row.numbers[kind]], dtype=torch.float32)
        return torch.zeros(present.shape).masked_scatter(present, values)

    turn, _ = right_pad([row.turn for row in written], -1)
    begins, _ = right_pad([row.begins for row in written], 0)
    return TurnCompletions(
        tokens=tokens,
        mask=turn >= 0,
        logp=padded(0),
        entropy=padded(1),
        sampled_logp=padded(2),
        finished=torch.tensor([row.finished for row in written], dtype=torch.bool),
        present=present,
        turn=turn,
        begins=begins,
    )
