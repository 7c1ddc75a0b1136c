"""Softmax policies whose prompts share weights, so that what one prompt learns another may forget.

Batches hold the policy's own answers and, as sources add them in the training loop, answers from elsewhere: shown ones,
which are scored and credited with their group, and rehearsed ones, which are neither. Probabilities are known exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from guerdon.claims.testbeds.tabular import Spec, bind
from guerdon.registry import Bound
from guerdon.seeding import torch_generator
from guerdon.training.plan import reads_external


class Answers(NamedTuple):
    """K given answers for each of S seeds.

    Attributes:
        prompt: (S,K) what they answer.
        actions: (S,K,T).
    """

    prompt: Tensor
    actions: Tensor


@dataclass(frozen=True)
class Shared:
    """P prompts with answers of T positions and A symbols; the positions of an answer are independent.

    log pi(. | p) = log_softmax(log base[p] + features[p] W),  W = 0 at first

    Attributes:
        base: (P,T,A) probabilities at the start, and of the reference.
        features: (P,D) of every prompt; prompts with like features learn and forget together.
        right: (P,T,A) the right symbols; an answer is right, and earns 1, if all of its positions are.
    """

    base: Tensor
    features: Tensor
    right: Tensor

    def train(
        self,
        *,
        seeds: int,
        steps: int,
        group_size: int,
        lr: float,
        prompts: Tensor | None = None,
        credit: Spec = "grpo",
        objective: Spec = "reinforce",
        terms: Sequence[Spec] = (),
        shown: Answers | None = None,
        rehearsed: Answers | None = None,
        first_seed: int = 0,
        optimizer: Literal["sgd", "adam"] = "adam",
    ) -> Tensor:
        """Train one policy per seed.

        Args:
            seeds: number S of seeds.
            steps: batches.
            group_size: own answers per prompt.
            lr: learning rate of the mean loss over a seed's actions.
            prompts: (Q,) those that are trained for reward; all by default.
            credit, objective, terms: methods as a recipe names them; without statistics over the batch.
            shown: answers that join the groups of their prompts.
            rehearsed: answers that join after credit.
            first_seed: the first seed.
            optimizer: Adam, or plain gradient descent.

        Returns:
            (steps + 1,S,P,T,A) probabilities before the first and after every step.
        """
        count, positions, symbols = self.base.shape
        offset = self.base.double().clamp(min=1e-30).log()
        shape = (seeds, self.features.shape[1], positions, symbols)
        weights = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
        update = (torch.optim.SGD if optimizer == "sgd" else torch.optim.Adam)([weights], lr=lr)
        crediting = bind("credit", credit)
        losses = [bind("objective", objective), *(bind("term", term) for term in terms)]
        generators = [torch_generator(first_seed + s, "shared") for s in range(seeds)]
        chosen = torch.arange(count) if prompts is None else prompts

        def log_policy() -> Tensor:
            moved = torch.einsum("pd,sdta->spta", self.features.double(), weights)
            return (offset + moved).log_softmax(dim=-1)

        history = [log_policy().detach().exp()]
        for step in range(steps):
            own = self._sample(history[-1], chosen, group_size, generators)
            scored, foreign = _below(own, shown)
            fields = self._credited(crediting, scored, foreign, history[-1], step)
            fields = self._rehearsing(fields, rehearsed, history[-1])
            table = log_policy()
            loss = _loss(losses, fields, _picked(table, fields)) * seeds
            update.zero_grad()
            loss.backward()
            update.step()
            history.append(log_policy().detach().exp())
        return torch.stack(history)

    def solved(self, probs: Tensor) -> Tensor:
        """(...,P) probability that an answer is right, of probabilities (...,P,T,A)."""
        return (probs * self.right).sum(dim=-1).prod(dim=-1)

    def remembered(
        self, prompts: Tensor, *, seeds: int, samples: int, threshold: float, first_seed: int = 0
    ) -> Answers:
        """One right answer of the base to each of the prompts that it solves in a share ``threshold`` of ``samples``.

        Seeds know different numbers of prompts; what is known is repeated to the longest.
        """
        probs = self.base.double().expand(seeds, *self.base.shape)
        generators = [torch_generator(first_seed + s, "remembered") for s in range(seeds)]
        drawn = self._sample(probs, prompts, samples, generators)
        right = self._reward(drawn).view(seeds, len(prompts), samples)
        known = [(row.mean(dim=1) >= threshold).nonzero().flatten() for row in right]
        most = max(len(rows) for rows in known)
        rows = torch.stack([k[torch.arange(most) % len(k)] for k in known])
        first = right.argmax(dim=2).gather(1, rows)
        actions = drawn.actions.view(seeds, len(prompts), samples, -1)
        return Answers(prompts[rows], actions[torch.arange(seeds).unsqueeze(1), rows, first])

    def _sample(self, probs: Tensor, prompts: Tensor, size: int, generators: list[torch.Generator]) -> Answers:
        """Draw ``size`` answers to every prompt; a seed's numbers are common to all methods."""
        edges = probs[:, prompts].cumsum(dim=-1).unsqueeze(2)
        shape = (len(prompts), size, probs.shape[2])
        uniform = torch.stack([torch.rand(shape, generator=g, dtype=torch.float64) for g in generators])
        actions = (uniform.unsqueeze(-1) > edges).sum(dim=-1).clamp(max=probs.shape[-1] - 1)
        prompt = prompts.repeat_interleave(size).expand(len(generators), -1)
        return Answers(prompt, actions.flatten(1, 2))

    def _reward(self, answers: Answers) -> Tensor:
        """(S,K) 1 where all positions are right."""
        positions = torch.arange(answers.actions.shape[-1])
        return self.right[answers.prompt.unsqueeze(-1), positions, answers.actions].all(dim=-1).double()

    def _credited(self, credit: Bound, answers: Answers, foreign: Tensor, probs: Tensor, step: int) -> dict[str, Any]:
        """Fields of the scored answers, seed by seed, with their credit."""
        seeds, each = answers.prompt.shape
        seed = torch.arange(seeds).unsqueeze(1).expand(seeds, each)
        group = (seed * self.base.shape[0] + answers.prompt).flatten()
        actions = answers.actions.flatten(0, 1)
        mask = torch.ones_like(actions, dtype=torch.bool)
        reward = self._reward(answers).flatten()
        fields = {"reward": reward, "group": group, "mask": mask, "step": step}
        advantage = credit(fields).fields["advantage"]
        advantage = advantage.unsqueeze(1) * mask if advantage.ndim == 1 else advantage
        place = {"seed": seed.flatten(), "prompt": answers.prompt.flatten(), "actions": actions}
        old = _picked(probs.log(), place)
        external = foreign.flatten().unsqueeze(1) & mask
        return fields | place | {"advantage": advantage, "old_logp": old, "external": external} | self._ref(place)

    def _rehearsing(self, fields: dict[str, Any], answers: Answers | None, probs: Tensor) -> dict[str, Any]:
        """The fields with those of rehearsed answers below them, whose old policy is the reference."""
        if answers is None:
            return fields
        seeds, each = answers.prompt.shape
        place = {
            "seed": torch.arange(seeds).repeat_interleave(each),
            "prompt": answers.prompt.flatten(),
            "actions": answers.actions.flatten(0, 1),
        }
        ref = self._ref(place)["ref_logp"]
        mask = torch.ones_like(ref, dtype=torch.bool)
        more = place | {"mask": mask, "external": mask, "old_logp": ref, "ref_logp": ref}
        more |= {"advantage": torch.zeros_like(ref), "group": -1 - torch.arange(len(ref))}
        more["reward"] = torch.full((len(ref),), float("nan"), dtype=torch.float64)
        return {"step": fields["step"]} | {name: torch.cat([fields[name], more[name]]) for name in more}

    def _ref(self, place: Mapping[str, Tensor]) -> dict[str, Tensor]:
        base = self.base.double().clamp(min=1e-30).log()
        positions = torch.arange(base.shape[1])
        return {"ref_logp": base[place["prompt"].unsqueeze(1), positions, place["actions"]]}


