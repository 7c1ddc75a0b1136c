"""Failed tool calls, taken out of a trajectory once the policy has found the call that works."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field

from guerdon.engine.turns import Context, Reply, Row, together
from guerdon.errors import RecipeError
from guerdon.policies import episodes
from guerdon.registry import register
from guerdon.rollouts import Rollouts
from guerdon.sampling.sources import Draw, Source
from guerdon.seeding import derive, torch_generator
from guerdon.tasks.base import Starts
from guerdon.tasks.environments import Step

if TYPE_CHECKING:
    from guerdon.policies.language import LanguagePolicy
    from guerdon.policies.language_sampling import LanguageSampling

# What an observation of a failed call contains; the last is how guerdon's own toolbox begins one.
ERRORS = (
    "SyntaxError",
    "IndentationError",
    "NameError",
    "TypeError",
    "ValueError",
    "IndexError",
    "KeyError",
    "AttributeError",
    "ImportError",
    "ModuleNotFoundError",
    "ZeroDivisionError",
    "RuntimeError",
    "RecursionError",
    "TimeoutError",
    "Timeout",
    "timed out",
    "error:",
)
CALL = r"(?s)<tool_call>(.*?)</tool_call>|<code>(.*?)</code>|```(.*?)```"


class Spliced(NamedTuple):
    """A turn in which a failed call has been replaced.

    Attributes:
        text: of the turn.
        kind: ``call`` where the old reasoning stays, ``turn`` where everything is new.
        similarity: of the two calls; 0 where one turn has none.
    """

    text: str
    kind: Literal["call", "turn"]
    similarity: float


def tool_failed(observation: str, errors: Sequence[str] = ERRORS) -> bool:
    """Whether an observation tells of a failed call: it contains one of some words."""
    return any(word in observation for word in errors)


def splice_turn(old: str, new: str, *, sim_threshold: float = 0.5, call: str = CALL) -> Spliced:
    """Put the call that works in the place of the one that failed.

    sim = 2 matching characters / all characters of both calls;  old reasoning + new call if sim >= threshold, else the
    new turn

    A small correction leaves the reasoning that led to the call as it was. Where the call has become another one, its
    reasoning belongs to it, and the whole turn is replaced; so it is where either turn has no call.

    Args:
        old: the turn whose call failed.
        new: the turn that the policy wrote once it had read the error.
        sim_threshold: similarity of the calls from which on only the call is replaced.
        call: regular expression of a call. What its groups match, if it has any, is compared, so that marks around
            calls make none alike. A turn's reasoning is what stands before its first call; what follows the call is the
            new turn's.

    Source: CLEANER, Self-Purified Trajectories Boost Agentic Reinforcement Learning, and its code.
    """
    failed, works = re.search(call, old), re.search(call, new)
    if failed is None or works is None:
        return Spliced(new, "turn", 0.0)
    similarity = SequenceMatcher(None, _inside(failed), _inside(works)).ratio()
    if similarity < sim_threshold:
        return Spliced(new, "turn", similarity)
    return Spliced(old[: failed.start()] + new[works.start() :], "call", similarity)


def _inside(call: re.Match[str]) -> str:
    return next((part for part in call.groups() if part is not None), call[0])


@register("source", "saar_rollback", paper="CLEANER: Self-Purified Trajectories Boost Agentic Reinforcement Learning")
class SaarRollback(Source):
    """Episodes whose failed tool calls are taken back once a retry has worked, as if they had not happened.

    The policy reads the error and writes on. When that turn's call works, both return to where they were before the
    failed call, the turn is replaced by ``splice_turn`` of the two, and made: neither the error nor the failed call is
    left in the context. After ``retries`` failures in one place, where the spliced call fails itself, or where the
    episode ends before, everything stays as it happened. Log-probabilities are those of the present policy on the text
    as it stands.

    Without it, credit for a finally successful episode rewards the failed calls in it too. It stands for the plain
    samples of a task of several turns. Evaluation goes on to sample without it, so the errors that are left are seen
    there. A rolled back environment is brought back by replaying its actions.

    Args:
        retries: failures in one place before it is given up.
        most_calls: calls of a trajectory after which nothing is taken back any more.
        probability: share of trajectories that take back at all, so that the policy still sees errors; the source has
            1, and 0.7 for its largest model.
        sim_threshold, call: see ``splice_turn``. Where a turn is nothing but a call, give ``(?s).+``.
        errors: what an observation of a failed call contains.

    Source: CLEANER, Self-Purified Trajectories Boost Agentic Reinforcement Learning, and its code.
    """

    when = "sampling"
    replaces = True

    def __init__(
        self,
        *,
        retries: Annotated[int, Field(ge=1)] = 3,
        most_calls: Annotated[int, Field(ge=0)] = 30,
        probability: Annotated[float, Field(ge=0, le=1)] = 1.0,
        sim_threshold: Annotated[float, Field(ge=0, le=1)] = 0.5,
        call: str = CALL,
        errors: tuple[str, ...] = ERRORS,
    ) -> None:
        self.retries, self.most_calls, self.probability = retries, most_calls, probability
        self.sim_threshold, self.call, self.errors = sim_threshold, call, errors

    def draw(self, draw: Draw) -> Rollouts:
        """The episodes of the batch."""
        from guerdon.policies.language import LanguagePolicy
        from guerdon.policies.language_sampling import LanguageSampling

        policy, options = draw.policy, draw.sampling
        if isinstance(policy, LanguagePolicy) and isinstance(options, LanguageSampling) and options.environments:
            assert draw.starts is not None
            return _Rollback(self, policy, options, draw.starts, draw.seed).play()
        raise RecipeError(
            f"source 'saar_rollback' takes back turns, and task '{type(draw.task).__name__}' has none; use a task of "
            "several turns, such as 'python_agent'"
        )


@dataclass
class _Trial:
    """A failed call that may be taken back: what stood before it, and how often it has failed."""

    row: Row
    heard: Step
    states: list[int]
    rewards: list[float]
    actions: list[str]
    turn: str
    failures: int = 1


class _Rollback:
    """One batch of episodes."""

    def __init__(
        self, source: SaarRollback, policy: LanguagePolicy, options: LanguageSampling, starts: Starts, seed: int
    ) -> None:
        self.source, self.policy, self.options, self.starts, self.seed = source, policy, options, starts, seed
        self.seeds = [derive(seed, "environment", row) for row in range(len(starts))]
        assert options.environments is not None
        self.session = options.environments.begin(starts.problems, self.seeds)
        self.trials: dict[int, _Trial] = {}
        self.calls, self.edited = [0] * len(starts), False
        chance = torch.rand(len(starts), generator=torch_generator(seed, "rollback"))
        self.allowed = (chance < source.probability).tolist()

    def play(self) -> Rollouts:
        """All of them."""
        try:
            return self._played()
        finally:
            self.session.close()

    def _played(self) -> Rollouts:
        policy, starts = self.policy, self.starts
        begun = self.session.reset()
        self.partner = episodes.partner_of(policy, self.options, self.session, begun)
        first = [episodes.opening_of(heard, p) for heard, p in zip(begun, starts.problems, strict=True)]
        prompts = policy.encode_prompts(first)
        self.rows = [Row(prompt) for prompt in prompts]
        settings, context = policy.generation(self.options), Context(self.options.context, self.options.truncation)
        writing, turn = [row for row in range(len(starts)) if self.partner.budget(row, 0) > 0], 0
        while writing:
            ready = [row for row in writing if self.rows[row].fits(context, self.options.max_new_tokens)]
            for row in set(writing) - set(ready):
                self.rows[row].forget_reply()
            if not ready:
                break
            before = {row: copy.deepcopy(self.rows[row]) for row in ready}
            out = policy.write(
                [self.rows[row].prefix() for row in ready],
                settings,
                seed=derive(self.seed, "turn", turn) if turn else self.seed,
                rows=ready,
                budgets=[self.partner.budget(row, self.rows[row].actions) for row in ready],
            )
            drawn = [self.rows[row].take(out, place) for place, row in enumerate(ready)]
            writing, turn = self._heard(ready, before, drawn, out.finished.tolist()), turn + 1
        problems = [replace(problem, prompt=text) for problem, text in zip(starts.problems, first, strict=True)]
        rollouts = episodes.rollouts_of(
            policy,
            Starts(problems, starts.group, starts.version),
            prompts,
            together(self.rows, policy.pad),
            self.options,
            self.partner,
        )
        rollouts.payload["environment_seed"] = torch.tensor(self.seeds, dtype=torch.int64)
        if self.edited:
            policy.module.eval()
            with torch.no_grad():
                now = policy.evaluate(rollouts)
            rollouts.old_logp, rollouts.entropy = now.logp, now.entropy
        return rollouts

    def _heard(self, ready: list[int], before: dict[int, Row], drawn: list[list[int]], ended: list[bool]) -> list[int]:
        """Let the environments answer what was drawn, and take back what has been put right; who goes on."""
        known = {row: self._now(row) for row in ready}
        replies = self.partner.reply(ready, drawn, ended)
        going, undone = [], {}
        for row, tokens, by_itself, reply in zip(ready, drawn, ended, replies, strict=True):
            self._follow(row, reply)
            self.calls[row] += 1
            failed, trial = self._failed(row), self.trials.get(row)
            if trial is None and failed and reply.goes_on and self._may(row):
                self.trials[row] = _Trial(before[row], *known[row], turn=self.policy.decode([tokens])[0])
            elif trial is not None and failed:
                trial.failures += 1
                if trial.failures > self.source.retries or not self._may(row):
                    del self.trials[row]
            elif trial is not None and isinstance(self.partner.last[row], Step):
                undone[row] = self._edited(self.trials.pop(row), tokens, by_itself)
            if reply.goes_on and row not in undone:
                going.append(row)
        return sorted(going + self._remake(undone))

    def _edited(self, trial: _Trial, tokens: list[int], by_itself: bool) -> tuple[_Trial, list[int], bool]:
        """The turn that takes the place of the failed one."""
        new = self.policy.decode([tokens])[0]
        text = splice_turn(trial.turn, new, sim_threshold=self.source.sim_threshold, call=self.source.call).text
        if text != new:
            tokens = self.policy.encode_answer(text) if by_itself else self.policy.encode(text)
        return trial, tokens, by_itself

    def _remake(self, undone: dict[int, tuple[_Trial, list[int], bool]]) -> list[int]:
        """Go back and make the edited turns; where one fails after all, come back to what happened. Who goes on."""
        if not undone:
            return []
        happened = {row: (self.rows[row], *self._now(row)) for row in undone}
        for row, (trial, _, _) in undone.items():
            self._restore(row, trial.row, trial.heard, trial.states, trial.rewards, trial.actions)
        self.session.replay(undone)
        rows = list(undone)
        for row in rows:
            self.rows[row].write(undone[row][1])
        replies = self.partner.reply(rows, [undone[row][1] for row in rows], [undone[row][2] for row in rows])
        going, lost = [], []
        for row, reply in zip(rows, replies, strict=True):
            if not isinstance(self.partner.last[row], Step) or self._failed(row):
                self._restore(row, *happened[row])
                lost.append(row)
                going += [row] if self._goes_on(row) else []
                continue
            self.calls[row] += 1
            self.edited = True
            self._follow(row, reply)
            going += [row] if reply.goes_on else []
        if lost:
            self.session.replay(lost)
        return going

    def _follow(self, row: int, reply: Reply) -> None:
        if reply.tokens:
            self.rows[row].insert(reply.tokens)
        self.rows[row].turns += reply.answers
        self.rows[row].finished = reply.finished

    def _now(self, row: int) -> tuple[Any, list[int], list[float], list[str]]:
        partner = self.partner
        actions = self.session.episodes[row].actions
        return partner.last[row], list(partner.states[row]), list(partner.rewards[row]), list(actions)

    def _restore(
        self, row: int, written: Row, heard: Any, states: list[int], rewards: list[float], actions: list[str]
    ) -> None:
        self.rows[row], self.partner.last[row] = written, heard
        self.partner.states[row], self.partner.rewards[row] = list(states), list(rewards)
        self.session.episodes[row].actions = list(actions)

    def _failed(self, row: int) -> bool:
        heard = self.partner.last[row]
        return isinstance(heard, Step) and tool_failed(heard.observation, self.source.errors)

    def _goes_on(self, row: int) -> bool:
        heard, task = self.partner.last[row], self.options.environments
        assert task is not None
        over = not isinstance(heard, Step) or heard.terminated or heard.truncated
        return not over and len(self.partner.rewards[row]) < task.max_turns

    def _may(self, row: int) -> bool:
        return self.allowed[row] and self.calls[row] < self.source.most_calls
