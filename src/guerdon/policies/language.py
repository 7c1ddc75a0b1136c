"""Language policies: what the tiny transformer and any Hugging Face causal LM share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from tensordict import TensorDict
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from guerdon.errors import RecipeError
from guerdon.objectives.entropy import categorical_entropy
from guerdon.policies.base import Evaluation, Policy, SamplingOptions
from guerdon.policies.critic import SoftMinCritic
from guerdon.rollouts import Rollouts, make_rollouts, pad_actions
from guerdon.sampling.engine import GenerationOptions, LanguageModel, generate, left_pad
from guerdon.tasks.base import Problem, Starts


class LanguageSampling(SamplingOptions):
    """How a language policy draws its completions.

    Attributes:
        max_new_tokens: budget of a completion; one that uses it up without an end token is truncated.
        temperature: divides the logits, when sampling and when log-probabilities are evaluated.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of tokens whose mass reaches p.
    """

    max_new_tokens: int = Field(default=32, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)


class LanguagePolicy(Policy):
    """A language model, its tokenizer and, if asked for, a critic on its last hidden state."""

    kind = "language"
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
        ids: Any = self.tokenizer(answer, add_special_tokens=False)["input_ids"]
        return [*ids, self.eos]

    def stop_tokens(self) -> tuple[int, ...]:
        """Tokens that end a completion."""
        return (self.eos,)

    def sample(self, starts: Starts, options: LanguageSampling, *, seed: int, greedy: bool = False) -> Rollouts:
        """Write one completion per start."""
        texts = [p.prompt for p in starts.problems]
        encoded = {text: self.encode_prompt(text) for text in dict.fromkeys(texts)}
        prompts = [encoded[text] for text in texts]
        settings = GenerationOptions(
            **options.model_dump(include={"max_new_tokens", "temperature", "top_k", "top_p"}),
            stop_tokens=self.stop_tokens(),
            greedy=greedy,
        )
        self.module.eval()
        out = generate(self.model, prompts, settings, pad=self.pad, seed=seed)
        prompt_tokens, prompt_mask = left_pad(prompts, self.pad)
        n = len(prompts)
        return make_rollouts(
            starts.group,
            starts.task_id,
            out.mask,
            out.logp,
            done=out.finished,
            truncated=~out.finished,
            version=starts.version,
            payload={
                "prompt_tokens": prompt_tokens,
                "attention": torch.cat([prompt_mask, out.mask], dim=1),
                "temperature": torch.full((n,), options.temperature),
            },
            tokens=out.tokens,
            entropy=out.entropy,
            prompt=texts,
            text=self.tokenizer.batch_decode(out.tokens.tolist(), skip_special_tokens=True),
            answer=[p.answer for p in starts.problems],
            metadata=[dict(p.metadata) for p in starts.problems],
            # A completion is an episode of its own, cut or not: what would have followed earns nothing.
            bootstrap=torch.zeros(n) if self.value is not None else None,
        )

    def evaluate(self, rollouts: Rollouts, *, logits: bool = False) -> Evaluation:
        """Score the tokens of each completion given its prompt, teacher-forced."""
        prompt, attention = rollouts.payload["prompt_tokens"], rollouts.payload["attention"]
        tokens, mask = rollouts.tokens, rollouts.mask
        assert tokens is not None
        prompt_columns, columns = prompt.shape[1], int(attention.any(dim=0).nonzero().max()) + 1
        first = int(attention.any(dim=0).nonzero().min())
        width = columns - prompt_columns
        ids = torch.cat([prompt, tokens], dim=1)[:, first : columns - 1]
        hidden, _ = self.model.hidden(ids, attention[:, first : columns - 1])
        states = hidden[:, prompt_columns - first - 1 :]
        acted = mask[:, :width]
        scores = self.model.project(states[acted]).float()
        scores = scores / rollouts.payload["temperature"][acted.nonzero()[:, 0]].unsqueeze(1)
        log_probs = torch.log_softmax(scores, dim=-1)
        picked = log_probs.gather(1, tokens[:, :width][acted].unsqueeze(1)).squeeze(1)
        place = _Placer(mask, acted)
        return Evaluation(
            logp=place(picked),
            entropy=place(categorical_entropy(scores)),
            value_prediction=place(self.value(states[acted]).squeeze(-1)) if self.value is not None else None,
            logits=place(scores) if logits else None,
        )

    @torch.no_grad()
    def features(self, rollouts: Rollouts) -> Tensor:
        """Last hidden state (N,T,D) of the model once it has read each action, 0 off the mask."""
        prompt, attention = rollouts.payload["prompt_tokens"], rollouts.payload["attention"]
        assert rollouts.tokens is not None
        seen = attention.any(dim=0).nonzero()
        first, columns = int(seen.min()), int(seen.max()) + 1
        ids = torch.cat([prompt, rollouts.tokens], dim=1)[:, first:columns]
        hidden, _ = self.model.hidden(ids, attention[:, first:columns])
        states = hidden[:, prompt.shape[1] - first :].float()
        acted = rollouts.mask[:, : states.shape[1]]
        return _Placer(rollouts.mask, acted)(states[acted])

    def prompt_logp(self, rollouts: Rollouts) -> Tensor:
        """Log-probability (N,P) of each prompt token given those before it, at temperature 1; nan where there is none.

        A prompt's first token follows nothing, so it has none either. A prompt that several trajectories share is
        read once.
        """
        tokens = rollouts.payload["prompt_tokens"]
        if tokens.shape[1] < 2:
            return torch.full(tokens.shape, float("nan"), device=tokens.device)
        present = rollouts.payload["attention"][:, : tokens.shape[1]]
        rows = torch.cat([tokens, present.to(tokens.dtype)], dim=1)
        distinct, row = torch.unique(rows, dim=0, return_inverse=True)
        ids, attention = distinct[:, : tokens.shape[1]], distinct[:, tokens.shape[1] :].bool()
        hidden, _ = self.model.hidden(ids[:, :-1], attention[:, :-1])
        known = attention[:, 1:] & attention[:, :-1]
        log_probs = torch.log_softmax(self.model.project(hidden[known]).float(), dim=-1)
        out = torch.full(ids.shape, float("nan"), device=ids.device)
        out[:, 1:][known] = log_probs.gather(1, ids[:, 1:][known].unsqueeze(1)).squeeze(1)
        return out[row]

    def join_payloads(self, parts: Sequence[Rollouts]) -> TensorDict:
        """Prompts left-padded to the longest, and what is attended to in them and in the completions."""
        widest = max(part.payload["prompt_tokens"].shape[1] for part in parts)
        longest = max(part.mask.shape[1] for part in parts)
        prompts, attention = [], []
        for part in parts:
            tokens, width = part.payload["prompt_tokens"], part.payload["prompt_tokens"].shape[1]
            missing = (widest - width, 0)
            prompts.append(nn.functional.pad(tokens, missing, value=self.pad))
            seen = nn.functional.pad(part.payload["attention"], missing)
            attention.append(pad_actions(seen, widest + longest))
        payload = {"prompt_tokens": torch.cat(prompts), "attention": torch.cat(attention)}
        payload["temperature"] = torch.cat([part.payload["temperature"] for part in parts])
        return TensorDict(payload, [len(payload["temperature"])])

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
        n, problems = len(starts), starts.problems
        prompts = [self.encode_prompt(problem.prompt) for problem in problems]
        prompt_tokens, prompt_mask = left_pad(prompts, self.pad)
        length = torch.tensor([len(a) for a in actions])
        mask = torch.arange(int(length.max())) < length.unsqueeze(1)
        tokens = torch.full(mask.shape, self.pad)
        tokens[mask] = torch.tensor([token for answer in actions for token in answer])
        ended = torch.tensor([answer[-1] in self.stop_tokens() for answer in actions])
        known = torch.zeros(mask.shape)
        if logp is not None:
            known[mask] = torch.tensor([float(x) for answer in logp for x in answer])
        rollouts = make_rollouts(
            starts.group,
            starts.task_id,
            mask,
            known,
            done=ended,
            truncated=~ended,
            version=starts.version,
            payload={
                "prompt_tokens": prompt_tokens,
                "attention": torch.cat([prompt_mask, mask], dim=1),
                "temperature": torch.full((n,), options.temperature),
            },
            tokens=tokens,
            external=mask.clone(),
            prompt=[problem.prompt for problem in problems],
            text=self.tokenizer.batch_decode(tokens.tolist(), skip_special_tokens=True),
            answer=[problem.answer for problem in problems],
            metadata=[dict(problem.metadata) for problem in problems],
            bootstrap=torch.zeros(n) if self.value is not None else None,
        )
        if logp is None:
            self.module.eval()
            now = self.evaluate(rollouts)
            rollouts.old_logp, rollouts.entropy = now.logp, now.entropy
        return rollouts

    def evaluation_options(self, options: LanguageSampling) -> LanguageSampling:
        """Temperature 1 and the whole distribution, with the budget of training."""
        return LanguageSampling(max_new_tokens=options.max_new_tokens)

    def supervised_loss(self, problems: list[Problem], seed: int) -> Tensor:
        """Mean cross-entropy of the reference answers' tokens, end token included.

        Raises:
            RecipeError: when a problem has no answer to imitate.
        """
        sequences: list[list[int]] = []
        starts: list[int] = []
        for problem in problems:
            if problem.answer is None:
                raise RecipeError("'warm_start' imitates answers, and this task's problems have none; remove it")
            prompt = self.encode_prompt(problem.prompt)
            starts.append(len(prompt))
            sequences.append(prompt + self.encode_answer(str(problem.answer)))
        ids, attention = left_pad(sequences, self.pad)
        offset = ids.shape[1] - torch.tensor([len(s) for s in sequences])
        target = torch.arange(ids.shape[1]) >= (offset + torch.tensor(starts)).unsqueeze(1)
        self.module.train()
        hidden, _ = self.model.hidden(ids[:, :-1], attention[:, :-1])
        scores = self.model.project(hidden[target[:, 1:]]).float()
        return torch.nn.functional.cross_entropy(scores, ids[:, 1:][target[:, 1:]])

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


class _Placer:
    """Puts numbers of acted positions back into (N,T), zero elsewhere."""

    def __init__(self, mask: Tensor, acted: Tensor) -> None:
        self.mask, self.rows, self.columns = mask, *acted.nonzero(as_tuple=True)

    def __call__(self, x: Tensor) -> Tensor:
        out = x.new_zeros(*self.mask.shape, *x.shape[1:])
        return out.index_put((self.rows, self.columns), x)
