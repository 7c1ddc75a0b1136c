"""Episodes of a language policy in environments that answer in text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDict
from torch import Tensor

from guerdon.engine.generate import GenerationOptions, SamplingError
from guerdon.engine.turns import Context, Reply, Row, TurnCompletions, rollout_in_turns
from guerdon.policies.rows import present_tokens
from guerdon.rollouts import Rollouts, pad_actions
from guerdon.seeding import derive
from guerdon.tasks.base import Problem, Starts
from guerdon.tasks.environments import EnvironmentTask, Failure, Heard, Session, Step

if TYPE_CHECKING:
    from guerdon.policies.language import LanguagePolicy
    from guerdon.policies.language_sampling import LanguageSampling


class Environments:
    """Environments as the partner of the rows that act in them; remembers what they said."""

    def __init__(
        self,
        session: Session,
        begun: Sequence[Heard],
        *,
        max_turns: int,
        budget: int,
        encode: Callable[[str, bool], list[int]],
        decode: Callable[[list[list[int]]], list[str]],
    ) -> None:
        """Begin with what the environments said first.

        Args:
            session: the episodes.
            begun: what ``session.reset`` gave.
            max_turns: turns after which an episode is cut.
            budget: most tokens of a turn.
            encode: tokens of an observation, given whether the turn before it ended by itself.
            decode: texts of turns.
        """
        self._session, self._max_turns, self._budget = session, max_turns, budget
        self._encode, self._decode = encode, decode
        self.last = list(begun)
        self.states = [[_state(heard)] for heard in begun]
        self.rewards: list[list[float]] = [[] for _ in begun]

    def had(self, row: int, states: Sequence[int], rewards: Sequence[float]) -> None:
        """Let a row have taken turns already: from these states, and with these rewards."""
        self.states[row] = [*states, _state(self.last[row])]
        self.rewards[row] = list(rewards)

    def close(self) -> None:
        """Forget the environments."""
        self._session.close()

    def budget(self, row: int, actions: int) -> int:
        """The same for every turn; none where an environment broke or ended as it began."""
        heard = self.last[row]
        return 0 if isinstance(heard, Failure) or heard.terminated or heard.truncated else self._budget

    def reply(self, rows: Sequence[int], written: Sequence[Sequence[int]], ended: Sequence[bool]) -> list[Reply]:
        """Let the environments take the texts of the turns."""
        texts = self._decode([list(tokens) for tokens in written])
        replies = []
        for row, by_itself, heard in zip(rows, ended, self._session.step(rows, texts), strict=True):
            self.last[row] = heard
            if isinstance(heard, Failure):
                self.rewards[row].append(0.0)
                replies.append(Reply(goes_on=False))
                continue
            self.rewards[row].append(heard.reward)
            over = heard.terminated or heard.truncated
            if over or len(self.rewards[row]) >= self._max_turns:
                replies.append(Reply(goes_on=False, finished=heard.terminated))
                continue
            self.states[row].append(_state(heard))
            replies.append(Reply(self._encode(heard.observation, by_itself)))
        return replies


def play_episodes(
    policy: LanguagePolicy,
    starts: Starts,
    options: LanguageSampling,
    settings: GenerationOptions,
    *,
    seed: int,
) -> Rollouts:
    """Play one episode per start; the prompt is what its environment says first.

    Args:
        policy: writes.
        starts: one problem per episode.
        options: the recipe's, bound to the task that builds the environments.
        settings: how to draw.
        seed: of the draws and of the environments.

    Returns:
        Rollouts with ``turn``, ``state_key`` (N,M) and the reward ``task`` (N,M); ``failure`` says which environments
        broke.
    """
    seeds = [derive(seed, "environment", row) for row in range(len(starts))]
    session = _task(options).begin(starts.problems, seeds)
    begun = session.reset()
    partner = partner_of(policy, options, session, begun)
    first = [opening_of(heard, problem) for heard, problem in zip(begun, starts.problems, strict=True)]
    return _play(policy, starts, first, options, settings, partner, seeds, seed=seed)


def branch_episodes(
    policy: LanguagePolicy,
    starts: Starts,
    rollouts: Rollouts,
    rows: Sequence[int],
    at: Sequence[int],
    options: LanguageSampling,
    *,
    seed: int,
) -> Rollouts:
    """Play episodes that leave earlier ones after some of their turns, and go on by themselves.

    Their environments come to where those stood by taking the same actions again. A branch belongs to the group of the
    episode that it leaves, holds the turns that both share, with what was known of them, and says where it came from in
    ``parent`` and ``branch_at``.

    Args:
        policy: writes.
        starts: what ``rollouts`` were sampled from, row by row.
        rollouts: earlier episodes, from ``sample``.
        rows: which of them each branch leaves.
        at: number of turns that each branch keeps, less than its parent took; 0 begins anew.
        options: as for ``sample``.
        seed: of the draws.

    Raises:
        SamplingError: when a branch would keep as many turns as its parent took, or more.
    """
    parent, kept = torch.tensor(list(rows)), torch.tensor(list(at))
    of, taken = rollouts[parent], rollouts.turn[parent].amax(dim=1) + 1
    wrong = (kept >= taken).nonzero().flatten()
    if len(wrong):
        place = int(wrong[0])
        raise SamplingError(
            f"branch {place} keeps {int(kept[place])} turns of row {int(parent[place])}, which took "
            f"{int(taken[place])}; keep fewer"
        )
    seeds = of.payload["environment_seed"].tolist()
    problems = [starts.problems[row] for row in rows]
    session = _task(options).begin(problems, seeds)
    for row, episode in enumerate(session.episodes):
        turns = [of.tokens[row][of.turn[row] == turn].tolist() for turn in range(at[row])]  # type: ignore[index]
        episode.actions = policy.decode(turns)
    partner = partner_of(policy, options, session, session.reset())
    for row, turns in enumerate(at):
        partner.had(row, of.state_key[row, :turns].tolist(), of.rewards["task"][row, :turns].tolist())  # type: ignore[index]
    branches = _play(
        policy,
        Starts(problems, of.group, int(of.version.max())),
        list(of.prompt or ()),
        options,
        policy.generation(options),
        partner,
        seeds,
        seed=seed,
        begun=[_part(policy, of, row, turns) for row, turns in enumerate(at)],
    )
    branches.parent = parent
    branches.branch_at = (branches.turn < kept.unsqueeze(1)).logical_and(branches.mask).sum(dim=1)
    return branches


def _task(options: LanguageSampling) -> EnvironmentTask:
    if options.environments is None:
        raise SamplingError("these sampling options know of no environments; bind them to the task (bound_to)")
    return options.environments


def partner_of(
    policy: LanguagePolicy, options: LanguageSampling, session: Session, begun: Sequence[Heard]
) -> Environments:
    """What replies to the policy's turns, once the environments have begun."""
    return Environments(
        session,
        begun,
        max_turns=_task(options).max_turns,
        budget=options.max_new_tokens,
        encode=policy.encode_observation,
        decode=policy.decode,
    )


