import math

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.curriculum.topology import (
    START,
    Turn,
    error_branch_ratio,
    plain_turn,
    strategy_heterogeneity,
    task_scores,
    topology,
    trajectory_scores,
)

quick = settings(derandomize=True, deadline=None, max_examples=40)
ROLLOUTS = st.lists(st.tuples(st.text("abcd", max_size=6), st.booleans()), min_size=1, max_size=8)


def of(*written, success):
    return topology([[Turn(letter, f"saw {letter}") for letter in word] for word in written], success)


def by_word(tree, words):
    names = {START: ""}
    for path, word in zip(tree.paths, words, strict=True):
        names |= dict(zip(path[1:], word, strict=True))
    return {names[node]: value for node, value in enumerate(tree.potential().tolist())}


# Start -> a (four rollouts, three succeed) or e (fails); a -> b -> c, a -> d (an error) -> b -> c, or a -> d -> f.
FIVE = ("abc", "abc", "adbc", "adf", "e")
WON = [True, True, True, False, False]


def test_five_rollouts_by_hand():
    tree = of(*FIVE, success=WON)
    assert by_word(tree, FIVE) == {"": 0.6, "a": 0.75, "b": 1, "c": 1, "d": 0.5, "f": 0, "e": 0}
    # Branches: start -> a, e; a -> b, d; d -> b, f. Two of six lead to failure; three are worse than a sibling.
    assert error_branch_ratio(tree) == pytest.approx(2 / 6)
    assert error_branch_ratio(tree, error="worse") == pytest.approx(3 / 6)
    assert strategy_heterogeneity(tree) == pytest.approx(2 / 3)


def test_scores_of_five_rollouts_by_hand():
    scores = trajectory_scores(of(*FIVE, success=WON))
    # Along a d b c Phi is 0.6, 0.75, 0.5, 1, 1: one drop of 0.25, and 0.5 gained since.
    assert scores.recovery.tolist() == [0, 0, 0.5, 0, 0]
    assert scores.efficiency.tolist() == pytest.approx([1, 1, 3 / 4, 0, 0])
    third = math.log(3)
    assert scores.diversity.tolist() == pytest.approx([math.log(1.5), math.log(1.5), third, 0, 0])
    assert scores.total.tolist() == pytest.approx([1 + math.log(1.5) / third] * 2 + [1 + 0.75 + 1, 0, 0])
    assert trajectory_scores(of(*FIVE, success=WON), drop=0.3).recovery.sum() == 0


def test_a_single_path_scores_nothing():
    # One success alone has a unique-chain ratio of 1 / 1, which shows no second strategy.
    for success in ([True], [True, True, True], [True, False, True], [False, False]):
        tree = of(*["abc"] * len(success), success=success)
        assert error_branch_ratio(tree) == strategy_heterogeneity(tree) == 0
    assert task_scores([of("abc", "abc", success=[True, False])]).tolist() == [0]


def test_a_node_visited_twice_costs_efficiency():
    scores = trajectory_scores(of("abab", "ab", success=[True, True]))
    assert scores.efficiency.tolist() == [0.5, 1]


def test_cycles_are_removed_and_distances_kept():
    tree = of("abc", "bad", "cba", success=[True, True, True])
    assert nx.is_directed_acyclic_graph(tree.graph)
    assert set(tree.graph.successors(START)) == {1, 2, 3}


def test_stamps_and_reasoning_do_not_part_turns():
    one = Turn("get(id)", "at 2026-01-02T03:04:05Z: 550e8400-e29b-41d4-a716-446655440000 ok", "I think")
    two = Turn("get(id)", "at 2025-11-12 13:14:15:  123e4567-e89b-12d3-a456-426614174000 ok", "Let me see")
    assert plain_turn(one) == plain_turn(two)
    assert plain_turn(one) != plain_turn(Turn("get(id)", "at 2026-01-02T03:04:05Z: error"))
    assert plain_turn(Turn("add 12", "34")) != plain_turn(Turn("add 12", "35"))
    merged = topology([[one], [two]], [True, False])
    assert merged.potential().tolist() == [0.5, 0.5]
    exact = topology([[one], [two]], [True, False], key=lambda turn: turn)
    assert exact.potential().tolist() == [0.5, 1, 0]


def test_near_turns_merge_by_their_embedding():
    vectors = {"a": [1.0, 0.0], "b": [0.99, 0.1], "c": [0.0, 1.0]}

    def embed(texts):
        return torch.tensor([vectors[text[0]] for text in texts])

    rollouts = [[Turn(letter, "") for letter in word] for word in ("ac", "bc")]
    tree = topology(rollouts, [True, False], embed=embed)
    assert tree.paths == ((0, 1, 2), (0, 1, 2))
    assert topology(rollouts, [True, False], embed=embed, threshold=0.999).paths == ((0, 1, 2), (0, 3, 2))
    assert topology([], [], embed=embed).paths == ()


def test_pseudo_counts_pull_to_the_pass_rate():
    tree = of("a", "b", success=[True, False])
    assert tree.potential(pseudo_count=1.0).tolist() == [0.5, 0.75, 0.25]


def test_hopeless_and_mastered_tasks_are_not_sampled():
    hopeless, mastered = of("ab", "c", success=[False, False]), of("ab", "c", success=[True, True])
    assert error_branch_ratio(hopeless) == 1
    scores = task_scores([hopeless, mastered, of(*FIVE, success=WON)])
    assert scores.tolist() == [0, 0, 2]
    assert task_scores([]).shape == (0,)


def test_as_many_successes_as_rollouts():
    with pytest.raises(ValueError, match="2 rollouts and 1 successes; give one for each"):
        of("a", "b", success=[True])


@quick
@given(rows=ROLLOUTS)
def test_invariants(rows):
    words, success = [word for word, _ in rows], [won for _, won in rows]
    tree = of(*words, success=success)
    assert nx.is_directed_acyclic_graph(tree.graph)
    for letter, phi in by_word(tree, words).items():
        through = [won for word, won in rows if letter in word]
        assert phi == pytest.approx(sum(through) / len(through))
    scores = trajectory_scores(tree)
    for name in ("total", "recovery", "efficiency", "diversity"):
        x = getattr(scores, name)
        assert bool(x.isfinite().all() & (x >= 0).all())
        assert bool((x[~tree.success] == 0).all())
    assert bool((scores.efficiency <= 1).all())
    assert 0 <= error_branch_ratio(tree) <= 1
    # Every rollout twice changes no ratio but that of different chains.
    twice = of(*words, *words, success=success * 2)
    assert error_branch_ratio(twice) == error_branch_ratio(tree)
    torch.testing.assert_close(trajectory_scores(twice).recovery[: len(words)], scores.recovery)
    back = of(*words[::-1], success=success[::-1])
    torch.testing.assert_close(trajectory_scores(back).efficiency.flip(0), scores.efficiency)
    assert strategy_heterogeneity(back) == strategy_heterogeneity(tree)
