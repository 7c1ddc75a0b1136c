"""Language policies: what the tiny transformer and any Hugging Face causal LM share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from guerdon.engine.filters import keep_listed
from guerdon.engine.generate import Completions, GenerationOptions, generate
from guerdon.engine.logits import token_logp
from guerdon.engine.padding import left_pad, right_pad
from guerdon.engine.reading import LanguageModel, read
from guerdon.engine.tools import rollout_with_tool
from guerdon.engine.turns import TurnCompletions
from guerdon.errors import RecipeError
from guerdon.objectives.entropy import categorical_entropy
from guerdon.policies.base import Evaluation, Policy
from guerdon.policies.branches import branch_completions
from guerdon.policies.critic import SoftMinCritic
from guerdon.policies.episodes import play_episodes
from guerdon.policies.language_sampling import LanguageSampling
from guerdon.policies.rows import Placer, before_actions, join_prompts, tokens_read
from guerdon.rollouts import Rollouts, make_rollouts
from guerdon.tasks.base import Problem, Starts


class LanguagePolicy(Policy):
    """A language model, its tokenizer and, if asked for, a critic on its last hidden state."""

    kind = "language"
    hands_over = True
    Sampling = LanguageSampling

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: PreTrainedTokenizerBase,
        width: int,
        *,
        value_head: bool | Literal["soft_min"] = False,
    ) -> None:
        super().__init__()
        if tokenizer.eos_token_id is None:
            raise RecipeError(
                f"tokenizer '{tokenizer.name_or_path or type(tokenizer).__name__}' has no end-of-sequence token, so a "
                "completion could never end; set 'eos_token' in its tokenizer_config.json"
            )
        if tokenizer.pad_token_id is None:
            # Padding is masked everywhere, so any token will do; the end token always exists.
            tokenizer.pad_token = tokenizer.eos_token
        self.model, self.tokenizer = model, tokenizer
        self.pad: int = tokenizer.pad_token_id  # type: ignore[assignment]
        self.eos: int = tokenizer.eos_token_id  # type: ignore[assignment]
        self.value = _critic(width, value_head)
        parts = {"model": model} | ({"value": self.value} if self.value is not None else {})
        self.module = nn.ModuleDict(parts)  # type: ignore[arg-type]

    @classmethod
    def supplied_fields(cls, options: Mapping[str, Any]) -> frozenset[str]:
        """Tokens and texts, and the critic's fields when the policy has one."""
        critic = {"values", "bootstrap", "value_prediction"} if options.get("value_head") else set()
        return frozenset(
            {"tokens", "text", "prompt", "prompt_logp", "features", "answer_logp", "marks", "ref_kl"} | critic
        )

    @abstractmethod
    def encode_prompt(self, prompt: str) -> list[int]:
        """Token ids of what the model reads before it answers."""

    def encode_answer(self, answer: str) -> list[int]:
        """Token ids of what the model should write, closed by the end token."""
        return [*self.encode(answer), self.eos]

    def stop_tokens(self) -> tuple[int, ...]:
        """Tokens that end a completion."""
        return (self.eos,)

    def sample(
        self,
        starts: Starts,
        options: LanguageSampling,
        *,
        seed: int,
        greedy: bool = False,
        ended: Callable[[Rollouts, list[int]], None] | None = None,
    ) -> Rollouts:
        """Write one completion per start, or play one episode in tasks of several turns.

        Args:
            starts: one prompt per completion.
            options: how to draw.
            seed: of the draws.
            greedy: take the most likely token.
            ended: called with completions as they end, and their rows, while others are still being written; not
                with episodes.
        """
        settings = self.generation(options, greedy=greedy)
        if options.environments is not None:
            return play_episodes(self, starts, options, settings, seed=seed)
        prompts = self.encode_prompts([p.prompt for p in starts.problems])

        def rollouts_of(rows: list[int], out: Completions) -> Rollouts:
            some = Starts([starts.problems[row] for row in rows], starts.group[rows], starts.version)
            turns: dict[str, Any] = {}
            if isinstance(out, TurnCompletions):
                turns = {"present": out.present[rows], "turn": out.turn[rows]}
            return self.as_rollouts(
                some,
                [prompts[row] for row in rows],
                out.tokens[rows],
                out.mask[rows],
                out.logp[rows],
                options,
                finished=out.finished[rows],
                entropy=out.entropy[rows],
                **turns,
            )

        def hand_over(rows: Tensor, out: Completions) -> None:
            assert ended is not None
            ended(rollouts_of(rows.tolist(), out), rows.tolist())

        early = None if ended is None else hand_over
        if options.tool is None:
            out = self.write(prompts, settings, seed=seed, ended=early)
        else:
            texts: dict[str, Any] = {"pad": self.pad, "encode": self.encode, "decode": self.decode}
            out = rollout_with_tool(self.write, prompts, settings, options.tool, seed=seed, ended=early, **texts)
        return rollouts_of(list(range(len(prompts))), out)

    def branch(
        self, rollouts: Rollouts, rows: Sequence[int], at: Sequence[int], options: LanguageSampling, *, seed: int
    ) -> Rollouts:
        """Write completions that leave earlier ones, see ``branch_completions``."""
        return branch_completions(self, rollouts, rows, at, options, seed=seed)

    @torch.no_grad()
    def score(self, prefix: str, continuations: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Log-probability of each token of several continuations of one prefix, which is read once.

        Args:
            prefix: read as a prompt.
            continuations: texts, without an end token.

        Returns:
            (K,T) log-probabilities at temperature 1, 0 beyond each continuation's end; and (K,T) bool, where there is
            a token.
        """
        prompt = self.encode_prompt(prefix)
        tokens, mask = right_pad([self.encode(text) for text in continuations], self.pad)
        before = torch.tensor(prompt).expand(len(tokens), -1)
        ids = torch.cat([before, tokens], dim=1)
        attention = torch.cat([torch.ones_like(before, dtype=torch.bool), mask], dim=1)
        at = torch.zeros_like(attention)
        at[:, len(prompt) - 1 : -1] = mask
        self.module.eval()
        states = read(self.model, ids, attention, at, max_tokens=self.max_tokens)
        logp, _ = token_logp(self.model.project, states, tokens[mask], torch.ones(len(states)))
        return torch.zeros(mask.shape).masked_scatter(mask, logp), mask

    def states(self, rollouts: Rollouts) -> Tensor:
        """Last hidden states (M,D) from which the actions were chosen, row by row; differentiable."""
        ids, attention, acted = tokens_read(rollouts)
        return read(self.model, ids, attention, before_actions(acted, attention), max_tokens=self.max_tokens)

    def evaluate(self, rollouts: Rollouts, *, logits: bool = False) -> Evaluation:
        """Score the tokens of each completion given its prompt, teacher-forced."""
        assert rollouts.tokens is not None
        states, mask = self.states(rollouts), rollouts.mask
        tokens, place = rollouts.tokens[mask], Placer(mask)
        temperature = rollouts.payload["temperature"][mask.nonzero()[:, 0]]
        scores, listed = None, rollouts.payload.get("listed", None)
        if logits or listed is not None:
            scores = self.model.project(states).float() / temperature.unsqueeze(1)
            scores = scores if listed is None else keep_listed(scores, listed[mask])
            log_probs = torch.log_softmax(scores, dim=-1)
            logp = log_probs.gather(1, tokens.unsqueeze(1)).squeeze(1)
            entropy = categorical_entropy(scores)
        else:
            logp, entropy = token_logp(self.model.project, states, tokens, temperature)
        return Evaluation(
            logp=place(logp),
            entropy=place(entropy),
            value_prediction=place(self.value(states).squeeze(-1)) if self.value is not None else None,
            logits=place(scores) if logits and scores is not None else None,
        )

    @torch.no_grad()
    def features(self, rollouts: Rollouts) -> Tensor:
        """Last hidden state (N,T,D) of the model once it has read each action, 0 off the mask."""
        ids, attention, acted = tokens_read(rollouts)
        states = read(self.model, ids, attention, acted, max_tokens=self.max_tokens)
        return Placer(rollouts.mask)(states.float())

    def join_payloads(self, parts: Sequence[Rollouts]) -> TensorDict:
        """Prompts left-padded to the longest, and what is attended to in them and in the completions."""
        return join_prompts(parts, self.pad)

    @torch.no_grad()
    def replay(
        self,
        starts: Starts,
        actions: Sequence[Sequence[int]],
        options: LanguageSampling,
        *,
        logp: Sequence[Sequence[float]] | None = None,
    ) -> Rollouts:
        """Rollouts of given tokens, marked ``external``.

        Args:
            starts: one problem per answer.
            actions: tokens of each answer, the end token included.
            options: whose temperature the log-probabilities are taken at.
            logp: log-probability of each token under whoever wrote it; by default the present policy's.
        """
        prompts = self.encode_prompts([problem.prompt for problem in starts.problems])
        tokens, mask = right_pad(actions, self.pad)
        ended = torch.tensor([answer[-1] in self.stop_tokens() for answer in actions])
        known = torch.zeros(mask.shape)
        if logp is not None:
            known[mask] = torch.tensor([float(x) for answer in logp for x in answer])
        rollouts = self.as_rollouts(
            starts, prompts, tokens, mask, known, options, finished=ended, external=mask.clone()
        )
        if logp is None:
            self.module.eval()
            now = self.evaluate(rollouts)
            rollouts.old_logp, rollouts.entropy = now.logp, now.entropy
        return rollouts

    def evaluation_options(self, options: LanguageSampling) -> LanguageSampling:
        """Temperature 1 and the whole distribution; budgets, stops, and whoever answers are those of training."""
        plain = LanguageSampling()
        return options.model_copy(update={x: getattr(plain, x) for x in ("temperature", "top_k", "top_p", "min_p")})

    def supervised_loss(self, problems: list[Problem], seed: int) -> Tensor:
        """Mean cross-entropy of the tokens of reference answers or demonstrations, end token included.

        What a tool says in a demonstration is read and not imitated.

        Raises:
            RecipeError: when a problem has no answer to imitate.
        """
        sequences: list[list[int]] = []
        imitated: list[list[int]] = []
        for problem in problems:
            if problem.answer is None and not (problem.demonstration or problem.episode):
                raise RecipeError("'warm_start' imitates answers, and this task's problems have none; remove it")
            # The prompt, then what the policy writes and what a tool says, in turn.
            pieces = [self.encode_prompt(problem.prompt), *self._demonstrated(problem)]
            sequences.append([token for piece in pieces for token in piece])
            imitated.append([place % 2 for place, piece in enumerate(pieces) for _ in piece])
        ids, attention = right_pad(sequences, self.pad)
        wanted = right_pad(imitated, 0)[0].bool()
        self.module.train()
        scores = self.model.project(read(self.model, ids, attention, wanted.roll(-1, dims=1))).float()
        return torch.nn.functional.cross_entropy(scores, ids[wanted])

    def _demonstrated(self, problem: Problem) -> list[list[int]]:
        if problem.episode:
            turns = enumerate(problem.episode)
            return [self.encode_observation(x, True) if place % 2 else self.encode_answer(x) for place, x in turns]
        if not problem.demonstration:
            return [self.encode_answer(str(problem.answer))]
        *before, last = problem.demonstration
        return [*(self.encode(text) for text in before), self.encode_answer(last)]

    def encode_prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of prompts; each distinct one is encoded once."""
        known = {text: self.encode_prompt(text) for text in dict.fromkeys(texts)}
        return [known[text] for text in texts]

    def generation(self, options: LanguageSampling, *, greedy: bool = False) -> GenerationOptions:
        """How the engine draws completions by these options."""
        wanted = {"max_new_tokens", "temperature", "top_k", "top_p", "min_p"}
        return GenerationOptions(
            **options.model_dump(include=wanted),
            stop=tuple(options.stop),
            stop_tokens=self.stop_tokens(),
            greedy=greedy,
        )

    def write(
        self, prefixes: Sequence[Sequence[int]], settings: GenerationOptions, *, seed: int, **options: Any
    ) -> Completions:
        """Continue prefixes; ``options`` go to ``generate``."""
        self.module.eval()
        return generate(self.model, prefixes, settings, pad=self.pad, seed=seed, decode=self.decode, **options)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text as it stands, without special tokens around it."""
        ids: Any = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return list(ids)

    def encode_observation(self, text: str, ended: bool) -> list[int]:
        """Token ids of what an environment says, and of whatever asks for the next turn.

        Args:
            text: the observation.
            ended: whether the turn before it was closed by its end token.
        """
        return self.encode(text)

    def decode(self, tokens: list[list[int]]) -> list[str]:
        """Texts of rows of tokens, without special tokens."""
        return self.tokenizer.batch_decode(tokens, skip_special_tokens=True)

    def as_rollouts(
        self,
        starts: Starts,
        prompts: Sequence[Sequence[int]],
        tokens: Tensor,
        mask: Tensor,
        logp: Tensor,
        options: LanguageSampling,
        *,
        finished: Tensor,
        present: Tensor | None = None,
        payload: Mapping[str, Tensor] | None = None,
        **fields: Any,
    ) -> Rollouts:
        """A batch of completions, however they came about.

        Args:
            starts: one problem per completion.
            prompts: token ids of each.
            tokens, mask, logp: (N,T) right-padded; true on actions; their log-probabilities.
            options: how they were drawn.
            finished: (N,) which ended by themselves.
            present: (N,T) where there is a token, if not all of them are actions.
            payload: further material of the policy's own; ``begins`` (N,T) says from which of a row's tokens on it was
                read beside the prompt when each token was drawn, where that is not always all of them.
            fields: any further field of ``Rollouts``.
        """
        prompt_tokens, prompt_mask = left_pad(prompts, self.pad)
        return make_rollouts(
            starts.group,
            starts.task_id,
            mask,
            logp,
            done=finished,
            truncated=~finished,
            version=starts.version,
            payload={
                "prompt_tokens": prompt_tokens,
                "attention": torch.cat([prompt_mask, mask if present is None else present], dim=1),
                "temperature": torch.full((len(prompts),), options.temperature),
                **(payload or {}),
            },
            tokens=tokens,
            prompt=[p.prompt for p in starts.problems],
            text=self.decode(tokens.tolist()),
            answer=[p.answer for p in starts.problems],
            metadata=[dict(p.metadata) for p in starts.problems],
            # A completion is an episode of its own, cut or not: what would have followed earns nothing.
            bootstrap=torch.zeros(len(prompts)) if self.value is not None else None,
            **fields,
        )

    def token_text(self, rollouts: Rollouts) -> list[list[str]] | None:
        """The text of each token the policy wrote, row by row."""
        assert rollouts.tokens is not None
        rows = [row[keep].tolist() for row, keep in zip(rollouts.tokens, rollouts.mask, strict=True)]
        known = {token: str(self.tokenizer.decode([token])) for row in rows for token in set(row)}
        return [[known[token] for token in row] for row in rows]


def _critic(width: int, kind: bool | Literal["soft_min"]) -> nn.Module | None:
    """A linear head that begins at 0 everywhere, a ``SoftMinCritic``, or none."""
    if kind == "soft_min":
        return SoftMinCritic(width)
    if not kind:
        return None
    head = nn.Linear(width, 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head
