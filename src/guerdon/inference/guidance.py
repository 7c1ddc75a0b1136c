"""Steering a language model by a control vector, for whole texts or from sentence to sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from guerdon.engine.generate import Written
from guerdon.engine.logits import token_logp
from guerdon.policies.base import Evaluation
from guerdon.policies.language import LanguagePolicy
from guerdon.policies.language_sampling import LanguageSampling
from guerdon.policies.rows import Placer
from guerdon.rollouts import Rollouts
from guerdon.seeding import torch_generator
from guerdon.shaping.control import controls_of
from guerdon.tasks.base import Problem, Starts


class DimensionController(nn.Module):
    """Low-rank maps of the output embeddings, one per dimension, mixed by a control vector.

    logits_v = c^T (I + sum_k eps_k W_k) e_v,  W_k = A_k B_k;  c: last hidden state, e_v: output embedding

    It changes hidden states on their way to the output embeddings and nothing else, so a model whose input and output
    embeddings are the same matrix reads as before. B starts at 0: untrained, or with a control of 0, it changes
    nothing. Logits are linear in the control within its limit.

    Args:
        dimensions: K, length of a control vector.
        width: D, size of a hidden state.
        rank: of each W_k.
        limit: controls count as at most this, in either direction; large ones break the language.

    Source: Li et al. 2024, arXiv 2412.14626; its parametrisation is inferred.
    """

    def __init__(self, dimensions: int, width: int, *, rank: int = 8, limit: float = 1.0) -> None:
        super().__init__()
        if min(dimensions, width, rank) < 1 or limit <= 0:
            raise ValueError(
                f"dimensions, width, rank and limit are {dimensions}, {width}, {rank} and {limit}; wanted 1 or more, "
                "and a limit above 0"
            )
        self.down = nn.Parameter(torch.randn(dimensions, width, rank) / math.sqrt(width))
        self.up = nn.Parameter(torch.zeros(dimensions, rank, width))
        self.limit = limit

    @property
    def dimensions(self) -> int:
        """Length of a control vector."""
        return len(self.down)

    def forward(self, states: Tensor, control: Tensor) -> Tensor:
        """Hidden states (M,D) as the output embeddings shall see them under controls (M,K)."""
        inner = torch.einsum("md,kdr->mkr", states.to(self.down.dtype), self.down)
        inner = inner * control.to(inner).clamp(-self.limit, self.limit).unsqueeze(-1)
        return states + torch.einsum("mkr,krd->md", inner, self.up).to(states.dtype)


class SentenceController(nn.Module):
    """A recurrent network that reads a text sentence by sentence and says which control the next one should have.

    control_{s+1}, memory_{s+1} = GRU([h_s, control_s], memory_s);  h_s: embedding of sentence s

    Args:
        dimensions: K, length of a control vector.
        width: D, size of a sentence embedding.
        memory: size of what it remembers.
        limit: largest control, in either direction.

    Source: Li et al. 2024, arXiv 2412.14626; the network is inferred.
    """

    def __init__(self, dimensions: int, width: int, *, memory: int = 32, limit: float = 1.0) -> None:
        super().__init__()
        self.cell, self.out = nn.GRUCell(width + dimensions, memory), nn.Linear(memory, dimensions)
        self.limit = limit

    def begin(self, rows: int) -> Tensor:
        """Memory (M,H) before the first sentence."""
        return self.out.weight.new_zeros(rows, self.cell.hidden_size)

    def step(self, embedding: Tensor, control: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Control (M,K) of the next sentence and memory (M,H), after sentences (M,D) under controls (M,K)."""
        memory = self.cell(torch.cat([embedding, control.to(embedding)], dim=1), memory)
        return self.limit * torch.tanh(self.out(memory)), memory

    def forward(self, embeddings: Tensor, control: Tensor) -> Tensor:
        """Controls (N,S,K) expected after each sentence of texts (N,S,D) that have controls (N,S,K)."""
        memory, expected = self.begin(len(embeddings)), []
        for sentence, given in zip(embeddings.unbind(dim=1), control.unbind(dim=1), strict=True):
            following, memory = self.step(sentence, given, memory)
            expected.append(following)
        return torch.stack(expected, dim=1)

    def loss(self, embeddings: Tensor, control: Tensor, present: Tensor) -> Tensor:
        """Mean squared error of the control expected for each sentence but the first.

        Args:
            embeddings: (N,S,D) of the sentences of good references.
            control: (N,S,K) what those sentences score on every dimension, on the scale of the controls.
            present: (N,S) bool, which sentences there are.
        """
        error = (self(embeddings, control)[:, :-1] - control[:, 1:].clamp(-self.limit, self.limit)) ** 2
        return error[present[:, 1:]].mean()


def sentence_numbers(tokens: Tensor, ends: Sequence[int]) -> Tensor:
    """Number of the sentence (N,T), from 0, of tokens (N,T); the token that ends a sentence is its last."""
    ended = torch.isin(tokens, torch.tensor(list(ends), dtype=tokens.dtype, device=tokens.device)).long()
    return ended.cumsum(dim=1) - ended


