"""What several rollouts of one task look like side by side: a graph of their turns, and what it is worth to learn from.

Turns that say and see the same are one node. A node's success potential is the share of the rollouts through it that
succeed; how it falls and rises along a rollout shows errors and recoveries, and where it differs between the children
of a node, the task has a decision to learn.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import networkx as nx
import torch
from torch import Tensor

START = 0  # the node before the first turn

_STAMP = re.compile(
    r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?)?(?:Z|[+-]\d\d:?\d\d)?"  # dates and times
    r"|\b\d\d:\d\d:\d\d\b"
    r"|\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b"  # UUIDs
    r"|\b(?=[0-9a-f]*\d)[0-9a-f]{12,}\b"  # hashes and request ids
)


class Turn(NamedTuple):
    """One turn of a rollout.

    Attributes:
        action: the call that was made, or the answer.
        observation: what came back.
        reasoning: what was thought before; it never decides whether turns are the same, or nothing would be.
    """

    action: str
    observation: str
    reasoning: str = ""


def plain_turn(turn: Turn) -> Hashable:
    """Action and observation without dates, times, UUIDs and long hexadecimal ids, and with single blanks."""
    return tuple(" ".join(_STAMP.sub("*", text).split()) for text in (turn.action, turn.observation))


@dataclass(frozen=True)
class Topology:
    """The quotient graph of the R rollouts of one task; made by ``topology``.

    Attributes:
        graph: acyclic; nodes are numbered from ``START``, which all rollouts share.
        paths: nodes of each rollout, ``START`` first, repeats included.
        success: (R,) bool.
        visits, successes: (V,) rollouts through each node, and those among them that succeed; one that comes twice
            counts once.
    """

    graph: nx.DiGraph
    paths: tuple[tuple[int, ...], ...]
    success: Tensor
    visits: Tensor
    successes: Tensor

    def potential(self, *, pseudo_count: float = 0.0) -> Tensor:
        """(V,) success potential of each node.

        Phi(v) = (successes through v + c p) / (visits of v + c),  p the pass rate of the task, c the pseudo count

        Args:
            pseudo_count: 0 in the source; a node seen once is then 0 or 1, which says little.
        """
        prior = self.success.double().mean() if len(self.success) else torch.zeros((), dtype=torch.float64)
        return (self.successes + pseudo_count * prior) / (self.visits + pseudo_count).clamp(min=1e-12)

    def branches(self) -> list[tuple[int, int]]:
        """Edges of the decisions: those that leave a node in more than one way."""
        return [edge for edge in self.graph.edges if self.graph.out_degree(edge[0]) > 1]


def topology(
    rollouts: Sequence[Sequence[Turn]],
    success: Sequence[bool],
    *,
    key: Callable[[Turn], Hashable] = plain_turn,
    embed: Callable[[Sequence[str]], Tensor] | None = None,
    threshold: float = 0.9,
) -> Topology:
    """Merge the turns of all rollouts of one task into a graph.

    Edges are the transitions that were seen. To leave no cycle, the edges of the shortest paths from the start are
    kept, then, the most frequent first, every edge that closes none; so distances from the start stay what they were.

    Args:
        rollouts: all of one task, failed ones too: a potential of the successful alone is 1 everywhere.
        success: (R,) whether each succeeded.
        key: what two turns must have in common to be one; by default ``plain_turn``.
        embed: texts to (n,D) vectors. If given, a turn also joins the first node whose action and observation, read as
            one text, have a cosine of at least ``threshold`` with its own.
        threshold: inferred.

    Raises:
        ValueError: when rollouts and successes are not as many.

    Source: Yang et al. 2026, arXiv 2603.01714. How cycles are removed is inferred.
    """
    if len(rollouts) != len(success):
        raise ValueError(f"topology has {len(rollouts)} rollouts and {len(success)} successes; give one for each")
    turns = [turn for rollout in rollouts for turn in rollout]
    first: dict[Hashable, Turn] = {}
    for turn in turns:
        first.setdefault(key(turn), turn)
    node = _numbered(first, embed, threshold)
    paths = tuple((START, *(node[key(turn)] for turn in rollout)) for rollout in rollouts)
    won = torch.tensor([bool(x) for x in success], dtype=torch.bool)
    visits, successes = torch.zeros(2, max(node.values(), default=START) + 1, dtype=torch.float64)
    for path, good in zip(paths, won.tolist(), strict=True):
        through = torch.tensor(sorted(set(path)))
        visits[through] += 1
        successes[through] += float(good)
    return Topology(_acyclic(paths), paths, won, visits, successes)


def _numbered(
    first: dict[Hashable, Turn], embed: Callable[[Sequence[str]], Tensor] | None, threshold: float
) -> dict[Hashable, int]:
    """Number of each key's node, from 1."""
    if embed is None or not first:
        return {name: number for number, name in enumerate(first, start=1)}
    vectors = torch.nn.functional.normalize(embed([f"{t.action}\n{t.observation}" for t in first.values()]), dim=-1)
    near = vectors @ vectors.T >= threshold
    heads: list[int] = []
    numbers: dict[Hashable, int] = {}
    for place, name in enumerate(first):
        joined = [number for number, head in enumerate(heads) if near[place, head]]
        if not joined:
            heads.append(place)
        numbers[name] = 1 + (joined[0] if joined else len(heads) - 1)
    return numbers


def _steps(path: Sequence[int]) -> set[tuple[int, int]]:
    """The transitions of a path, each once; staying at a node is none."""
    return {edge for edge in pairwise(path) if edge[0] != edge[1]}


