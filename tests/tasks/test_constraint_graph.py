from itertools import combinations, permutations, product

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.errors import TaskError
from guerdon.seeding import numpy_generator
from guerdon.tasks.constraint_graph import (
    ConstraintGraphQA,
    constraint_puzzle,
    page,
    solutions,
    source_dispersion,
    treewidth,
)

quick = settings(derandomize=True, deadline=None, max_examples=30)
NAMES = [f"e{i}" for i in range(40)]
RELATIONS = ["boss", "friend", "pupil", "rival"]


def by_elimination(graph):
    """Treewidth by its definition over all orders of elimination."""
    best = len(graph)
    for order in permutations(graph):
        work, width = graph.copy(), 0
        for node in order:
            near = list(work.neighbors(node))
            width = max(width, len(near))
            work.add_edges_from(combinations(near, 2))
            work.remove_node(node)
        best = min(best, width)
    return best


@pytest.mark.parametrize(
    ("graph", "width"),
    [
        (nx.path_graph(5), 1),
        (nx.star_graph(6), 1),
        (nx.cycle_graph(4), 2),
        (nx.cycle_graph(8), 2),
        (nx.complete_graph(4), 3),
        (nx.complete_graph(6), 5),
        (nx.grid_2d_graph(3, 3), 3),
        (nx.empty_graph(3), 0),
        (nx.Graph(), 0),
    ],
)
def test_treewidth_of_known_graphs(graph, width):
    assert treewidth(graph) == width


@quick
@given(seed=st.integers(0, 10_000), edges=st.integers(0, 10))
def test_treewidth_is_that_of_the_best_elimination_order(seed, edges):
    graph = nx.gnm_random_graph(5, edges, seed=seed)
    assert treewidth(graph) == by_elimination(graph)


def test_treewidth_of_a_large_graph_is_refused():
    with pytest.raises(ValueError, match="15 nodes, wanted at most 14"):
        treewidth(nx.path_graph(15))


def test_dispersion_counts_documents_and_not_facts():
    facts = [("a", "r", str(i)) for i in range(4)]
    apart = [[fact] for fact in facts]
    assert source_dispersion(facts, apart) == 4
    assert source_dispersion(facts, [facts[:2], facts[1:], *apart]) == 2
    # The same document in other words is no further source; one that sums up the others is the only one needed.
    assert source_dispersion(facts, [facts[:2], facts[1::-1], facts[2:]]) == 2
    assert source_dispersion(facts, [*apart, facts]) == 1
    assert source_dispersion([], apart) == 0
    with pytest.raises(ValueError, match="no document states"):
        source_dispersion(facts, apart[1:])


@quick
@given(st.lists(st.sets(st.integers(0, 5), min_size=1), min_size=1, max_size=6))
def test_dispersion_by_brute_force(documents):
    facts = [("f", "r", str(i)) for i in set().union(*documents)]
    held = [[("f", "r", str(i)) for i in document] for document in documents]
    wanted = min(
        len(some)
        for size in range(len(held) + 1)
        for some in combinations(held, size)
        if set(facts) <= {fact for document in some for fact in document}
    )
    assert source_dispersion(facts, held) == wanted


def test_solutions_are_those_of_an_enumeration():
    facts = {("a", "r", "b"), ("a", "r", "c"), ("b", "s", "d"), ("c", "s", "d"), ("d", "r", "a"), ("c", "s", "c")}
    constraints = [("a", "r", "?x"), ("?x", "s", "?y"), ("?y", "r", "a")]
    seen = {(found["?x"], found["?y"]) for found in solutions(constraints, facts)}
    every = product("abcd", repeat=2)
    assert (
        seen
        == {(x, y) for x, y in every if {("a", "r", x), (x, "s", y), (y, "r", "a")} <= facts}
        == {("b", "d"), ("c", "d")}
    )
    assert solutions([("?x", "s", "?x")], facts) == [{"?x": "c"}]
    assert solutions([("a", "t", "?x")], facts) == []


@pytest.mark.parametrize(("width", "dispersion"), [(1, 1), (1, 2), (1, 4), (2, 1), (2, 3), (2, 4), (3, 2), (3, 6)])
def test_questions_are_as_hard_as_asked_for(width, dispersion):
    random = numpy_generator(0, "test", width, dispersion)
    for _ in range(25):
        puzzle = constraint_puzzle(NAMES, RELATIONS, random, width=width, dispersion=dispersion)
        facts = [fact for document in (*puzzle.evidence, *puzzle.distractors) for fact in document]
        assert treewidth(puzzle.graph) == width
        assert source_dispersion(puzzle.needed, [*puzzle.evidence, *puzzle.distractors]) == dispersion
        assert {found[puzzle.asked] for found in solutions(puzzle.constraints, facts)} == {puzzle.answer}
        assert not any(puzzle.answer in fact for document in puzzle.distractors for fact in document)
        assert puzzle.answer not in puzzle.text.split()
        # Without any of the needed facts the question has no answer.
        for gone in puzzle.needed:
            assert solutions(puzzle.constraints, [fact for fact in facts if fact != gone]) == []


def test_questions_that_cannot_be_are_refused():
    random = numpy_generator(0, "test")
    with pytest.raises(TaskError, match="width 2 has 4 facts; 'dispersion' is 5"):
        constraint_puzzle(NAMES, RELATIONS, random, width=2, dispersion=5)
    with pytest.raises(TaskError, match="takes 8 names and 4 relations, got 5 and 4"):
        constraint_puzzle(NAMES[:5], RELATIONS, random)


def test_demonstrations_solve_the_task():
    pytest.importorskip("bm25s")
    task = ConstraintGraphQA(widths=[1, 2, 3], dispersion=3, questions=30, top=3)
    problems = [*task.train_batch(10, 0), *task.eval_problems(5)]
    assert [p.task_id for p in problems] == [p.task_id for p in [*task.train_batch(10, 0), *task.eval_problems(5)]]
    session = task.begin(problems, [0] * len(problems))
    session.reset()
    for row, problem in enumerate(problems):
        said = [session.step([row], [action])[0] for action in problem.episode[::2]]
        assert [step.observation for step in said[:-1]] == list(problem.episode[1::2])
        assert (said[-1].reward, said[-1].terminated) == (1.0, True)
        assert all(step.reward == 0 for step in said[:-1])
    session.close()
    held_out = {p.task_id for p in task.eval_problems(9)}
    assert not held_out & {p.task_id for p in task.train_batch(200, 1)}
    with pytest.raises(TaskError, match="holds out 9 questions, 10 were asked for"):
        task.eval_problems(10)


def test_words_are_in_the_corpus():
    pytest.importorskip("bm25s")
    task = ConstraintGraphQA(questions=10)
    known = set(" ".join(task.corpus()).split())
    assert {w for p in task.train_batch(20, 0) for text in (p.prompt, *p.episode) for w in text.split()} <= known


def test_page():
    assert page([("a", "r", "b"), ("b", "s", "c")]) == "a r b . b s c ."