def sentence_embeddings(features: Tensor, sentence: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean hidden state of each sentence.

    Args:
        features: (N,T,D) hidden state once each token has been read, see ``LanguagePolicy.features``.
        sentence: (N,T) number of each token's sentence.
        mask: (N,T) true on tokens.

    Returns:
        (N,S,D) embeddings, and (N,S) bool, which sentences there are.
    """
    member = (sentence.unsqueeze(1) == torch.arange(int(sentence[mask].max()) + 1)[:, None]) & mask.unsqueeze(1)
    count = member.sum(dim=2)
    return member.to(features) @ features / count.clamp(min=1).unsqueeze(-1), count > 0


def with_controls(problems: Sequence[Problem], dimensions: int, *, seed: int, limit: float = 1.0) -> list[Problem]:
    """Problems whose metadata hold a control vector each, uniform in [-limit, limit], under ``control``."""
    drawn = torch.rand(len(problems), dimensions, generator=torch_generator(seed, "controls")) * 2 - 1
    vectors = (limit * drawn).tolist()
    return [
        replace(problem, metadata={**problem.metadata, "control": vector})
        for problem, vector in zip(problems, vectors, strict=True)
    ]


class ControlledLM:
    """A language policy whose output a ``DimensionController`` steers.

    Every token of its rollouts remembers its control in ``payload["control"]``, so evaluating them scores the
    distribution that wrote them.

    Args:
        policy: writes; its weights are shared, not copied. Freeze them (``requires_grad_(False)``) to train the
            controller alone.
        controller: steers.
        sentence_end: a token that holds this text ends a sentence.
    """

    def __init__(self, policy: LanguagePolicy, controller: DimensionController, *, sentence_end: str = ".") -> None:
        self.policy, self.controller = policy, controller
        tokenizer = policy.tokenizer
        self.ends = tuple(i for i in range(len(tokenizer)) if sentence_end in str(tokenizer.decode([i])))

    @torch.no_grad()
    def sample(
        self,
        starts: Starts,
        options: LanguageSampling,
        *,
        seed: int,
        control: Tensor | None = None,
        planner: SentenceController | None = None,
        greedy: bool = False,
    ) -> Rollouts:
        """Write one completion per start.

        Args:
            starts: one prompt per completion.
            options: how to draw.
            seed: of the draws.
            control: (N,K) for whole texts, or (N,S,K) for their sentences, of which the last goes on to the end; by
                default what the problems' metadata hold under ``control``.
            planner: chooses the control of every sentence but the first.
            greedy: take the most likely token.
        """
        policy = self.policy
        if control is None:
            control = controls_of([problem.metadata for problem in starts.problems], self.controller.dimensions)
        plan = control.unsqueeze(1) if control.ndim == 2 else control
        steering = _Steering(self.controller, plan, self.ends, options.max_new_tokens, planner)
        settings = replace(policy.generation(options, greedy=greedy), steer=steering)
        prompts = policy.encode_prompts([problem.prompt for problem in starts.problems])
        out = policy.write(prompts, settings, seed=seed)
        rollouts = policy.as_rollouts(
            starts, prompts, out.tokens, out.mask, out.logp, options, finished=out.finished, entropy=out.entropy
        )
        rollouts.payload["control"] = steering.used[:, : rollouts.mask.shape[1]]
        return rollouts

    def evaluate(self, rollouts: Rollouts, control: Tensor | None = None) -> Evaluation:
        """Log-probability and entropy of the actions under the control that each was taken under; differentiable.

        Args:
            rollouts: of this policy.
            control: (N,K) or (N,T,K) to score them under instead.
        """
        assert rollouts.tokens is not None
        mask, place = rollouts.mask, Placer(rollouts.mask)
        given = rollouts.payload["control"] if control is None else control
        each = given.unsqueeze(1).expand(-1, mask.shape[1], -1) if given.ndim == 2 else given
        states = self.controller(self.policy.states(rollouts), each[mask])
        temperature = rollouts.payload["temperature"][mask.nonzero()[:, 0]]
        logp, entropy = token_logp(self.policy.model.project, states, rollouts.tokens[mask], temperature)
        return Evaluation(logp=place(logp), entropy=place(entropy))


class _Steering:
    """Changes the states of rows that are being written, and keeps the control (N,T,K) of every token."""

    def __init__(
        self,
        controller: DimensionController,
        plan: Tensor,
        ends: Sequence[int],
        budget: int,
        planner: SentenceController | None,
    ) -> None:
        self.controller, self.plan, self.ends, self.planner = controller, plan, torch.tensor(ends), planner
        self.used = torch.zeros(len(plan), budget, plan.shape[2])
        if planner is not None:
            self.control, self.memory = plan[:, 0].clone(), planner.begin(len(plan))
            self.total, self.count = torch.zeros(0), torch.zeros(len(plan), 1)

    def __call__(self, states: Tensor, written: Written) -> Tensor:
        rows, tokens = written
        if self.planner is None:
            sentence = torch.isin(tokens, self.ends).sum(dim=1).clamp(max=self.plan.shape[1] - 1)
            control = self.plan[rows, sentence]
        else:
            control = self._planned(states, rows, tokens, self.planner)
        self.used[rows, tokens.shape[1]] = control
        return self.controller(states, control)

    def _planned(self, states: Tensor, rows: Tensor, tokens: Tensor, planner: SentenceController) -> Tensor:
        """The control of each row's present sentence, chosen anew for those whose last token ended one."""
        if not tokens.shape[1]:
            self.total = states.new_zeros(len(self.plan), states.shape[1])
            return self.control[rows]
        self.total[rows] += states
        self.count[rows] += 1
        done = rows[torch.isin(tokens[:, -1], self.ends)]
        if len(done):
            embedding = self.total[done] / self.count[done]
            self.control[done], self.memory[done] = planner.step(embedding, self.control[done], self.memory[done])
            self.total[done], self.count[done] = 0.0, 0.0
        return self.control[rows]
