"""Asking for the answer before it is given: what would it be at the end of every step of a text, and how sure is it?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from tensordict import NonTensorStack
from torch import Tensor

from guerdon.engine.generate import GenerationOptions
from guerdon.engine.logits import token_logp
from guerdon.engine.padding import right_pad
from guerdon.engine.reading import read
from guerdon.errors import RecipeError
from guerdon.policies.rows import before_actions, present_tokens
from guerdon.registry import register
from guerdon.rollouts import Rollouts
from guerdon.sampling.sources import Draw, Source

Count = Annotated[int, Field(ge=1)]
Probe = Literal["mean_prob", "released"]


def probe_accuracy(logp: Tensor, valid: Tensor, *, probe: Probe = "mean_prob") -> Tensor:
    """Probability of the right answer: the mean over its tokens, or exp(sum_m log p_m) / n (``released``).

    Args:
        logp: (R,A) log-probability of each token of the answer, given those before.
        valid: (R,A) true where there is a token; nothing else is read.
        probe: which of the two.

    Returns:
        (R,) in [0,1].
    """
    count = valid.sum(dim=1).clamp(min=1)
    if probe == "released":
        return torch.where(valid, logp, 0.0).sum(dim=1).exp() / count
    return torch.where(valid, logp, -torch.inf).exp().sum(dim=1) / count


def probe_confidence(entropy: Tensor, valid: Tensor, *, probe: Probe = "mean_prob") -> Tensor:
    """How sure answers are: exp(-mean_l H_l) for each, and the mean; or exp(-sum_l H_l) / length (``released``).

    Args:
        entropy: (R,S,L) entropy in nats at each token of S sampled answers.
        valid: (R,S,L) true where there is a token; nothing else is read.
        probe: which of the two.

    Returns:
        (R,) in [0,1]; an answer without tokens counts as sure.
    """
    total, count = torch.where(valid, entropy, 0.0).sum(dim=2), valid.sum(dim=2).clamp(min=1)
    each = (-total).exp() / count if probe == "released" else (-total / count).exp()
    return each.mean(dim=1)


def step_ends(pieces: Sequence[str], delimiter: str, until: str | None) -> list[int]:
    """Which tokens of a text end a step: those with which a delimiter is complete, before a mark.

    Args:
        pieces: text of each token.
        delimiter: what ends a step.
        until: what ends the steps, as the end of thinking; the whole text if None or if it does not occur.
    """
    text = "".join(pieces)
    limit = text.find(until) if until else -1
    limit = len(text) if limit < 0 else limit
    ends, out, at = [], [], text.find(delimiter)
    while at >= 0 and at + len(delimiter) <= limit:
        ends.append(at + len(delimiter))
        at = text.find(delimiter, at + len(delimiter))
    reached, waiting = 0, iter([*ends, None])
    want = next(waiting)
    for place, piece in enumerate(pieces):
        reached += len(piece)
        if want is not None and reached >= want:
            out.append(place)
            while want is not None and reached >= want:
                want = next(waiting)
    return out


@register("source", "step_probe", paper="Step Potential Advantage Estimation, 2026")
class StepProbe(Source):
    """The policy's own completions, probed at the end of every step for credit ``spae``.

    At each end a text that asks for the answer is put behind what was written so far: the probability of the reference
    there is the accuracy, and the entropy of a few sampled answers says how sure the policy is. Both go to the metadata
    as ``step_probe``. Probes have no gradient and are no part of the batch. For tasks of one turn, without a tool; it
    costs a reading and ``samples`` short answers per step.

    Args:
        delimiter: what ends a step.
        until: mark behind which there are no steps; None for the whole text.
        ask: what asks for the answer.
        samples: answers sampled at each end.
        tokens: longest sampled answer.
        probe: ``mean_prob``: means over tokens. ``released``: the published script's sums divided by length, over at
            most as many tokens as the reference has; its cut of entropies to the 20 likeliest tokens is left out.

    Source: Step Potential Advantage Estimation, 2026, with its code.
    """

    when = "sampling"
    replaces = True

    def __init__(
        self,
        *,
        delimiter: Annotated[str, Field(min_length=1)] = ".\n\n",
        until: str | None = "</think>",
        ask: str = "**Final Answer**\n\\boxed{",
        samples: Count = 5,
        tokens: Count = 10,
        probe: Probe = "mean_prob",
    ) -> None:
        self.probe: Probe = probe
        self.delimiter, self.until, self.ask = delimiter, until, ask
        self.samples, self.tokens = samples, tokens

    def draw(self, draw: Draw) -> Rollouts:
        """The completions, with what probes say of them in the metadata."""
        assert draw.starts is not None
        options: Any = draw.sampling
        if getattr(options, "environments", None) is not None or getattr(options, "tool", None) is not None:
            raise RecipeError(
                "source 'step_probe' probes completions of one turn, but this recipe has environments or a tool; use "
                "credit 'igpo', which reads the answer's likelihood at every turn"
            )
        policy: Any = draw.policy
        rollouts = policy.sample(draw.starts, options, seed=draw.seed)
        texts = policy.token_text(rollouts)
        ends = [step_ends(pieces, self.delimiter, self.until) for pieces in texts]
        accuracy, confidence = self.probes(policy, rollouts, ends, draw.seed)
        rows, at = [], 0
        for data, mine in zip(rollouts.metadata, ends, strict=True):
            found = slice(at, at + len(mine))
            known = {"ends": mine, "accuracy": accuracy[found], "confidence": confidence[found]}
            rows.append({**(data or {}), "step_probe": known})
            at += len(mine)
        rollouts.metadata = NonTensorStack(*rows)
        return rollouts

    @torch.no_grad()
    def probes(
        self, policy: Any, rollouts: Rollouts, ends: Sequence[Sequence[int]], seed: int
    ) -> tuple[list[float], list[float]]:
        """Accuracy and confidence at each end of each row, in this order.

        Args:
            policy: a language policy.
            rollouts: its completions.
            ends: for each, which of its actions end a step.
            seed: of the sampled answers.
        """
        assert rollouts.tokens is not None
        prompts = present_tokens(rollouts.payload["prompt_tokens"], rollouts.payload["attention"])
        ask, prefixes, answers = policy.encode(self.ask), [], []
        for row, mine in enumerate(ends):
            written = rollouts.tokens[row][rollouts.mask[row]].tolist()
            answer = policy.encode(str((rollouts.answer or [])[row])) if mine else []
            prefixes += [[*prompts[row], *written[: end + 1], *ask] for end in mine]
            answers += [answer] * len(mine)
        if not prefixes:
            return [], []
        ids, attention = right_pad([[*p, *a] for p, a in zip(prefixes, answers, strict=True)], policy.pad)
        columns, start = torch.arange(ids.shape[1]), torch.tensor([len(p) for p in prefixes]).unsqueeze(1)
        scored = (columns >= start) & attention
        policy.module.eval()
        states = read(policy.model, ids, attention, before_actions(scored, attention), max_tokens=policy.max_tokens)
        known, _ = token_logp(policy.model.project, states, ids[scored], torch.ones(len(states)))
        logp = torch.zeros(ids.shape).masked_scatter(scored, known)
        settings = GenerationOptions(max_new_tokens=self.tokens, stop_tokens=policy.stop_tokens())
        tried = policy.write([p for p in prefixes for _ in range(self.samples)], settings, seed=seed + 1)
        entropy, valid = (x.view(len(prefixes), self.samples, -1) for x in (tried.entropy, tried.mask))
        if self.probe == "released":
            shown = torch.tensor([len(a) for a in answers]).view(-1, 1, 1)
            valid = valid & (torch.arange(valid.shape[2]) < shown)
        accuracy = probe_accuracy(logp, scored, probe=self.probe)
        return accuracy.tolist(), probe_confidence(entropy, valid, probe=self.probe).tolist()
