"""Chains known to be good: written with the answer in view, and chosen by how likely they make it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from tensordict import NonTensorStack
from torch import Tensor

from guerdon.engine.logits import token_logp
from guerdon.engine.padding import right_pad
from guerdon.engine.reading import read
from guerdon.errors import RecipeError
from guerdon.policies.rows import before_actions, present_tokens
from guerdon.registry import register
from guerdon.rewards.path_faithfulness import path_faithfulness
from guerdon.rollouts import Rollouts
from guerdon.sampling.sources import Draw, Source
from guerdon.tasks.base import Starts

Count = Annotated[int, Field(ge=1)]
Ids = Sequence[int]


class Compared(NamedTuple):
    """A completion and what it is compared with, as tokens without an end token; and the answer's text."""

    prompt: Ids
    written: list[int]
    chain: list[int]
    answer: str


def chunk_ends(count: int, most: int) -> list[int]:
    """Where to cut ``count`` tokens into at most ``most`` parts of equal length, within one token."""
    parts = min(most, count)
    return [round(count * (i + 1) / parts) for i in range(parts)]


@torch.no_grad()
def continuation_logp(policy: Any, prefixes: Sequence[Ids], continuations: Sequence[Ids]) -> Tensor:
    """(R,) log-probability of each continuation after its prefix, at temperature 1; what they share is read once.

    Args:
        policy: a language policy.
        prefixes, continuations: tokens of each, none of them empty.
    """
    if not prefixes:
        return torch.zeros(0)
    ids, attention = right_pad([[*p, *c] for p, c in zip(prefixes, continuations, strict=True)], policy.pad)
    start = torch.tensor([len(p) for p in prefixes]).unsqueeze(1)
    scored = (torch.arange(ids.shape[1]) >= start) & attention
    policy.module.eval()
    states = read(policy.model, ids, attention, before_actions(scored, attention), max_tokens=policy.max_tokens)
    logp, _ = token_logp(policy.model.project, states, ids[scored], torch.ones(len(states)))
    return torch.zeros(ids.shape).masked_scatter(scored, logp).sum(dim=1)


