"""Search that is spent where it pays: a beam over known items first, then the beginnings of which most is expected."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from guerdon.credit.grouping import group_mean
from guerdon.credit.step import gae
from guerdon.engine.filters import keep_listed
from guerdon.engine.padding import right_pad
from guerdon.objectives.entropy import categorical_entropy
from guerdon.sampling.branching import TrieConstraint, _grow

LEVEL_WEIGHTS = (0.3, 0.5, 1.0)
_SLACK = 1e-9  # what rounding does to a mean of equal numbers closes no gate


class Guided(NamedTuple):
    """What a search found for one prompt: C different items of at most T tokens, in the order in which it met them.

    Attributes:
        tokens: (C,T) right-padded with -1.
        mask: (C,T) true on tokens.
        logp: (C,T) log-probability of each token among those that were allowed.
        spent: beginnings, whole items included, that were written: the tokens of the tree.
    """

    tokens: Tensor
    mask: Tensor
    logp: Tensor
    spent: int


@torch.no_grad()
def value_guided_decoding(
    policy: Callable[[Tensor], Tensor],
    value: Callable[[Tensor], Tensor],
    constraint: TrieConstraint,
    *,
    budget: int,
    width: int = 8,
    entropy_weight: float = 0.1,
    exploration: float = 1.0,
) -> Guided:
    """Find items that are worth trying, also where the policy finds their beginnings unlikely.

    G(s) = V(s) + entropy_weight H(pi(.|s));  U(s) = G(s) + exploration sqrt(ln(N(root) + 1) / (N(s) + 1))

    A beam builds the tree. Then, one token at a time: descend from the root by the largest U to the last beginning
    that may grow, and write the likeliest token that it has not been given yet. A beginning may grow if G there is at
    least the mean of G over the beginnings of its length in the tree; a new one counts in that mean at once. N counts
    the beam's items and the later tokens at or behind a beginning.

    The source leaves three things open. Here a descent enters no branch where nothing may grow, as it would spend
    nothing there and come back; the last beginning that may grow is given the token, so that promising branches are
    deepened before new ones are opened; and the search ends early where nothing may grow. It serves training: what it
    finds is no independent sample of the policy, and decoding at test time stays an ordinary beam.

    Args:
        policy: ``(prefixes (B,l) int64) -> (B,V)`` log-probabilities of the next token; all prefixes of a call are of
            one length. The beam asks once per length, and the search once per new beginning.
        value: ``(prefixes (B,l)) -> (B,)`` what is expected of each; neither is asked about whole items.
        constraint: the items.
        budget: tokens of the tree, those of the beam included.
        width: of the beam; fewer where there are fewer beginnings.
        entropy_weight: of the entropy in nats among the tokens that may follow.
        exploration: of what was seldom visited.

    Returns:
        All whole items of the tree, those of the beam first, the likeliest of them first.

    Raises:
        ValueError: when width is below 1, or the budget may not suffice for the beam.

    Source: Jiang et al. 2026, arXiv 2602.10699.
    """
    if width < 1:
        raise ValueError(f"width is {width}, wanted 1 or more")
    if budget < width * constraint.depth:
        raise ValueError(
            f"budget is {budget}, and a beam of {width} over items of up to {constraint.depth} tokens may take "
            f"{width * constraint.depth}; raise the budget to that, or lower width"
        )
    tree = _Tree(policy, value, constraint, entropy_weight)
    tree.beam(width)
    while tree.spent < budget and tree.grow(exploration):
        pass
    return tree.found()


@dataclass
class _Node:
    """A beginning in the tree: its tokens and their log-probabilities, and what may follow, likeliest last."""

    prefix: tuple[int, ...]
    logp: tuple[float, ...]
    parent: int
    promise: float = 0.0
    visits: int = 0
    opened: list[int] = field(default_factory=list)
    waiting: list[tuple[float, int, int]] = field(default_factory=list)


class _Tree:
    """The beginnings written so far, by their node in the constraint; parents come before their children."""

    def __init__(
        self,
        policy: Callable[[Tensor], Tensor],
        value: Callable[[Tensor], Tensor],
        constraint: TrieConstraint,
        entropy_weight: float,
    ) -> None:
        self.policy, self.value, self.constraint, self.entropy_weight = policy, value, constraint, entropy_weight
        self.nodes: dict[int, _Node] = {0: _Node((), (), -1)}
        self.items: list[int] = []
        self.levels: list[tuple[float, int]] = []

    @property
    def spent(self) -> int:
        """Tokens written."""
        return len(self.nodes) - 1

    def beam(self, width: int) -> None:
        """Grow the tree by the beginnings that a beam keeps after every token."""
        log_probs = self._ask([0])
        score = log_probs.new_full((1, width), float("-inf"))
        score[:, 0] = 0.0
        node = torch.zeros(width, dtype=torch.int64)
        rows, alive = log_probs.expand(width, -1), score[0].isfinite()
        for _ in range(self.constraint.depth):
            parent, token, following, score = _grow(self.constraint, rows, node, score)
            alive = score[0].isfinite()
            fresh = [i for i in range(width) if alive[i] and token[i] >= 0]
            for i in fresh:
                self._open(int(node[parent[i]]), int(following[i]))
            node, rows = following, rows[parent]
            asked = [i for i in fresh if self._inner(int(node[i]))]
            if asked:
                rows[asked] = self._ask([int(node[i]) for i in asked])
        self.items = [int(node[i]) for i in range(width) if alive[i]]
        for item in self.items:
            self._visit(item)

    def grow(self, exploration: float) -> bool:
        """Write one token where most is expected; false if none may be written."""
        growing = self._growing()
        if 0 not in growing:
            return False
        at, horizon = 0, math.log(self.nodes[0].visits + 1)
        while below := [child for child in self.nodes[at].opened if child in growing]:
            bonus = [exploration * math.sqrt(horizon / (self.nodes[child].visits + 1)) for child in below]
            upper = [self.nodes[child].promise + extra for child, extra in zip(below, bonus, strict=True)]
            at = below[upper.index(max(upper))]
        child = self.nodes[at].waiting[-1][2]
        self._open(at, child)
        if self._inner(child):
            self._ask([child])
        else:
            self.items.append(child)
        self._visit(child)
        return True

    def found(self) -> Guided:
        """The whole items."""
        nodes = [self.nodes[item] for item in self.items]
        tokens, mask = right_pad([list(node.prefix) for node in nodes], -1)
        logp = torch.zeros(tokens.shape)
        logp[mask.bool()] = torch.tensor([x for node in nodes for x in node.logp])
        return Guided(tokens, mask.bool(), logp, self.spent)

    def _inner(self, at: int) -> bool:
        return bool((self.constraint.tokens[at] >= 0).any())

    def _growing(self) -> set[int]:
        """Beginnings at or behind which one may grow."""
        out: set[int] = set()
        for at, node in reversed(self.nodes.items()):
            if at in out:
                out.add(node.parent)
            elif node.waiting:
                total, count = self.levels[len(node.prefix)]
                if node.promise >= total / count - _SLACK:
                    out |= {at, node.parent}
        return out

    def _open(self, at: int, child: int) -> None:
        """Write a token that waits behind a beginning."""
        node = self.nodes[at]
        logp, token, _ = next(entry for entry in node.waiting if entry[2] == child)
        node.waiting = [entry for entry in node.waiting if entry[2] != child]
        node.opened.append(child)
        self.nodes[child] = _Node((*node.prefix, token), (*node.logp, logp), at)

    def _visit(self, at: int) -> None:
        while at >= 0:
            self.nodes[at].visits += 1
            at = self.nodes[at].parent

    def _ask(self, several: Sequence[int]) -> Tensor:
        """Ask policy and value about beginnings of one length: log-probabilities (B,V) among the allowed tokens."""
        prefixes = torch.tensor([self.nodes[at].prefix for at in several], dtype=torch.int64)
        index = torch.tensor(several)
        listed = self.constraint.tokens[index]
        log_probs = keep_listed(self.policy(prefixes), listed).log_softmax(dim=-1)
        promise = self.value(prefixes) + self.entropy_weight * categorical_entropy(log_probs)
        gains = log_probs.gather(1, listed.clamp(min=0))
        depth = prefixes.shape[1]
        if depth == len(self.levels):
            self.levels.append((0.0, 0))
        for row, at in enumerate(several):
            node = self.nodes[at]
            node.promise = float(promise[row])
            follow = zip(gains[row].tolist(), listed[row].tolist(), self.constraint.children[at].tolist(), strict=True)
            # Stable, so that of equally likely tokens the first in the order of the items is taken first.
            node.waiting = sorted((entry for entry in follow if entry[1] >= 0), key=lambda entry: -entry[0])[::-1]
            total, count = self.levels[depth]
            self.levels[depth] = (total + node.promise, count + 1)
        return log_probs


class PrefixReward:
    """Reward of each token for how near the items that begin so are to the right one; it teaches values, no policy.

    r_l = w_l where the first l tokens are the right item's, else -w_l (1 - cos(mean e of the items that begin so, e of
    the right item))

    It knows the right item, so it stays out of ``rewards`` and out of the policy's gradient.

    Args:
        items: token ids of each item.
        embeddings: (items, D) e of each.
        weights: w of each level; the last holds for all that follow.

    Source: Jiang et al. 2026, arXiv 2602.10699.
    """

    def __init__(
        self, items: Sequence[Sequence[int]], embeddings: Tensor, *, weights: Sequence[float] = LEVEL_WEIGHTS
    ) -> None:
        if len(items) != len(embeddings):
            raise ValueError(f"got {len(embeddings)} embeddings of {len(items)} items; give one for each")
        self.constraint, self.weights = TrieConstraint(items), list(weights)
        tokens, mask = right_pad([list(item) for item in items], -1)
        path = _nodes(self.constraint, tokens).masked_fill(~mask.bool(), -1)
        size = embeddings.shape[1]
        spread = embeddings.unsqueeze(1).expand(-1, path.shape[1], -1)
        key = path.unsqueeze(2) * size + torch.arange(size)
        means = group_mean(spread.contiguous(), key, (path >= 0).unsqueeze(2).expand(key.shape))
        self.buckets = embeddings.new_zeros(len(self.constraint.tokens), size)
        self.buckets[path[path >= 0]] = means[path >= 0]

    def __call__(self, tokens: Tensor, gold: Tensor, mask: Tensor) -> Tensor:
        """Reward of each token.

        Args:
            tokens: (N,T) items or beginnings of items.
            gold: (N,T) the right item of each, -1 behind its end.
            mask: (N,T) true on tokens, from the first on.

        Returns:
            (N,T), 0 off the mask.

        Raises:
            ValueError: when tokens or gold begin no item.
        """
        mask = mask.bool()
        mine = _nodes(self.constraint, tokens.masked_fill(~mask, -1))
        right = _nodes(self.constraint, gold)
        whole = torch.where(right >= 0, torch.arange(gold.shape[1]), 0).amax(dim=1, keepdim=True)
        target = right.gather(1, whole)
        if bool(((mine < 0) & mask).any()) or bool((target < 0).any()):
            raise ValueError("tokens or gold begin no item that the reward was built with; give it all items")
        near = torch.cosine_similarity(self.buckets[mine.clamp(min=0)], self.buckets[target], dim=-1)
        levels = [self.weights[min(level, len(self.weights) - 1)] for level in range(tokens.shape[1])]
        weight = torch.tensor(levels, dtype=near.dtype)
        return (weight * torch.where(mine == right, 1.0, near - 1.0)).masked_fill(~mask, 0.0)


def value_targets(dense: Tensor, values: Tensor, mask: Tensor, *, gamma: float = 0.99) -> Tensor:
    """What a value head learns, one token ahead: r_l + gamma V(s_{l+1}), where nothing follows a whole item.

    Args:
        dense: (N,T) reward of each token, as ``PrefixReward`` gives it.
        values: (N,T) V of the beginning before each token; no gradient passes.
        mask: (N,T) true on tokens.
        gamma: discount per token.

    Returns:
        (N,T) targets of ``values``, 0 off the mask.

    Source: Jiang et al. 2026, arXiv 2602.10699.
    """
    ended = torch.ones(len(dense), dtype=torch.bool)
    values = values.detach().masked_fill(~mask.bool(), 0.0)
    return gae(dense, values, mask, values.new_zeros(len(dense)), ended, gamma=gamma, lam=0.0, whiten=False).returns


def _nodes(constraint: TrieConstraint, tokens: Tensor) -> Tensor:
    """(N,T) where each beginning of rows (N,T) leads; -1 for what no item begins with."""
    if not tokens.shape[1]:
        return tokens
    return torch.stack([constraint.node(tokens[:, : length + 1]) for length in range(tokens.shape[1])], dim=1)
