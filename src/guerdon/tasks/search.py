"""Finding the part of a graph that a question is about."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import networkx as nx
import torch
from torch import Tensor

Embed = Callable[[Sequence[str]], Tensor]


@dataclass(frozen=True)
class Community:
    """A node of the hierarchy: an entity, or a group of communities.

    Attributes:
        name: the entity, or an invented name.
        text: what describes it.
        children: what it consists of; empty for an entity.
    """

    name: Hashable
    text: str
    children: tuple[Community, ...] = field(default=())

    @property
    def entities(self) -> list[Hashable]:
        """The entities below it, or itself."""
        if not self.children:
            return [self.name]
        return [entity for child in self.children for entity in child.entities]


def communities(
    graph: nx.Graph,
    *,
    levels: int = 3,
    seed: int = 0,
    summarise: Callable[[Sequence[str]], str] = " ".join,
) -> tuple[Community, ...]:
    """Divide a graph into communities of communities, by Louvain's method within each.

    Args:
        graph: its nodes are entities; the attribute ``text`` describes one, its name by default.
        levels: depth of the hierarchy above the entities; a community that does not divide further stays whole.
        seed: of Louvain's method.
        summarise: texts of the members to the text of their community; they are joined by default.

    Returns:
        The communities at the top.

    Source: Deep GraphRAG; three levels and the recursion are inferred.
    """

    def divide(nodes: Sequence[Hashable], level: int, name: str) -> tuple[Community, ...]:
        entities = tuple(Community(n, str(graph.nodes[n].get("text", n))) for n in nodes)
        if level == 0 or len(nodes) == 1:
            return entities
        found: Any = nx.community.louvain_communities(graph.subgraph(nodes), seed=seed)
        if len(found) == 1:
            return entities
        order = {node: place for place, node in enumerate(nodes)}
        parts = sorted((sorted(part, key=order.__getitem__) for part in found), key=lambda part: order[part[0]])
        out = []
        for index, part in enumerate(parts):
            below = divide(part, level - 1, f"{name}.{index}")
            out.append(Community(f"{name}.{index}", summarise([child.text for child in below]), below))
        return tuple(out)

    return divide(list(graph.nodes), levels, "community")


def hierarchical_beam(
    query: str, top: Sequence[Community], embed: Embed, *, beam: int = 3, joint: bool = True
) -> list[tuple[Community, float]]:
    """Walk from the top communities down to entities, keeping the best ``beam`` at every level.

    score = cos(query, text of the community) at the top, cos(query, text of its parent and its own) below

    An entity that is reached early waits for the others. (The source's reranker reads query, parent and child in one
    text. With a cosine the query stays on its own side: against a text that joins it with the parent, children that
    resemble their parent would win, whatever was asked.)

    Args:
        query: the question.
        top: communities to begin with.
        embed: texts to (n,D) vectors.
        beam: how many are kept; 1 is greedy.
        joint: read a child's text behind its parent's; alone otherwise.

    Returns:
        At most ``beam`` entities with their scores, best first.

    Raises:
        ValueError: when there is nothing to search, or the beam is empty.

    Source: Deep GraphRAG; beam 3 is inferred.
    """
    if not top or beam < 1:
        raise ValueError(f"hierarchical_beam has {len(top)} communities and beam {beam}, wanted at least 1 of each")
    candidates = [(community, community.text) for community in top]
    while True:
        kept = _best(query, candidates, embed, beam)
        if not any(community.children for (community, _), _ in kept):
            return [(community, score) for (community, _), score in kept]
        candidates = []
        for (community, text), _ in kept:
            below = [(child, f"{community.text} {child.text}" if joint else child.text) for child in community.children]
            candidates += below or [(community, text)]


def recall(found: Sequence[tuple[Community, float]], wanted: Mapping[Hashable, Any] | Sequence[Hashable]) -> float:
    """Share of the wanted entities among those found."""
    names = {community.name for community, _ in found}
    return sum(entity in names for entity in wanted) / len(wanted)


def _best(
    query: str, candidates: Sequence[tuple[Community, str]], embed: Embed, beam: int
) -> list[tuple[tuple[Community, str], float]]:
    """The candidates whose texts are nearest to the query, with their cosines."""
    vectors = torch.nn.functional.normalize(embed([query, *(text for _, text in candidates)]), dim=-1)
    scores = vectors[1:] @ vectors[0]
    order = torch.argsort(scores, descending=True, stable=True)[:beam]
    return [(candidates[i], float(scores[i])) for i in order.tolist()]
