"""Rows of tokens: where actions stand in them, and how ragged lists become tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn.functional import pad as padded

from guerdon.engine.padding import right_pad
from guerdon.rollouts import Rollouts, pad_actions


class Placer:
    """Puts numbers of acted positions back into (N,T), zero elsewhere."""

    def __init__(self, mask: Tensor) -> None:
        self.mask, self.where = mask, mask.nonzero(as_tuple=True)

    def __call__(self, x: Tensor) -> Tensor:
        return x.new_zeros(*self.mask.shape, *x.shape[1:]).index_put(self.where, x)


def before_actions(acted: Tensor, attention: Tensor) -> Tensor:
    """(N,C) true on the token after which each action was chosen: the one attended to before it."""
    columns = torch.arange(attention.shape[1], device=attention.device)
    latest = torch.where(attention, columns, -1).cummax(dim=1).values
    row, column = acted.nonzero(as_tuple=True)
    out = torch.zeros_like(attention)
    out[row, latest[row, column - 1]] = True
    return out


def tokens_read(rollouts: Rollouts) -> tuple[Tensor, Tensor, Tensor]:
    """What a language policy reads to evaluate its actions, prompts and completions side by side.

    A trajectory whose beginning was left out at some time (``begins`` in the payload) is read once for every beginning,
    each time with the actions that were chosen under it; these follow one another, so actions keep their order.

    Returns:
        (R,C) tokens, where there are some to read, and which of them are actions; R is N, or more.
    """
    assert rollouts.tokens is not None
    prompt, payload = rollouts.payload["prompt_tokens"], rollouts.payload
    ids = torch.cat([prompt, rollouts.tokens], dim=1)
    acted = torch.cat([torch.zeros_like(prompt, dtype=torch.bool), rollouts.mask], dim=1)
    attention, begins = payload["attention"], payload.get("begins", None)
    if begins is None:
        return ids, attention, acted
    begins = torch.where(rollouts.mask, begins, -1)
    row, begin = torch.unique(torch.stack([_row_index(begins)[rollouts.mask], begins[rollouts.mask]]), dim=1)
    idle = (~rollouts.mask.any(dim=1)).nonzero().flatten()  # rows without actions are read, though nothing is asked
    row, begin = torch.cat([row, idle]), torch.cat([begin, torch.zeros_like(idle)])
    place = row.argsort(stable=True)
    row, begin = row[place], begin[place].unsqueeze(1)
    mine = begins[row] == begin
    width, columns = prompt.shape[1], torch.arange(begins.shape[1], device=begins.device)
    last = torch.where(mine, columns, -1).amax(dim=1, keepdim=True)
    seen = (columns >= begin) & (columns <= last)
    read = torch.cat([attention[row, :width], attention[row, width:] & seen], dim=1)
    return ids[row], read, acted[row] & torch.cat([torch.zeros_like(prompt, dtype=torch.bool)[row], mine], dim=1)


def answers_before_turns(
    rollouts: Rollouts, before: Sequence[int], answers: Sequence[Sequence[int]], pad: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows in which each trajectory's answer stands in place of each of its turns.

    Args:
        rollouts: episodes of a language policy.
        before: tokens that lead up to an answer.
        answers: tokens of each trajectory's.
        pad: fills unused positions.

    Returns:
        (R,C) tokens, where there are some, and which are those of an answer; and (N,M), which turns there are, whose
        rows these are in order.
    """
    assert rollouts.tokens is not None
    turn, width = rollouts.turn, rollouts.payload["prompt_tokens"].shape[1]
    count = int(turn.max()) + 1 if turn.numel() else 0
    starts = (turn.unsqueeze(1) == torch.arange(count).unsqueeze(1)).long()  # (N,M,T)
    there = starts.any(dim=2)
    first = starts.argmax(dim=2)
    ids = torch.cat([rollouts.payload["prompt_tokens"], rollouts.tokens], dim=1).tolist()
    seen = rollouts.payload["attention"].tolist()
    rows, lengths = [], []
    for row, place in there.nonzero().tolist():
        end = width + int(first[row, place])
        history = [token for token, kept in zip(ids[row][:end], seen[row][:end], strict=True) if kept]
        rows.append([*history, *before, *answers[row]])
        lengths.append(len(answers[row]))
    tokens, present = right_pad(rows, pad)
    ends = present.sum(dim=1, keepdim=True)
    columns = torch.arange(tokens.shape[1])
    wanted = (columns >= ends - torch.tensor(lengths, dtype=torch.int64).unsqueeze(1)) & present
    return tokens, present, wanted, there


def _row_index(x: Tensor) -> Tensor:
    """(N,T) the row of every place."""
    return torch.arange(len(x), device=x.device).unsqueeze(1).expand_as(x)


def present_tokens(ids: Tensor, attention: Tensor) -> list[list[int]]:
    """The tokens (N,P) that are attended to, row by row."""
    return [row[kept[: ids.shape[1]]].tolist() for row, kept in zip(ids, attention, strict=True)]


def join_prompts(parts: Sequence[Rollouts], pad: int) -> TensorDict:
    """The material of several batches of a language policy below one another.

    Prompts are left-padded with ``pad`` to the longest, completions have room for the longest, and rows whose tokens
    nothing restricted list none.
    """
    widest = max(part.payload["prompt_tokens"].shape[1] for part in parts)
    longest = max(part.mask.shape[1] for part in parts)
    columns: dict[str, list[Tensor]] = {"prompt_tokens": [], "attention": [], "temperature": []}
    for part in parts:
        payload, missing = part.payload, (widest - part.payload["prompt_tokens"].shape[1], 0)
        columns["prompt_tokens"].append(padded(payload["prompt_tokens"], missing, value=pad))
        columns["attention"].append(pad_actions(padded(payload["attention"], missing), widest + longest))
        columns["temperature"].append(payload["temperature"])
    if all("environment_seed" in part.payload.keys() for part in parts):  # noqa: SIM118
        columns["environment_seed"] = [part.payload["environment_seed"] for part in parts]
    if any("begins" in part.payload.keys() for part in parts):  # noqa: SIM118 - a TensorDict has no membership test
        of_part = [part.payload.get("begins", torch.zeros_like(part.mask, dtype=torch.int64)) for part in parts]
        columns["begins"] = [pad_actions(begins, longest) for begins in of_part]
    if any("listed" in part.payload.keys() for part in parts):  # noqa: SIM118 - a TensorDict has no membership test
        of_part = [part.payload.get("listed", part.mask.new_empty(*part.mask.shape, 0).long()) for part in parts]
        most = max(listed.shape[2] for listed in of_part)
        columns["listed"] = [
            padded(listed, (0, most - listed.shape[2], 0, longest - listed.shape[1]), value=-1) for listed in of_part
        ]
    return TensorDict({name: torch.cat(column) for name, column in columns.items()}, [sum(map(len, parts))])