def opening_of(heard: Heard, problem: Problem) -> str:
    """What an episode begins with: the first observation, or the prompt where there is none."""
    return heard.observation if isinstance(heard, Step) else problem.prompt


def _part(policy: LanguagePolicy, of: Rollouts, row: int, turns: int) -> Row:
    """The first turns of an episode as they stand in rollouts."""
    assert of.tokens is not None
    width, entropy = of.mask.shape[1], of.entropy
    prompt = present_tokens(of.payload["prompt_tokens"][row : row + 1], of.payload["attention"][row : row + 1])[0]
    out = TurnCompletions(
        tokens=of.tokens,
        mask=of.mask,
        logp=of.old_logp,
        entropy=torch.zeros_like(of.old_logp) if entropy is None else entropy,
        sampled_logp=torch.zeros_like(of.old_logp),
        finished=of.done,
        present=of.payload["attention"][:, -width:],
        turn=of.turn,
        begins=of.payload.get("begins", torch.zeros_like(of.turn)),
    )
    return Row.part(prompt, out, row, turns)


def _play(
    policy: LanguagePolicy,
    starts: Starts,
    first: Sequence[str],
    options: LanguageSampling,
    settings: GenerationOptions,
    partner: Environments,
    seeds: Sequence[int],
    *,
    seed: int,
    begun: Sequence[Row] | None = None,
) -> Rollouts:
    prompts = policy.encode_prompts(first)
    try:
        out = rollout_in_turns(
            policy.write,
            prompts,
            settings,
            partner,
            seed=seed,
            pad=policy.pad,
            path="turn",
            context=Context(options.context, options.truncation),
            begun=begun,
        )
    finally:
        partner.close()
    problems = [replace(problem, prompt=text) for problem, text in zip(starts.problems, first, strict=True)]
    rollouts = rollouts_of(policy, Starts(problems, starts.group, starts.version), prompts, out, options, partner)
    rollouts.payload["environment_seed"] = torch.tensor(list(seeds), dtype=torch.int64)
    return rollouts


def rollouts_of(
    policy: LanguagePolicy,
    starts: Starts,
    prompts: Sequence[Sequence[int]],
    out: TurnCompletions,
    options: LanguageSampling,
    partner: Environments,
) -> Rollouts:
    """The batch of finished episodes."""
    turns = max((len(rewards) for rewards in partner.rewards), default=0)
    # One number per turn must never look like one per action.
    width = out.tokens.shape[1] + (out.tokens.shape[1] == turns)
    columns = {
        name: pad_actions(getattr(out, name), width) for name in ("mask", "logp", "entropy", "present", "begins")
    }
    extra = {"begins": columns["begins"]} if bool((columns["begins"] > 0).any()) else {}
    ended = [isinstance(heard, Step) and heard.terminated for heard in partner.last]
    failures = [heard if isinstance(heard, Failure) else None for heard in partner.last]
    rollouts = policy.as_rollouts(
        starts,
        prompts,
        pad_actions(out.tokens, width, policy.pad),
        columns["mask"],
        columns["logp"],
        options,
        finished=torch.tensor(ended),
        entropy=columns["entropy"],
        present=columns["present"],
        payload=extra,
        turn=pad_actions(out.turn, width, -1),
        state_key=_padded([keys[:turns] for keys in partner.states], turns, torch.int64),
        failure=[None if failure is None else tuple(failure) for failure in failures],
    )
    rewards = _padded(partner.rewards, turns, torch.float32)
    rollouts.rewards = TensorDict({"task": rewards}, [len(rollouts)])
    return rollouts


def _padded(rows: Sequence[Sequence[Any]], width: int, dtype: torch.dtype) -> Tensor:
    out = torch.zeros(len(rows), width, dtype=dtype)
    for row, values in enumerate(rows):
        out[row, : len(values)] = torch.tensor(list(values), dtype=dtype)
    return out


def _state(heard: Heard) -> int:
    return heard.info["state_key"] if isinstance(heard, Step) else 0
