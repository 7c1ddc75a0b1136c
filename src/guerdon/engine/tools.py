"""Completions that ask a tool while they are written: a query stops them, and what the tool says is put behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import pydantic
import torch
from pydantic import Field
from torch import Tensor

from guerdon.engine.generate import Completions, GenerationOptions, SamplingError
from guerdon.engine.padding import right_pad
from guerdon.errors import RecipeError
from guerdon.registry import import_object
from guerdon.seeding import derive
from guerdon.tasks.base import Task

Respond = Callable[[list[str]], Sequence[str]]


class Tool(pydantic.BaseModel):
    """A tool that a language policy may ask while it writes.

    A completion that holds ``opening QUERY closing`` stops there, goes on behind ``insert_opening ANSWER
    insert_closing``, and has as many tokens left as before. What was inserted is no action: nothing learns from it. An
    empty query, or a closing mark without an opening one, is not answered.

    Attributes:
        name: who answers: ``task`` for the task's method ``respond``, or a function from a list of queries to as many
            texts, or its import path. The answer to a query must not depend on the others.
        opening, closing: what the policy writes around a query.
        insert_opening, insert_closing: what stands around an answer; answers are rid of all four marks.
        max_calls: most answers of a completion; one that asks for more is cut.
        max_inserted: most tokens of an answer, the rest of which is left out.

    Source: Yu et al. 2025, arXiv 2507.23581 (GraphRAG-R1); marks and the number of calls are those of its code.
    """

    model_config = pydantic.ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    name: str | Callable[..., Any] = "task"
    opening: str = Field(default="<|begin_of_query|>", min_length=1)
    closing: str = Field(default="<|end_of_query|>", min_length=1)
    insert_opening: str = Field(default="<|begin_of_documents|>", min_length=1)
    insert_closing: str = Field(default="<|end_of_documents|>", min_length=1)
    max_calls: int = Field(default=10, ge=1)
    max_inserted: int = Field(default=512, ge=1)

    @pydantic.model_validator(mode="after")
    def _refuse_equal_marks(self) -> Tool:
        if len(set(self.marks)) < 4:
            raise ValueError(f"the marks of a tool are {self.marks}, want four different ones")
        return self

    @property
    def marks(self) -> tuple[str, str, str, str]:
        """All four."""
        return self.opening, self.closing, self.insert_opening, self.insert_closing

    def bound_to(self, task: Task) -> Tool:
        """The tool with the function that its name stands for.

        Raises:
            RecipeError: when the task answers no queries, or the name leads to no function.
        """
        found = self.name
        if found == "task":
            found = getattr(task, "respond", None)
            if found is None:
                raise RecipeError(
                    f"sampling.tool: task '{type(task).__name__}' answers no queries, for it has no method 'respond'; "
                    "name a function from a list of queries to a list of texts"
                )
        elif isinstance(found, str):
            found = import_object(found)
        if not callable(found):
            raise RecipeError(f"sampling.tool: name is {type(found).__name__} {found!r:.60}, want a function")
        return self.model_copy(update={"name": found})

    def query_in(self, text: str) -> str:
        """What a text asks that ends with, or soon after, the closing mark; empty where it asks nothing."""
        before, closed, _ = text.partition(self.closing)
        _, opened, query = before.rpartition(self.opening)
        return query.strip() if opened and closed else ""

    def ask(self, queries: list[str]) -> list[str]:
        """The answers to queries, without marks.

        Raises:
            SamplingError: when the tool fails, or gives anything but one text per query.
        """
        assert callable(self.name), "bound_to has found the function"
        try:
            answers = list(self.name(queries))
        except Exception as error:
            raise SamplingError(
                f"the tool failed on {len(queries)} queries, the first {queries[0]!r:.60}: "
                f"{type(error).__name__}: {error}; have it return a text that says so where it can go on"
            ) from error
        if len(answers) != len(queries) or not all(isinstance(answer, str) for answer in answers):
            raise SamplingError(
                f"the tool gave {len(answers)} answers ({answers!r:.60}) to {len(queries)} queries, want one text each"
            )
        return [self._without_marks(answer) for answer in answers]

    def _without_marks(self, text: str) -> str:
        while any(mark in text for mark in self.marks):  # what stood around a mark may be one once that is gone
            for mark in self.marks:
                text = text.replace(mark, "")
        return text


class Write(Protocol):
    """``generate`` for one model."""

    def __call__(
        self, prefixes: Sequence[Sequence[int]], settings: GenerationOptions, *, seed: int, **options: Any
    ) -> Completions: ...


@dataclass(frozen=True)
class ToolCompletions(Completions):
    """Completions with what a tool inserted; ``mask`` is false there, and the numbers are 0.

    Attributes:
        present: (N,T) bool, true on tokens, whoever wrote them.
        turn: (N,T) int64 how often the tool had answered when the token was drawn, -1 off the mask.
    """

    present: Tensor = field(kw_only=True)
    turn: Tensor = field(kw_only=True)


class _Row:
    """One completion while it is written."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self.prompt = list(prompt)
        self.tokens: list[int] = []
        self.logp: list[float] = []
        self.sampled_logp: list[float] = []
        self.entropy: list[float] = []
        self.turn: list[int] = []
        self.calls = self.actions = 0
        self.finished = False

    def take(self, out: Completions, place: int) -> list[int]:
        """Go on with what was drawn; return it."""
        drawn = out.mask[place]
        for mine, theirs in (
            (self.tokens, out.tokens),
            (self.logp, out.logp),
            (self.sampled_logp, out.sampled_logp),
            (self.entropy, out.entropy),
        ):
            mine.extend(theirs[place][drawn].tolist())
        count = int(drawn.sum())
        self.actions += count
        self.turn += [self.calls] * count
        return self.tokens[len(self.tokens) - count :]

    def insert(self, tokens: Sequence[int]) -> None:
        """Go on with what a tool said."""
        self.calls += 1
        self.tokens += tokens
        for numbers in (self.logp, self.sampled_logp, self.entropy):
            numbers.extend([0.0] * len(tokens))
        self.turn += [-1] * len(tokens)


