import networkx as nx
import pytest
import torch

from guerdon.tasks.search import Community, communities, hierarchical_beam, recall

WORDS = ["red", "blue", "round", "flat", "old", "new"]


def embed(texts):
    return torch.tensor([[float(text.split().count(word)) for word in WORDS] for text in texts])


def leaf(name, text):
    return Community(name, text)


TOP = (
    Community("A", "red red round", (leaf("a1", "red flat"), leaf("a2", "red new"))),
    Community("B", "red blue", (leaf("b1", "red old round"), leaf("b2", "blue"))),
    Community("C", "blue flat", (leaf("c1", "blue flat"),)),
)


def test_greedy_takes_the_best_branch_and_a_beam_looks_further():
    greedy = hierarchical_beam("red round old", TOP, embed, beam=1, joint=False)
    assert [c.name for c, _ in greedy] == ["a1"]
    wide = hierarchical_beam("red round old", TOP, embed, beam=2, joint=False)
    assert [c.name for c, _ in wide] == ["b1", "a1"]
    assert wide[0][1] == pytest.approx(1.0)
    assert recall(wide, ["b1", "b2"]) == 0.5


def test_below_the_top_a_text_is_read_behind_its_parents():
    asked = []

    def watching(texts):
        asked.append(list(texts))
        return embed(texts)

    found = hierarchical_beam("round", TOP, watching, beam=1)
    assert asked == [
        ["round", "red red round", "red blue", "blue flat"],
        ["round", "red red round red flat", "red red round red new"],
    ]
    assert found[0][1] == pytest.approx(1 / (3**2 + 1 + 1) ** 0.5)


def test_entities_reached_early_wait_for_the_others():
    uneven = (leaf("early", "round"), Community("D", "round", (leaf("late", "round new"),)))
    found = hierarchical_beam("round", uneven, embed, beam=2, joint=False)
    assert [c.name for c, _ in found] == ["early", "late"]


def test_nothing_to_search_is_refused():
    with pytest.raises(ValueError, match="0 communities"):
        hierarchical_beam("x", (), embed)
    with pytest.raises(ValueError, match="beam 0"):
        hierarchical_beam("x", TOP, embed, beam=0)


def test_communities_are_nested_and_hold_every_entity_once():
    graph = nx.Graph()
    for clique in range(4):
        members = [f"{clique}{i}" for i in range(5)]
        graph.add_edges_from((a, b) for a in members for b in members if a < b)
    graph.add_edges_from([("00", "10"), ("20", "30"), ("10", "20")])
    nx.set_node_attributes(graph, {node: f"text of {node}" for node in graph}, "text")
    top = communities(graph, levels=3)
    assert sorted(entity for part in top for entity in part.entities) == sorted(graph)
    assert {len(part.entities) for part in top} == {5}
    assert "text of 00" in next(part for part in top if "00" in part.entities).text
    assert communities(graph, levels=3) == top


def test_communities_are_divided_again_up_to_the_level_asked_for():
    cliques = [[f"{group}{clique}{i}" for i in range(5)] for group in range(4) for clique in range(4)]
    graph = nx.Graph()
    for members in cliques:
        graph.add_edges_from((a, b) for a in members for b in members if a < b)
    for group in range(4):  # the cliques of a group are tied to one another, the groups hardly
        inside = [member for members in cliques[4 * group : 4 * group + 4] for member in members]
        graph.add_edges_from((a, b) for a in inside for b in inside if a[2] == b[2] and a < b)
        graph.add_edge(f"{group}00", f"{(group + 1) % 4}00")

    def depth(part):
        return 1 + max(map(depth, part.children)) if part.children else 0

    for levels in (1, 2):
        top = communities(graph, levels=levels)
        assert [{entity[0] for entity in part.entities} for part in top] == [{"0"}, {"1"}, {"2"}, {"3"}]
        assert {depth(part) for part in top} == {levels}
    assert all(len(child.entities) < 20 for part in top for child in part.children)
    assert max(map(depth, communities(graph, levels=3))) <= 3
    flat = communities(graph, levels=0)
    assert [c.name for c in flat] == list(graph)
