"""Texts that are left at an uncertain token and go on in other ways, beside those that they leave."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from guerdon.errors import RecipeError
from guerdon.registry import register
from guerdon.rollouts import Rollouts
from guerdon.sampling.sources import Draw, Source
from guerdon.seeding import derive, torch_generator
from guerdon.tasks.base import Starts

if TYPE_CHECKING:
    from guerdon.policies.language import LanguagePolicy
    from guerdon.policies.language_sampling import LanguageSampling

Ranking = Literal["entropy", "random"]


def critical_positions(
    entropy: Tensor, eligible: Tensor, *, k: int = 20, ranking: Ranking = "entropy", generator: torch.Generator
) -> Tensor:
    """A position of each trajectory, drawn uniformly from the k eligible ones of highest entropy.

    Position 0 is never drawn, for what leaves a text there shares nothing with it.

    Args:
        entropy: (N,T) entropy of the policy at each action.
        eligible: (N,T) where a text may be left; nothing else is read.
        k: how many positions are candidates; all eligible ones where there are fewer.
        ranking: ``random`` ranks without regard to entropy.
        generator: of the draws.

    Returns:
        (N,) int64; -1 where no position is eligible.

    Source: Li et al. 2025, arXiv 2508.11016 (CURE), and its code.
    """
    eligible = eligible.bool().clone()
    eligible[:, :1] = False
    chance = torch.rand(len(entropy), generator=generator, dtype=torch.float64)
    score = entropy.detach().double().cpu()
    if ranking == "random":
        score = torch.rand(score.shape, generator=generator, dtype=torch.float64)
    allowed = eligible.cpu()
    order = score.masked_fill(~allowed, float("-inf")).argsort(dim=1, descending=True, stable=True)
    count = allowed.sum(dim=1).clamp(max=k)
    if not order.shape[1]:
        return torch.full((len(order),), -1, device=entropy.device)
    place = torch.minimum((chance * count).long(), (count - 1).clamp(min=0))
    drawn = order.gather(1, place.unsqueeze(1)).squeeze(1)
    return torch.where(count > 0, drawn, -1).to(entropy.device)


def eligible_tokens(policy: LanguagePolicy, rollouts: Rollouts, *, least_characters: int = 2) -> Tensor:
    """Where a text may be left: at tokens that are not special and not blank.

    Args:
        policy: wrote the texts.
        rollouts: N of them, of at most T tokens.
        least_characters: number of characters other than white space around it that a token's text must have. The
            source's 2 rules out every token of a vocabulary of characters, which needs 1.

    Returns:
        (N,T) bool.

    Source: Li et al. 2025, arXiv 2508.11016 (CURE), and its code.
    """
    assert rollouts.tokens is not None
    known = rollouts.tokens[rollouts.mask].unique().tolist()
    special = set(policy.tokenizer.all_special_ids)
    fit = [t for t in known if t not in special and len(str(policy.tokenizer.decode([t])).strip()) >= least_characters]
    return rollouts.mask & torch.isin(rollouts.tokens, torch.tensor(fit, dtype=torch.int64).to(rollouts.tokens.device))


def cure_branch(
    policy: LanguagePolicy,
    rollouts: Rollouts,
    options: LanguageSampling,
    *,
    seed: int,
    branches: int = 3,
    k: int = 20,
    ranking: Ranking = "entropy",
    least_characters: int = 2,
) -> Rollouts | None:
    """Leave each text before one of its critical tokens, and go on from there in several ways.

    The critical token is drawn by ``critical_positions`` and is not kept. A branch is a whole text of its parent's
    group: its reward is that of all of it, and its actions are those of the new part alone, to which the rest is
    context. The budget is that of the whole text, so a branch never outgrows the context that its parent had.

    Args:
        policy: wrote the texts, and writes on.
        rollouts: the texts, with their entropies.
        options: how they were drawn.
        seed: of the draws.
        branches: of each text.
        k, ranking: see ``critical_positions``.
        least_characters: see ``eligible_tokens``.

    Returns:
        The branches; None if no text has an eligible token.

    Raises:
        RecipeError: when texts may ask a tool, or are episodes of several turns.

    Source: Li et al. 2025, arXiv 2508.11016 (CURE), and its code.
    """
    assert rollouts.entropy is not None
    eligible = eligible_tokens(policy, rollouts, least_characters=least_characters)
    generator = torch_generator(seed, "critical")
    at = critical_positions(rollouts.entropy, eligible, k=k, ranking=ranking, generator=generator)
    rows = (at >= 0).nonzero().flatten().repeat_interleave(branches)
    if not len(rows):
        return None
    out = policy.branch(rollouts, rows.tolist(), at[rows].tolist(), options, seed=derive(seed, "branches"))
    assert out.branch_at is not None
    begun = torch.arange(out.mask.shape[1], device=out.mask.device) < out.branch_at.unsqueeze(1)
    out.mask = out.mask & ~begun
    out.turn = torch.where(out.mask, out.turn, -1)
    out.old_logp = out.old_logp.masked_fill(begun, 0.0)
    if out.entropy is not None:
        out.entropy = out.entropy.masked_fill(begun, 0.0)
    return out


@register("source", "cure", paper="Li et al. 2025, arXiv 2508.11016")
class Cure(Source):
    """Branches that leave every text at an uncertain token, in its group; plain samples instead in a second stage.

    With ``sampling.group_size`` 4 and three branches of each, a group has 16 members in both stages. In the second one,
    which is plain DAPO, they all begin at the prompt. Grouping originals with branches draws the baseline towards
    states that the policy reaches already.

    Args:
        branches: of each text, and plain samples for each in the second stage.
        k: tokens of highest entropy from which one is drawn.
        ranking: ``random`` draws from all eligible tokens.
        least_characters: see ``eligible_tokens``; 1 for a vocabulary of characters.
        steps: training steps of the first stage.

    Source: Li et al. 2025, arXiv 2508.11016, and its code.
    """

    when = "sampling"

    def __init__(
        self,
        *,
        branches: Annotated[int, Field(ge=1)] = 3,
        k: Annotated[int, Field(ge=1)] = 20,
        ranking: Ranking = "entropy",
        least_characters: Annotated[int, Field(ge=1)] = 2,
        steps: Annotated[int, Field(ge=0)] = 300,
    ) -> None:
        self.branches, self.k = branches, k
        self.ranking: Ranking = ranking
        self.least_characters, self.steps = least_characters, steps

    def draw(self, draw: Draw) -> Rollouts | None:
        """The branches of the batch, or its further samples."""
        from guerdon.policies.language import LanguagePolicy
        from guerdon.policies.language_sampling import LanguageSampling

        policy, options, starts = draw.policy, draw.sampling, draw.starts
        if not isinstance(policy, LanguagePolicy) or not isinstance(options, LanguageSampling):
            raise RecipeError(
                f"source 'cure' needs a policy that writes, and '{type(policy).__name__}' does not; use policy "
                "'tiny_lm' or 'causal_lm'"
            )
        assert draw.rollouts is not None
        assert starts is not None
        if draw.step >= self.steps:
            problems = [problem for problem in starts.problems for _ in range(self.branches)]
            again = Starts(problems, starts.group.repeat_interleave(self.branches), starts.version)
            return policy.sample(again, options, seed=draw.seed)
        return cure_branch(
            policy,
            draw.rollouts,
            options,
            seed=draw.seed,
            branches=self.branches,
            k=self.k,
            ranking=self.ranking,
            least_characters=self.least_characters,
        )