@register("source", "gold_chains", paper="P2S: Probabilistic Process Supervision for General-Domain Reasoning")
class GoldChains(Source):
    """The policy's own completions, with how faithful each of their beginnings is to a chain known to be good.

    For every problem the policy writes chains with the answer in view; of those that ``contains`` the answer, the one
    after which the answer is likeliest is the good chain, anew in every step. Reward ``path_faithfulness`` reads the
    result from the metadata. A chain written with the answer in view may be a rationalisation: look at some. For tasks
    of one turn, without a tool; it costs up to ``parts`` squared short readings per completion, twice.

    Args:
        chains: how many are written for a problem.
        parts: most parts that completions and chains are cut into.
        hint: the prompt with the answer in view, with ``{prompt}`` and ``{answer}``.
        contains: drop chains that do not hold the answer's text.
        form: how an answer is given after a completion, with ``{}`` where it stands.
        placeholder: text of which the first token stands for what is masked; the padding token by default.

    Source: P2S, as a detailed note states it. (That ends are compared per token is ours.)
    """

    when = "sampling"
    replaces = True

    def __init__(
        self,
        *,
        chains: Count = 4,
        parts: Annotated[int, Field(ge=2)] = 8,
        hint: str = "{prompt}\nThe answer is {answer}.",
        contains: bool = True,
        form: str = "{}",
        placeholder: str | None = None,
    ) -> None:
        if form.count("{}") != 1:
            raise RecipeError(f"source 'gold_chains': form is {form!r}, wanted a text with one {{}}")
        self.chains, self.parts, self.hint, self.contains = chains, parts, hint, contains
        self.form, self.placeholder = form, placeholder

    def draw(self, draw: Draw) -> Rollouts:
        """The completions, with the faithfulness of their parts in the metadata."""
        assert draw.starts is not None
        options: Any = draw.sampling
        if getattr(options, "environments", None) is not None or getattr(options, "tool", None) is not None:
            raise RecipeError(
                "source 'gold_chains' compares completions of one turn, but this recipe has environments or a tool; "
                "use credit 'igpo', which reads the answer's likelihood at every turn"
            )
        policy: Any = draw.policy
        rollouts = policy.sample(draw.starts, options, seed=draw.seed)
        gold = self.good_chains(policy, draw)
        assert rollouts.tokens is not None
        prompts = present_tokens(rollouts.payload["prompt_tokens"], rollouts.payload["attention"])
        compared: dict[int, Compared] = {}
        for row, problem in enumerate(draw.starts.problems):
            chain = gold[int(rollouts.group[row])]
            written = self._without_end(policy, rollouts.tokens[row][rollouts.mask[row]].tolist())
            if chain and written:
                compared[row] = Compared(prompts[row], written, chain, str(problem.answer))
        parts = dict(zip(compared, self.faithfulness(policy, list(compared.values())), strict=True))
        known = rollouts.metadata or [{}] * len(rollouts)
        rows = [
            {**(data or {}), **({"path_faithfulness": parts[row]} if row in parts else {})}
            for row, data in enumerate(known)
        ]
        rollouts.metadata = NonTensorStack(*rows)  # type: ignore[assignment]  # a list to whoever reads it
        return rollouts

    def good_chains(self, policy: Any, draw: Draw) -> dict[int, list[int]]:
        """The good chain of each group as tokens; none where every chain was dropped."""
        assert draw.starts is not None
        of_group = draw.starts.of_group
        problems = list(of_group.values())
        missing = next((p for p in problems if p.answer is None), None)
        if missing is not None:
            raise RecipeError(
                "source 'gold_chains' needs answers, and a problem has none; use a task that carries them"
            )
        hinted = [replace(p, prompt=self.hint.format(prompt=p.prompt, answer=p.answer)) for p in problems]
        shown = Starts.repeat(hinted, self.chains)
        drawn = policy.sample(shown, draw.sampling, seed=draw.seed + 1)
        lead, end = self.form.split("{}")
        found: list[tuple[int, list[int]]] = []
        for place, text in enumerate(drawn.text):
            own = self._without_end(policy, drawn.tokens[place][drawn.mask[place]].tolist())
            which = place // self.chains
            if own and (not self.contains or str(problems[which].answer) in text):
                found.append((which, own))
        prompts = policy.encode_prompts([p.prompt for p in problems])
        answers = [policy.encode(str(p.answer) + end) for p in problems]
        before = [[*prompts[which], *own, *policy.encode(lead)] for which, own in found]
        score = continuation_logp(policy, before, [answers[which] for which, _ in found]).tolist()
        best: dict[int, tuple[float, list[int]]] = {}
        for (which, own), value in zip(found, score, strict=True):
            if which not in best or value > best[which][0]:
                best[which] = (value, own)
        return {group: best[place][1] if place in best else [] for place, group in enumerate(of_group)}

    def faithfulness(self, policy: Any, rows: Sequence[Compared]) -> list[list[float]]:
        """Of each part but the last, see ``path_faithfulness``; of the last, log pi(y*|q,z) per token.

        All readings of a batch are one call, so that what they share is read once.
        """
        stand_in = policy.encode(self.placeholder)[0] if self.placeholder else policy.pad
        lead, after = self.form.split("{}")
        before: list[Ids] = []
        behind: list[Ids] = []
        shapes: list[tuple[int, list[int], int]] = []
        for prompt, written, chain, answer in rows:
            cuts = chunk_ends(len(written), self.parts)[:-1]
            ends = [chain[start:] for start in (0, *chunk_ends(len(chain), self.parts)[:-1])]
            wanted = policy.encode(answer + after)
            before += [[*prompt, *written[:cut]] for cut in cuts for _ in ends]
            before += [[*prompt, *[stand_in] * cut] for cut in cuts for _ in ends]
            before.append([*prompt, *written, *policy.encode(lead)])
            behind += [*ends * (2 * len(cuts)), wanted]
            shapes.append((len(cuts), [len(end) for end in ends], len(wanted)))
        logp, out, at = continuation_logp(policy, before, behind), [], 0
        for cuts, lengths, tokens in shapes:
            size = cuts * len(lengths)
            given, masked = (logp[at + k * size : at + (k + 1) * size].view(1, cuts, len(lengths)) for k in (0, 1))
            parts = path_faithfulness(given, masked, torch.tensor(lengths))[0].tolist() if cuts else []
            out.append([*parts, float(logp[at + 2 * size]) / tokens])
            at += 2 * size + 1
        return out

    @staticmethod
    def _without_end(policy: Any, tokens: list[int]) -> list[int]:
        return [token for token in tokens if token not in policy.stop_tokens()]
