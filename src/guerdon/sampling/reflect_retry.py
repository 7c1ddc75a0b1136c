"""Another try for every attempt, from the step that a reflection names, with advice that is taken away afterwards."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import BeforeValidator, Field
from tensordict import NonTensorStack
from torch import Tensor

from guerdon.engine.padding import left_pad
from guerdon.errors import RecipeError
from guerdon.registry import imported, register
from guerdon.rollouts import Rollouts
from guerdon.sampling.sources import Draw, Source
from guerdon.seeding import derive
from guerdon.tasks.base import Problem, Starts

if TYPE_CHECKING:
    from guerdon.policies.language import LanguagePolicy
    from guerdon.policies.language_sampling import LanguageSampling

# Given n prompts, n transcripts with numbered steps and n rewards: n reports, as texts.
Reflect = Callable[[Sequence[str], Sequence[str], Sequence[float]], Sequence[str]]

QUESTION = (
    "{prompt}\n{transcript}\nThe outcome was {reward:g}. Look back on this attempt and answer in JSON: "
    '{{"outcome": "perfect" or "flawed", "diagnosis": what went wrong, "retry_from_step": number of the first step to '
    'be taken anew, "guidance": what to do there}}\n'
)
ADVICE = "{prompt}\nAdvice from an earlier attempt: {guidance}\n"


@dataclass(frozen=True)
class Report:
    """What a reflection says of an attempt.

    Attributes:
        perfect: nothing is to be done better.
        retry_from: turns that are kept; the next one is the first to be taken anew.
        guidance: advice for it.
        diagnosis: what went wrong.
    """

    perfect: bool
    retry_from: int = 0
    guidance: str = ""
    diagnosis: str = ""


def read_report(text: str, turns: int) -> Report | None:
    """The report in a text, or None if there is none that can be followed: no JSON, or no such step.

    Args:
        text: holds a JSON object with ``outcome``, ``diagnosis``, ``retry_from_step`` and ``guidance``, in whatever
            else was written around it.
        turns: turns that the attempt took. The step counts these, from 0, and not messages.

    Source: R^3L, Reflect-then-Retry Reinforcement Learning.
    """
    found = re.search(r"\{.*\}", text, re.DOTALL)
    try:
        said = json.loads(found[0]) if found else None
    except (json.JSONDecodeError, RecursionError):
        return None
    if not isinstance(said, dict):
        return None
    diagnosis = str(said.get("diagnosis", ""))
    if str(said.get("outcome", "")).strip().lower() == "perfect":
        return Report(perfect=True, diagnosis=diagnosis)
    step, guidance = said.get("retry_from_step"), said.get("guidance")
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < turns:
        return None
    if not isinstance(guidance, str) or not guidance.strip():
        return None
    return Report(perfect=False, retry_from=step, guidance=guidance.strip(), diagnosis=diagnosis)


def improved(first: Tensor, second: Tensor, *, success: float = 1.0) -> Tensor:
    """(B,) whether a retry is worth teaching with its advice: r2 > r1 and r2 >= success.

    Args:
        first, second: (B,) rewards of attempts and of their retries; NaN never counts.
        success: reward of a full success.

    Source: R^3L, Reflect-then-Retry Reinforcement Learning.
    """
    return (second > first) & (second >= success)


@register("source", "reflect_retry", paper="R^3L: Reflect-then-Retry Reinforcement Learning")
class ReflectRetry(Source):
    """One more try for every attempt that a reflection finds fault with, from the step where it went wrong.

    The first turns are played again and kept, the rest is written anew with advice in the prompt. What is learned from
    is the distilled retry: the same actions behind the plain prompt, in the group of the attempt, marked ``external``,
    with the present policy's log-probabilities in the plain context; a ratio to how likely they were with the advice
    would mean nothing. So objectives must name ``external``, as ``opmd`` does. Both attempt and retry remember in
    their metadata, as ``pivot``, how many turns they share, which credit ``pivotal`` clears. A retry that succeeds
    where the attempt had not is also added as it was written, advice included, in a group of its own, so that the
    policy learns to follow advice (``teach``).

    Set ``sampling.group_size`` to half of the trajectories that a problem shall have. Answers of one turn are always
    retried from the start. The advice stands at the end of the first prompt, also where later turns are retried. (The
    source also trains on the text of helpful reflections. A recipe's rewards would score these as answers, so they are
    left out here.)

    Args:
        reflector: given n prompts, n transcripts and n rewards, returns n reports as texts: a function, or an import
            path to one. By default the policy reflects itself.
        report_tokens: most tokens of a report that the policy writes.
        success: raw weighted reward of a full success.
        teach: add successful retries with their advice.
        question, advice: how the policy is asked, and how advice is given.

    Source: R^3L, Reflect-then-Retry Reinforcement Learning, and its code.
    """

    when = "scoring"
    external = True

    def __init__(
        self,
        *,
        reflector: Annotated[Reflect | None, BeforeValidator(imported)] = None,
        report_tokens: Annotated[int, Field(ge=1)] = 256,
        success: float = 1.0,
        teach: bool = True,
        question: str = QUESTION,
        advice: str = ADVICE,
    ) -> None:
        self.reflector, self.report_tokens, self.success, self.teach = reflector, report_tokens, success, teach
        self.question, self.advice = question, advice
        self._retried: list[tuple[int, int, str]] = []  # of this step: attempt, retry, and the prompt with its advice

    def draw(self, draw: Draw) -> Rollouts | None:
        """The distilled retries first, and those that taught something with their advice then."""
        policy, options = _writer(draw)
        batch, starts = draw.rollouts, draw.starts
        assert batch is not None
        assert draw.reward is not None
        assert starts is not None
        if draw.round == 0:
            self._retried = []
            return self._retry(draw, policy, options, batch, draw.reward, starts.of_group)
        if draw.round > 1 or not self.teach or not self._retried:
            return None
        attempt, retry = (torch.tensor([each[place] for each in self._retried]) for place in (0, 1))
        kept = improved(draw.reward[attempt], draw.reward[retry], success=self.success).tolist()
        chosen = [each for each, good in zip(self._retried, kept, strict=True) if good]
        if not chosen:
            return None
        texts = [text for _, _, text in chosen]
        taught = with_prompts(policy, batch[torch.tensor([row for _, row, _ in chosen])], texts)
        taught.group = batch.group.max() + 1 + torch.arange(len(taught))
        taught.prompt = NonTensorStack(*texts)  # type: ignore[assignment]
        return _as_external(policy, taught)

    def _retry(
        self,
        draw: Draw,
        policy: LanguagePolicy,
        options: LanguageSampling,
        batch: Rollouts,
        reward: Tensor,
        problems: dict[int, Problem],
    ) -> Rollouts | None:
        """Retries of the attempts that a report finds fault with, without their advice."""
        own = reward.isfinite() & batch.mask.any(dim=1)
        own = own if batch.external is None else own & ~batch.external.any(dim=1)
        asked = own.nonzero().flatten().tolist()
        turns = (batch.turn.amax(dim=1) + 1).tolist() if options.environments is not None else [1] * len(batch)
        said = self._reflect(draw, policy, options, batch, asked, [float(reward[row]) for row in asked])
        reports = {row: read_report(text, turns[row]) for row, text in zip(asked, said, strict=True)}
        flawed = {row: report for row, report in reports.items() if report is not None and not report.perfect}
        if not flawed:
            return None
        assert batch.prompt is not None
        rows, kept = list(flawed), [report.retry_from for report in flawed.values()]
        texts = [self.advice.format(prompt=batch.prompt[row], guidance=flawed[row].guidance) for row in rows]
        plain = Starts([problems[int(batch.group[row])] for row in rows], batch.group[rows], draw.step)
        if options.environments is None:
            guided = [replace(problem, prompt=text) for problem, text in zip(plain.problems, texts, strict=True)]
            seen = policy.sample(Starts(guided, plain.group, draw.step), options, seed=draw.seed)
            retries = with_prompts(policy, seen, [problem.prompt for problem in plain.problems])
            retries.prompt = NonTensorStack(*[problem.prompt for problem in plain.problems])  # type: ignore[assignment]
        else:
            from guerdon.policies.episodes import branch_episodes

            begun = with_prompts(policy, batch[torch.tensor(rows)], texts)
            # What is read is the prompt with advice; what the rows then hold is the prompt as the batch has it.
            retries = branch_episodes(policy, plain, begun, range(len(rows)), kept, options, seed=draw.seed)
            retries.parent = retries.branch_at = None
        _remember(batch, rows, kept)
        _remember(retries, range(len(rows)), kept)
        self._retried = [
            (row, len(batch) + place, text) for place, (row, text) in enumerate(zip(rows, texts, strict=True))
        ]
        return _as_external(policy, retries)

    def _reflect(
        self,
        draw: Draw,
        policy: LanguagePolicy,
        options: LanguageSampling,
        batch: Rollouts,
        rows: Sequence[int],
        reward: Sequence[float],
    ) -> Sequence[str]:
        """A report on each of some rows."""
        if not rows:
            return []
        assert batch.prompt is not None
        prompts, seen = [batch.prompt[row] for row in rows], [transcript(policy, batch, row) for row in rows]
        if self.reflector is not None:
            said = list(self.reflector(prompts, seen, reward))
            if len(said) != len(rows):
                raise RecipeError(f"source 'reflect_retry': the reflector gave {len(said)} reports on {len(rows)} rows")
            return said
        asked = [
            self.question.format(prompt=prompt, transcript=text, reward=r)
            for prompt, text, r in zip(prompts, seen, reward, strict=True)
        ]
        settings = policy.generation(options.model_copy(update={"max_new_tokens": self.report_tokens, "stop": []}))
        out = policy.write(policy.encode_prompts(asked), settings, seed=derive(draw.seed, "reflect"))
        return policy.decode([tokens[drawn].tolist() for tokens, drawn in zip(out.tokens, out.mask, strict=True)])


def transcript(policy: LanguagePolicy, rollouts: Rollouts, row: int) -> str:
    """What one trajectory says, each turn of the policy behind its number, each reply on a line of its own."""
    assert rollouts.tokens is not None
    width = rollouts.mask.shape[1]
    present = rollouts.payload["attention"][row, -width:]
    turns, tokens = rollouts.turn[row][present].tolist(), rollouts.tokens[row][present].tolist()
    pieces = [
        (turn, [token for token, _ in part])
        for turn, part in groupby(zip(tokens, turns, strict=True), lambda pair: pair[1])
    ]
    texts = policy.decode([part for _, part in pieces])
    return "\n".join(f"[{turn}] {text}" if turn >= 0 else text for (turn, _), text in zip(pieces, texts, strict=True))


def with_prompts(policy: LanguagePolicy, rollouts: Rollouts, prompts: Sequence[str]) -> Rollouts:
    """The same trajectories behind other prompts; their log-probabilities are as they were, and so are their texts."""
    tokens, present = left_pad(policy.encode_prompts(list(prompts)), policy.pad)
    out = rollouts.clone(recurse=False)
    width = rollouts.mask.shape[1]
    payload = rollouts.payload.clone(recurse=False)
    payload["prompt_tokens"] = tokens
    payload["attention"] = torch.cat([present, rollouts.payload["attention"][:, -width:]], dim=1)
    out.payload = payload
    return out


def _as_external(policy: LanguagePolicy, rollouts: Rollouts) -> Rollouts:
    """Rows that the policy would not have written in this context, with what it says of them there."""
    policy.module.eval()
    now = policy.evaluate(rollouts)
    rollouts.old_logp, rollouts.entropy = now.logp, now.entropy
    rollouts.external = rollouts.mask.clone()
    return rollouts


def _remember(rollouts: Rollouts, rows: Sequence[int], kept: Sequence[int]) -> None:
    """Note in the metadata of some rows how many turns an attempt and its retry share."""
    known = [dict(each) for each in rollouts.metadata or [{}] * len(rollouts)]
    for row, turns in zip(rows, kept, strict=True):
        known[row]["pivot"] = turns
    rollouts.metadata = NonTensorStack(*known)  # type: ignore[assignment]


def _writer(draw: Draw) -> tuple[LanguagePolicy, LanguageSampling]:
    from guerdon.policies.language import LanguagePolicy
    from guerdon.policies.language_sampling import LanguageSampling

    policy, options = draw.policy, draw.sampling
    if not isinstance(policy, LanguagePolicy) or not isinstance(options, LanguageSampling):
        raise RecipeError(
            f"source 'reflect_retry' needs a policy that writes, and '{type(policy).__name__}' does not; use policy "
            "'tiny_lm' or 'causal_lm'"
        )
    if options.tool is not None:
        raise RecipeError("source 'reflect_retry' can't go back to a point between calls; remove 'sampling.tool'")
    return policy, options