def _below(own: Answers, shown: Answers | None) -> tuple[Answers, Tensor]:
    """Own answers with the shown ones below them, and which are shown (S,K)."""
    if shown is None:
        return own, torch.zeros_like(own.prompt, dtype=torch.bool)
    prompt = torch.cat([own.prompt, shown.prompt], dim=1)
    foreign = torch.arange(prompt.shape[1]) >= own.prompt.shape[1]
    return Answers(prompt, torch.cat([own.actions, shown.actions], dim=1)), foreign.expand_as(prompt)


def _picked(table: Tensor, place: Mapping[str, Tensor]) -> Tensor:
    """(N,T) entries of ``table`` (S,P,T,A) for the actions of N answers."""
    positions = torch.arange(table.shape[2])
    return table[place["seed"].unsqueeze(1), place["prompt"].unsqueeze(1), positions, place["actions"]]


def _loss(methods: Sequence[Bound], fields: dict[str, Any], logp: Tensor) -> Tensor:
    """Sum of the losses; methods that don't name ``external`` see the policy's own answers alone."""
    fields = fields | {"logp": logp}
    rows = ~fields["external"].any(dim=1)
    own = {name: x[rows] if isinstance(x, Tensor) else x for name, x in fields.items()}
    total = torch.zeros((), dtype=torch.float64)
    for bound in methods:
        total = total + bound(fields if reads_external(bound.method) else own).fields["loss"]
    return total
