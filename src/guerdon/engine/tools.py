"""Completions that ask a tool while they are written: a query stops them, and what the tool says is put behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pydantic
from pydantic import Field
from torch import Tensor

from guerdon.engine.generate import GenerationOptions, SamplingError
from guerdon.engine.turns import Reply, TurnCompletions, Write, rollout_in_turns
from guerdon.errors import RecipeError
from guerdon.registry import import_object
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
    ended: Callable[[Tensor, TurnCompletions], None] | None = None,
) -> TurnCompletions:
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
        N rows; the widest holds the budget and ``max_calls`` answers. ``turn`` is how often the tool had answered when
        a token was drawn.

    Raises:
        RecipeError: when the tokenizer can't write a mark of the tool.
        SamplingError: when the tool fails.

    Source: Yu et al. 2025 (GraphRAG-R1, rollout with thinking), from its inference code.
    """
    _refuse_unwritable(tool, encode, decode)
    partner = _Answers(tool, settings.max_new_tokens, len(prompts), encode, decode)
    settings = replace(settings, stop=(*settings.stop, tool.closing))
    return rollout_in_turns(write, prompts, settings, partner, seed=seed, pad=pad, path="tool", rows=rows, ended=ended)


class _Answers:
    """A tool as the partner of the rows that may ask it."""

    def __init__(
        self,
        tool: Tool,
        budget: int,
        rows: int,
        encode: Callable[[str], list[int]],
        decode: Callable[[list[list[int]]], list[str]],
    ) -> None:
        self._tool, self._budget, self._encode, self._decode = tool, budget, encode, decode
        self._around = encode(tool.insert_opening), encode(tool.insert_closing)
        self._actions, self._calls = [0] * rows, [0] * rows

    def budget(self, row: int, actions: int) -> int:
        return self._budget - actions

    def reply(self, rows: Sequence[int], written: Sequence[Sequence[int]], ended: Sequence[bool]) -> list[Reply]:
        """Ask for all rows at once; put the answers behind the queries."""
        replies, asking = [], {}
        texts = self._decode([list(tokens) for tokens in written])
        for place, (row, text) in enumerate(zip(rows, texts, strict=True)):
            self._actions[row] += len(written[place])
            replies.append(self._without_answer(row, text, ended[place]))
            query = self._tool.query_in(text)
            if replies[-1].goes_on and query:
                asking[place] = query
        before, after = self._around
        if asking:
            for place, answer in zip(asking, self._tool.ask(list(asking.values())), strict=True):
                self._calls[rows[place]] += 1
                said = self._encode(answer)[: self._tool.max_inserted]
                replies[place] = Reply([*before, *said, *after])
        return replies

    def _without_answer(self, row: int, text: str, ended: bool) -> Reply:
        """What follows if the row asks nothing: it goes on behind a closing mark, and has ended behind another stop."""
        if not ended or self._tool.closing not in text:
            return Reply(goes_on=False, finished=ended)
        asks_once_more = bool(self._tool.query_in(text)) and self._calls[row] >= self._tool.max_calls
        return Reply(goes_on=self._actions[row] < self._budget and not asks_once_more, answers=False)


def _refuse_unwritable(
    tool: Tool, encode: Callable[[str], list[int]], decode: Callable[[list[list[int]]], list[str]]
) -> None:
    for mark, seen in zip(tool.marks, decode([encode(mark) for mark in tool.marks]), strict=True):
        if mark not in seen:
            raise RecipeError(
                f"sampling.tool: the tokenizer makes {seen!r} of the mark {mark!r}, so it could never be written and "
                "read; choose marks of its own characters that are no special tokens"
            )
