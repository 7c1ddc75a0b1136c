"""Credit of single tokens, told from outcomes."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from guerdon.credit.grouping import grouped, leave_one_out_mean, per_action
from guerdon.registry import register
from guerdon.reward_models.process import PrefixTokenRM, outcome_loss, prefix_means
from guerdon.seeding import torch_generator


class TokenWeights(NamedTuple):
    """How much each token (N,T) matters in a right and in a wrong answer, in [0,1]."""

    right: Tensor
    wrong: Tensor


def prefix_weights(logits: Tensor, mask: Tensor) -> TokenWeights:
    """Weigh the tokens of right answers by how surely they lead to success, those of wrong ones by the contrary.

    w+ = clip((p_t - 1/2) / (1/2), 0, 1),  w- = clip(((1 - p_t) - 1/2) / (1/2), 0, 1),  p_t = sigmoid(mean_{s <= t} z_s)

    Args:
        logits: (N,T) z_t of a ``PrefixTokenRM``; no gradient passes.
        mask: (N,T) true on tokens.

    Returns:
        Both weights, 0 off the mask; at most one of them is above 0 at any token.

    Source: Lyu et al. 2025, arXiv 2502.06781.
    """
    lean = 2 * torch.sigmoid(prefix_means(logits.detach(), mask)) - 1
    return TokenWeights(lean.clamp(min=0.0), (-lean).clamp(min=0.0))


def one_of_each(right: Tensor, group: Tensor, draw: Tensor) -> Tensor:
    """Choose one right and one wrong answer of every group that has both.

    Args:
        right: (N,) whether the answer is right.
        group: (N,) key.
        draw: (N,) independent uniform numbers, by which the choice falls.

    Returns:
        (N,) bool.
    """
    both = ~grouped(right.to(draw.dtype), group).tied()
    return both & (draw == grouped(draw, 2 * group + right.long()).extreme(largest=True))


class OREALCredit(NamedTuple):
    """Credit of each action, and the same before its weight, (N,T) each."""

    advantage: Tensor
    outcome_advantage: Tensor


@register("credit", "oreal", paper="Lyu et al. 2025, arXiv 2502.06781", needs_group=True)
class OREAL:
    """Outcome against the rest of the group, weighted by a token reward model that learns beside the policy.

    A_t = w_t (r_i - mean_{j in g, j != i} r_j),  w_t = w+_t in right answers, w-_t in wrong ones (``prefix_weights``)

    Of every group with right and wrong answers one of each is learned from, so that the token reward model
    (``PrefixTokenRM`` on the policy's features) sees as many right as wrong ones: taught on all of them it would say
    the pass rate of every first token. At its start it says 1/2 of everything and all weights are 0; for ``warmup``
    steps it learns alone. Weights come from the model before it learns from the batch. Belongs with the objective
    ``oreal`` and the term ``kl`` (beta 0.01).

    The source's rewards are 1 and -1; those of 0 and 1 give half the credit.

    Args:
        warmup: steps in which all credit is 0.
        lr: learning rate of the token reward model, by Adam. The source trains a whole language model at 2e-6.
        hidden: size of its hidden layer; 0 for a linear head.
        updates: its updates on each batch.
        keep: learn from one right and one wrong answer of each group, or from all answers; the token reward model
            always sees one of each.
        threshold: an answer is right if its reward is above this.

    Source: Lyu et al. 2025, arXiv 2502.06781.
    """

    def __init__(
        self,
        *,
        warmup: Annotated[int, Field(ge=0)] = 10,
        lr: Annotated[float, Field(gt=0)] = 1e-3,
        hidden: Annotated[int, Field(ge=0)] = 64,
        updates: Annotated[int, Field(ge=1)] = 1,
        keep: Literal["one of each", "all"] = "one of each",
        threshold: float = 0.0,
    ) -> None:
        self.warmup, self.lr, self.hidden, self.updates = warmup, lr, hidden, updates
        self.keep, self.threshold = keep, threshold
        self.steps = 0
        self.model: PrefixTokenRM | None = None
        self.optimizer: torch.optim.Adam | None = None

    def __call__(
        self, reward: Tensor, group: Tensor, mask: Tensor, features: Tensor, seed: int
    ) -> tuple[OREALCredit, dict[str, float]]:
        """Credit of each action, and a lesson for the token reward model.

        Args:
            reward: (N,) outcome of each trajectory.
            group: (N,) key of the trajectories that share a start.
            mask: (N,T) true on actions.
            features: (N,T,D) what the policy's model makes of an answer up to and including each action.
            seed: of the step's draws.

        Returns:
            The credit, 0 off the mask and on trajectories that are not learned from; of the token reward model its
            ``loss``, its ``accuracy`` before it learned from the batch, and the mean ``weight`` of the tokens learned
            from.
        """
        model = self._model(features, seed)
        right = reward > self.threshold
        draw = torch.rand(len(reward), generator=torch_generator(seed, "one of each"), dtype=torch.float64)
        pairs = one_of_each(right, group, draw.to(reward.device))
        with torch.no_grad():
            logits = model(features.detach())
        weights = prefix_weights(logits, mask)
        outcome = reward - leave_one_out_mean(reward, group)
        if self.keep == "one of each":
            outcome = outcome * pairs
        unweighted = per_action(outcome, mask)
        weight = torch.where(right.unsqueeze(1), weights.right, weights.wrong)
        learned = mask.bool() & (outcome != 0).unsqueeze(1)
        stats = self._learn(model, features.detach()[pairs], mask[pairs], right[pairs])
        stats["weight"] = (weight * learned).sum().item() / max(int(learned.sum()), 1)
        factor = weight if self.steps >= self.warmup else torch.zeros_like(weight)
        self.steps += 1
        return OREALCredit(unweighted * factor, unweighted), stats

    def _learn(self, model: PrefixTokenRM, features: Tensor, mask: Tensor, right: Tensor) -> dict[str, float]:
        """Update the token reward model on some answers; its loss and accuracy before."""
        assert self.optimizer is not None
        stats = {"loss": float("nan"), "accuracy": float("nan")}
        for update in range(self.updates if len(right) else 0):
            with torch.enable_grad():
                logits = model(features)
                loss = outcome_loss(logits, mask, right)
                self.optimizer.zero_grad()
                loss.backward()
            if update == 0:
                said = logits.detach().masked_fill(~mask.bool(), 0.0).sum(dim=1) > 0
                stats = {"loss": loss.item(), "accuracy": (said == right).double().mean().item()}
            self.optimizer.step()
        return stats

    def _model(self, features: Tensor, seed: int) -> PrefixTokenRM:
        """The token reward model, built for the first features it sees."""
        if self.model is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.model = PrefixTokenRM(features.shape[-1], self.hidden).to(features)
            self.optimizer = torch.optim.Adam(self.model.parameters(), lr=self.lr)
        return self.model

    def state_dict(self) -> dict[str, Any]:
        """Steps taken, weights and moments of the token reward model."""
        if self.model is None or self.optimizer is None:
            return {"steps": self.steps}
        named = dict(self.model.named_parameters())
        moments = {name: dict(self.optimizer.state.get(p, {})) for name, p in named.items()}
        return {"steps": self.steps, "model": {name: p.detach() for name, p in named.items()}, "moments": moments}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.steps, self.model = state["steps"], None
        if "model" not in state:
            return
        first = state["model"].get("inner.weight", state["model"]["last.weight"])
        model = self._model(first, 0)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(state["model"][name])
                if state["moments"][name]:
                    self.optimizer.state[p] = {key: x.clone() for key, x in state["moments"][name].items()}  # type: ignore[union-attr]
