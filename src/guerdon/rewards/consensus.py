"""What the answers of one group say about each other, without a reference."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from guerdon.credit.answers import Pattern, entropy_of_answers
from guerdon.rewards.base import batched, reward


@reward(paper="Han et al. 2025, arXiv 2508.04138")
@batched
def answer_entropy(text: Sequence[str], group: Tensor, *, pattern: Pattern | None = None) -> Tensor:
    """Entropy of the final answers of each group, in nats: 0 where all agree.

    H = -sum_a p(a) ln p(a),  p(a) = share of the group's answers that are a

    It is no reward to climb, for disagreement is not worth having in itself; list it with ``watch: true``.

    Args:
        text: N texts that the policy wrote.
        group: (N,) key of the trajectories that share a start.
        pattern: see ``final_answer``; texts in which it finds nothing count as one answer, which no other equals.

    Returns:
        (N,) H of each trajectory's group, at most ln of its size.

    Source: Han et al. 2025, arXiv 2508.04138.
    """
    return entropy_of_answers(text, group, pattern)