def rollout_with_tool(
    write: Write,
    prompts: Sequence[Sequence[int]],
    settings: GenerationOptions,
    tool: Tool,
    *,
    seed: int,
    pad: int,
    encode: Callable[[str], list[int]],
    decode: Callable[[list[list[int]]], list[str]],
    rows: Sequence[int] | None = None,
    ended: Callable[[Tensor, ToolCompletions], None] | None = None,
) -> ToolCompletions:
    """Write one completion per prompt, in rounds: all that still write go on until they ask, stop or are cut.

    A completion that never asks is the one that the same seed gives without a tool. One is cut, and not finished, when
    its budget is used up, or when it asks once more than ``tool.max_calls``. Each round reads anew what was written.

    Args:
        write: ``generate`` of the model that writes.
        prompts: token ids of each.
        settings: how to draw; ``max_new_tokens`` is the budget of a row's own tokens, whatever is inserted.
        tool: who answers, bound to its function.
        seed: together with ``rows`` decides every draw.
        pad: token id that fills unused positions.
        encode: token ids of a text that is inserted.
        decode: texts of token lists.
        rows: identity of each row; its index by default.
        ended: called after each round with the rows that ended in it, and what has been written so far.

    Returns:
        N rows; the widest holds the budget and ``max_calls`` answers.

    Raises:
        RecipeError: when the tokenizer can't write a mark of the tool.
        SamplingError: when the tool fails.

    Source: Yu et al. 2025 (GraphRAG-R1, rollout with thinking), from its inference code.
    """
    _refuse_unwritable(tool, encode, decode)
    settings = replace(settings, stop=(*settings.stop, tool.closing))
    names = list(range(len(prompts))) if rows is None else list(rows)
    written = [_Row(prompt) for prompt in prompts]
    writing, turn = list(range(len(prompts))), 0
    while writing:
        out = write(
            [[*written[row].prompt, *written[row].tokens] for row in writing],
            settings,
            seed=derive(seed, "tool", turn) if turn else seed,
            rows=[names[row] for row in writing],
            budgets=[settings.max_new_tokens - written[row].actions for row in writing],
        )
        drawn = [written[row].take(out, place) for place, row in enumerate(writing)]
        asking: dict[int, str] = {}
        going: list[int] = []
        for place, (row, text) in enumerate(zip(writing, decode(drawn), strict=True)):
            if not bool(out.finished[place]):
                continue
            query, this = tool.query_in(text), written[row]
            if tool.closing not in text:
                this.finished = True
            elif this.actions < settings.max_new_tokens and (not query or this.calls < tool.max_calls):
                going.append(row)
                if query:
                    asking[row] = query
        _insert(written, asking, tool, encode)
        if ended is not None and len(going) < len(writing):
            ended(torch.tensor(sorted(set(writing) - set(going))), _together(written, pad))
        writing, turn = going, turn + 1
    return _together(written, pad)


def _insert(written: Sequence[_Row], asking: dict[int, str], tool: Tool, encode: Callable[[str], list[int]]) -> None:
    """Ask for all rows at once, and put the answers behind the queries."""
    if not asking:
        return
    before, after = encode(tool.insert_opening), encode(tool.insert_closing)
    for row, answer in zip(asking, tool.ask(list(asking.values())), strict=True):
        written[row].insert([*before, *encode(answer)[: tool.max_inserted], *after])


def _together(written: Sequence[_Row], pad: int) -> ToolCompletions:
    """Rows of one length."""
    tokens, present = right_pad([row.tokens for row in written], pad)

    def padded(rows: Sequence[Sequence[float]]) -> Tensor:
        values = torch.tensor([number for row in rows for number in row], dtype=torch.float32)
        return torch.zeros(present.shape).masked_scatter(present, values)

    turn, _ = right_pad([row.turn for row in written], -1)
    return ToolCompletions(
        tokens=tokens,
        mask=turn >= 0,
        logp=padded([row.logp for row in written]),
        entropy=padded([row.entropy for row in written]),
        sampled_logp=padded([row.sampled_logp for row in written]),
        finished=torch.tensor([row.finished for row in written], dtype=torch.bool),
        present=present,
        turn=turn,
    )


def _refuse_unwritable(
    tool: Tool, encode: Callable[[str], list[int]], decode: Callable[[list[list[int]]], list[str]]
) -> None:
    for mark, seen in zip(tool.marks, decode([encode(mark) for mark in tool.marks]), strict=True):
        if mark not in seen:
            raise RecipeError(
                f"sampling.tool: the tokenizer makes {seen!r} of the mark {mark!r}, so it could never be written and "
                "read; choose marks of its own characters that are no special tokens"
            )