def _acyclic(paths: Sequence[Sequence[int]]) -> nx.DiGraph:
    counts = Counter(edge for path in paths for edge in _steps(path))
    full = nx.DiGraph(list(counts))
    full.add_node(START)
    graph = nx.DiGraph()
    graph.add_nodes_from(full.nodes)
    graph.add_edges_from(nx.bfs_edges(full, START))
    for source, target in sorted(counts, key=lambda edge: -counts[edge]):
        if not nx.has_path(graph, target, source):
            graph.add_edge(source, target)
    return graph


class TrajectoryScores(NamedTuple):
    """What successful rollouts are worth as examples: (R,) each; 0 for those that failed.

    Attributes:
        total: weighted sum of the others, each divided by the largest of the task.
        recovery, efficiency, diversity: as they are.
    """

    total: Tensor
    recovery: Tensor
    efficiency: Tensor
    diversity: Tensor


def trajectory_scores(
    of: Topology,
    *,
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
    drop: float = 0.2,
    pseudo_count: float = 0.0,
) -> TrajectoryScores:
    """Score the successful rollouts of a task for imitation.

    recovery = sum over turns at which Phi falls by ``drop`` or more of max(0, Phi at the end - Phi after the fall)
    efficiency = distance from the start to the last node / number of turns
    diversity = sum over branches taken of -log(share of the successful rollouts that left the node this way)

    Args:
        of: all rollouts of the task.
        weights: of recovery, efficiency and diversity; equal by default, for the source's were not seen.
        drop: what counts as a sharp drop; inferred.
        pseudo_count: see ``Topology.potential``.

    Source: Yang et al. 2026, arXiv 2603.01714. The formulas of recovery and diversity, and the division by the largest,
        are inferred from words.
    """
    phi = of.potential(pseudo_count=pseudo_count)
    good = of.success.nonzero().flatten().tolist()
    distance = nx.single_source_shortest_path_length(of.graph, START)
    edges = [_steps(of.paths[r]) for r in good]
    taken, left = Counter(e for each in edges for e in each), Counter(n for each in edges for n in {e[0] for e in each})
    scores = torch.zeros(3, len(of.paths), dtype=torch.float64)
    for r, mine in zip(good, edges, strict=True):
        path = of.paths[r]
        along = phi[list(path)]
        fell = along.diff() <= -drop
        scores[0, r] = (along[-1] - along[1:][fell]).clamp(min=0).sum()
        scores[1, r] = distance[path[-1]] / (len(path) - 1) if len(path) > 1 else 1.0
        shares = torch.tensor([taken[edge] / left[edge[0]] for edge in mine], dtype=torch.float64)
        scores[2, r] = -shares.log().sum()
    total = torch.tensor(weights, dtype=torch.float64) @ torch.stack([_of_largest(x) for x in scores])
    return TrajectoryScores(total, *scores)


def error_branch_ratio(of: Topology, *, error: Literal["fails", "worse"] = "fails") -> float:
    """Share of the branches of a task's decisions that lead to failure; 0 where nothing is decided.

    Args:
        of: all rollouts of the task.
        error: whether such a branch is one from which no rollout succeeds, or one worse than its best sibling. (The
            source is not clear; with few rollouts the latter counts noise.)

    Source: Yang et al. 2026, arXiv 2603.01714.
    """
    branches = of.branches()
    if not branches:
        return 0.0
    phi = of.potential().tolist()
    if error == "fails":
        return sum(phi[child] == 0 for _, child in branches) / len(branches)
    best = {node: max(phi[child] for child in of.graph.successors(node)) for node, _ in branches}
    return sum(phi[child] < best[node] for node, child in branches) / len(branches)


def strategy_heterogeneity(of: Topology) -> float:
    """Different paths of successful rollouts, per successful rollout; 0 where there is only one path.

    (One success alone would have 1 by the ratio, though it shows no second strategy.)

    Source: Yang et al. 2026, arXiv 2603.01714 (unique-chain ratio).
    """
    chains = [of.paths[r] for r in of.success.nonzero().flatten().tolist()]
    return len(set(chains)) / len(chains) if len(set(chains)) > 1 else 0.0


def task_scores(tasks: Sequence[Topology], *, error: Literal["fails", "worse"] = "fails") -> Tensor:
    """Weights by which to sample tasks for RL.

    w = error branch ratio / largest + strategy heterogeneity / largest;  0 where all rollouts, or none, succeed

    (By its formula a hopeless task, in which every branch fails, has the highest error branch ratio of all. No reward
    differs there, so nothing can be learned, and it is left out, as tasks that never fail are.)

    Args:
        tasks: one topology per task.
        error: see ``error_branch_ratio``.

    Returns:
        (P,) weights, at least 0.

    Source: Yang et al. 2026, arXiv 2603.01714. The division by the largest is inferred.
    """
    mixed = torch.tensor([bool(of.success.any()) and not bool(of.success.all()) for of in tasks], dtype=torch.float64)
    errors = torch.tensor([error_branch_ratio(of, error=error) for of in tasks], dtype=torch.float64) * mixed
    kinds = torch.tensor([strategy_heterogeneity(of) for of in tasks], dtype=torch.float64) * mixed
    return _of_largest(errors) + _of_largest(kinds)


def _of_largest(x: Tensor) -> Tensor:
    most = x.max() if x.numel() else x.sum()
    return x / most if most > 0 else torch.zeros_like(x)
