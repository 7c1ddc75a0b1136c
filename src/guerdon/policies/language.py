"""Language policies: what the tiny transformer and any Hugging Face causal LM share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from tensordict import TensorDict
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from guerdon.engine.filters import keep_listed
from guerdon.engine.generate import Completions, GenerationOptions, generate
from guerdon.engine.logits import token_logp
from guerdon.engine.padding import left_pad, right_pad
from guerdon.engine.reading import LanguageModel, read
from guerdon.engine.tools import Tool, ToolCompletions, rollout_with_tool
from guerdon.errors import RecipeError
from guerdon.objectives.entropy import categorical_entropy
from guerdon.policies.base import Evaluation, Policy, SamplingOptions
from guerdon.policies.critic import SoftMinCritic
from guerdon.policies.rows import Placer, before_actions, join_prompts, present_tokens
from guerdon.rollouts import Rollouts, make_rollouts
from guerdon.tasks.base import Problem, Starts, Task


class LanguageSampling(SamplingOptions):
    """How a language policy draws its completions.

    Attributes:
        max_new_tokens: budget of a completion; one that uses it up without an end token is truncated.
        temperature: divides the logits, when sampling and when log-probabilities are evaluated.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of tokens whose mass reaches p.
        min_p: keep tokens at least p times as likely as the likeliest; 0 keeps all.
        stop: a completion ends once it holds one of these strings, which stays a part of it.
        tool: what a completion may ask while it is written.
    """

    max_new_tokens: int = Field(default=32, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    min_p: float = Field(default=0.0, ge=0, lt=1)
    stop: list[str] = Field(default=[])
    tool: Tool | None = None

    def bound_to(self, task: Task) -> LanguageSampling:
        """The options with the function of the tool, if there is one."""
        return self if self.tool is None else self.model_copy(update={"tool": self.tool.bound_to(task)})


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
        return frozenset({"tokens", "text", "prompt", "prompt_logp", "features", "ref_kl"} | critic)

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
        """Write one completion per start.

        Args:
            starts: one prompt per completion.
            options: how to draw.
            seed: of the draws.
            greedy: take the most likely token.
            ended: called with completions as they end, and their rows, while others are still being written.
        """
        prompts = self.encode_prompts([p.prompt for p in starts.problems])

        def rollouts_of(rows: list[int], out: Completions) -> Rollouts:
            some = Starts([starts.problems[row] for row in rows], starts.group[rows], starts.version)
            return self.as_rollouts(
                some,
                [prompts[row] for row in rows],
                out.tokens[rows],
                out.mask[rows],
                out.logp[rows],
                options,
                finished=out.finished[rows],
                entropy=out.entropy[rows],
                **({"present": out.present[rows], "turn": out.turn[rows]} if isinstance(out, ToolCompletions) else {}),
            )

        def hand_over(rows: Tensor, out: Completions) -> None:
            assert ended is not None
            ended(rollouts_of(rows.tolist(), out), rows.tolist())

        settings = self.generation(options, greedy=greedy)
        early = None if ended is None else hand_over
        if options.tool is None:
            out = self.write(prompts, settings, seed=seed, ended=early)
        else:
            texts: dict[str, Any] = {"pad": self.pad, "encode": self.encode, "decode": self.decode}
            out = rollout_with_tool(self.write, prompts, settings, options.tool, seed=seed, ended=early, **texts)
        return rollouts_of(list(range(len(prompts))), out)

    @torch.no_grad()
    def branch(
        self, rollouts: Rollouts, rows: Sequence[int], at: Sequence[int], options: LanguageSampling, *, seed: int
    ) -> Rollouts:
        """Write completions that leave earlier ones after their first ``at`` actions, and go on by themselves.

        A branch belongs to the group of the trajectory that it leaves, holds the actions that both share, with what
        was known of them, and says where it came from in ``parent`` and ``branch_at``. What branches share with one
        another and with their parents is computed once.

        Args:
            rollouts: earlier completions.
            rows: which of them each branch leaves.
            at: number of actions that each branch keeps, less than its parent has.
            options: how to draw; the budget is that of the whole completion.
            seed: of the draws.

        Raises:
            RecipeError: when the completions may ask a tool.
        """
        if options.tool is not None:
            raise RecipeError("completions that may ask a tool cannot be branched; remove 'sampling.tool'")
        assert rollouts.tokens is not None
        parent, kept = torch.tensor(list(rows)), torch.tensor(list(at))
        of = rollouts[parent]
        assert of.tokens is not None
        prompts = present_tokens(of.payload["prompt_tokens"], of.payload["attention"])
        shared = [tokens[:n].tolist() for tokens, n in zip(of.tokens, at, strict=True)]
        out = self.write(
            [[*prompt, *begun] for prompt, begun in zip(prompts, shared, strict=True)],
            self.generation(options),
            seed=seed,
            budgets=(options.max_new_tokens - kept).tolist(),
        )
        width = int((kept + out.mask.sum(dim=1)).max())
        old = torch.arange(width) < kept.unsqueeze(1)
        new = (torch.arange(width) < (kept + out.mask.sum(dim=1)).unsqueeze(1)) & ~old

        def spliced(before: Tensor, after: Tensor, fill: float) -> Tensor:
            joint = torch.full((len(parent), width), fill, dtype=after.dtype)
            joint[old] = before[:, :width][old[:, : before.shape[1]]].to(after.dtype)
            joint[new] = after[out.mask]
            return joint

        known = of.entropy if of.entropy is not None else torch.zeros_like(of.old_logp)
        branches = self.as_rollouts(
            Starts([_problem(of, i) for i in range(len(of))], of.group, int(of.version.max())),
            prompts,
            spliced(of.tokens, out.tokens, self.pad),
            old | new,
            spliced(of.old_logp, out.logp, 0.0),
            options,
            finished=out.finished,
            entropy=spliced(known, out.entropy, 0.0),
        )
        branches.parent, branches.branch_at = parent, kept
        return branches

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
        ids, attention, acted = _tokens_of(rollouts)
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
        ids, attention, acted = _tokens_of(rollouts)
        states = read(self.model, ids, attention, acted, max_tokens=self.max_tokens)
        return Placer(rollouts.mask)(states.float())

    def prompt_logp(self, rollouts: Rollouts) -> Tensor:
        """Log-probability (N,P) of each prompt token given those before it, at temperature 1; nan where there is none.

        A prompt's first token follows nothing, so it has none either. A prompt that several trajectories share is
        read once.
        """
        tokens = rollouts.payload["prompt_tokens"]
        present = rollouts.payload["attention"][:, : tokens.shape[1]]
        out = torch.full(tokens.shape, float("nan"), device=tokens.device)
        at = torch.zeros_like(present)
        at[:, :-1] = present[:, 1:] & present[:, :-1]
        if not bool(at.any()):
            return out
        states = read(self.model, tokens, present, at, max_tokens=self.max_tokens)
        known = at.roll(1, dims=1)
        logp, _ = token_logp(self.model.project, states, tokens[known], torch.ones(len(states), device=tokens.device))
        return out.masked_scatter(known, logp)

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
        """Temperature 1 and the whole distribution, with the budget and the tool of training."""
        return LanguageSampling(max_new_tokens=options.max_new_tokens, tool=options.tool)

    def supervised_loss(self, problems: list[Problem], seed: int) -> Tensor:
        """Mean cross-entropy of the tokens of reference answers or demonstrations, end token included.

        What a tool says in a demonstration is read and not imitated.

        Raises:
            RecipeError: when a problem has no answer to imitate.
        """
        sequences: list[list[int]] = []
        imitated: list[list[int]] = []
        for problem in problems:
            if problem.answer is None and not problem.demonstration:
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


def _tokens_of(rollouts: Rollouts) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts and completions side by side (N,C): tokens, where there are some, and which of them are actions."""
    assert rollouts.tokens is not None
    prompt = rollouts.payload["prompt_tokens"]
    acted = torch.cat([torch.zeros_like(prompt, dtype=torch.bool), rollouts.mask], dim=1)
    return torch.cat([prompt, rollouts.tokens], dim=1), rollouts.payload["attention"], acted


def _problem(rollouts: Rollouts, row: int) -> Problem:
    assert rollouts.prompt is not None
    answers, metadata = rollouts.answer, rollouts.metadata
    return Problem(
        int(rollouts.task_id[row]),
        rollouts.prompt[row],
        answers[row] if answers is not None else None,
        metadata[row] if metadata is not None else {},
    )
