import networkx as nx
import pytest

from guerdon import registry
from guerdon.errors import RecipeError, TaskError
from guerdon.rewards.process import valid_retrievals
from guerdon.rewards.reasoning_graph import GraphReasoning
from guerdon.tasks.knowledge_graph import GraphQA, KnowledgeGraph

FACTS = [
    ("Marie Curie", "born in", "Warsaw"),
    ("Marie Curie", "married", "Pierre Curie"),
    ("Pierre Curie", "born in", "Paris"),
    ("Warsaw", "capital of", "Poland"),
    ("Oslo", "capital of", "Norway"),
]
PASSAGES = ["Pierre Curie taught in Paris.", "Warsaw lies on the Vistula.", "Nothing of interest."]


@pytest.fixture(scope="module")
def graph():
    return KnowledgeGraph(FACTS, PASSAGES)


def test_entities_are_named_by_their_words(graph):
    assert graph.named("Where was marie curie born?") == ["Marie Curie"]
    assert graph.named("Curie of Warsaw, Oslo") == ["Warsaw", "Oslo"]
    assert graph.named("Warsawa parisian") == []


def test_the_rank_is_personalised_pagerank(graph):
    for entities in (["Warsaw"], ["Warsaw", "Pierre Curie"]):
        wanted = nx.pagerank(graph.graph, personalization=dict.fromkeys(entities, 1.0), tol=1e-12, max_iter=1000)
        got = graph.rank(entities)
        assert all(got[node] == pytest.approx(wanted[node], abs=1e-7) for node in graph.graph)
    assert sum(graph.rank(["Warsaw"]).values()) == pytest.approx(1.0)
    assert graph.rank(["Oslo"])["Warsaw"] == pytest.approx(0.0, abs=1e-8)
    assert set(graph.rank([]).values()) == {0.0}


def test_triples_near_the_entity_come_first_and_words_of_the_query_decide_among_them(graph):
    assert graph.search("Marie Curie born in", triples=1).triples == [FACTS[0]]
    assert graph.search("whom had Marie Curie married", triples=1).triples == [FACTS[1]]
    assert graph.search("Marie Curie", triples=5).triples[4] == FACTS[4], "no path leads there"
    # A fact is about its head: that Warsaw is a capital comes before that somebody was born there.
    assert graph.search("Warsaw", triples=2).triples == [FACTS[3], FACTS[0]]


def test_passages_come_with_the_triples(graph):
    found = graph.search("Pierre Curie", triples=1, passages=2)
    assert found.passages == [PASSAGES[0], PASSAGES[1]], "Warsaw is two steps away, and the third passage is nowhere"
    assert str(found) == "Pierre Curie born in Paris\nPierre Curie taught in Paris.\nWarsaw lies on the Vistula."
    assert graph.search("Warsaw", triples=0).passages == [PASSAGES[1]]


def test_a_query_without_an_entity_finds_nothing(graph):
    assert graph.search("capital of") == ([], [])
    assert str(graph.search("")) == ""


MARKS = {"query": ["[", "]"], "documents": ["(", ")"], "answer_in": ["=", "."]}


@pytest.fixture(scope="module")
def task():
    return GraphQA(hops=[1, 3], entities=12, relations=["boss", "friend", "rival"], **MARKS)


def test_every_fact_is_found_by_its_head_and_relation(task):
    assert len(task.facts) == 36
    for (head, relation), tail in task.facts.items():
        assert head != tail
        assert task.respond([f"{head} {relation}"]) == [f"{head} {relation} {tail}"]
    for relation in task.relations:
        assert {task.facts[head, relation] for head in task.entities} == set(task.entities)


def test_questions_take_the_hops_that_they_say(task):
    problems = [*task.train_batch(64, seed=3), *task.eval_problems(14)]
    assert {p.metadata["hops"] for p in problems} == {1, 3}
    for problem in problems:
        at, *relations = problem.prompt.removesuffix("?").split()
        seen = [at]
        for relation in relations:
            seen.append(task.facts[seen[-1], relation])
        assert seen[-1] == problem.answer
        assert len(set(seen)) == len(seen) == problem.metadata["hops"] + 1
        assert problem.metadata["triples"] == [list(t) for t in zip(seen, relations, seen[1:], strict=False)]


def test_training_and_held_out_questions_differ_and_are_functions_of_the_seed(task):
    held_out = task.eval_problems(14)
    assert [p.metadata["hops"] for p in held_out] == [1, 3] * 7
    assert len({p.task_id for p in held_out}) == 14
    drawn = [p for seed in range(30) for p in task.train_batch(64, seed=seed)]
    assert not {p.prompt for p in drawn} & {p.prompt for p in held_out}
    assert task.train_batch(5, seed=1) == task.train_batch(5, seed=1)
    assert task.train_batch(5, seed=1) != task.train_batch(5, seed=2)
    again = GraphQA(hops=[1, 3], entities=12, relations=["boss", "friend", "rival"], **MARKS)
    assert again.eval_problems(14) == held_out
    other = GraphQA(hops=[1, 3], entities=12, relations=["boss", "friend", "rival"], graph_seed=1, **MARKS)
    assert other.facts != task.facts


def test_a_demonstration_follows_the_path_through_the_search_engine(task):
    for problem in task.train_batch(20, seed=0):
        text = "".join(problem.demonstration)
        found = valid_retrievals(text, query=("[", "]"), documents=("(", ")"))
        assert [r.found.split() for r in found] == problem.metadata["triples"]
        assert task.scorer(text, problem.answer).value == 1.0
        assert problem.demonstration[1::2] == tuple(f"({r.found})" for r in found)


def test_shallow_demonstrations_guess_after_too_few_queries():
    task = GraphQA(hops=[2], entities=12, shallow=1.0, **MARKS)
    problems = task.train_batch(200, seed=0)
    lengths = [len(p.demonstration) for p in problems]
    assert set(lengths) == {1, 3}
    right = sum(task.scorer("".join(p.demonstration), p.answer).value for p in problems)
    assert right < 40, "one in twelve, by chance"
    half = GraphQA(hops=[2], entities=12, shallow=0.5, **MARKS).train_batch(400, seed=0)
    assert 150 < sum(len(p.demonstration) == 5 for p in half) < 250


def test_references_serve_the_reward_of_reasoning(task):
    problem = task.eval_problems(2)[1]
    thought = problem.metadata["graphs"][0]["text"]
    text = f"<think>{thought}</think><answer>{problem.answer}</answer>"
    assert GraphReasoning()(text, problem.answer, problem.metadata, problem.prompt).value == pytest.approx(1.8)


def test_passages_hold_all_facts_about_an_entity():
    task = GraphQA(entities=6, relations=["boss", "friend"], passages=1)
    (answer,) = task.respond(["ba boss"])
    triple, passage = answer.splitlines()
    assert triple == f"ba boss {task.facts['ba', 'boss']}"
    assert passage == f"ba: boss {task.facts['ba', 'boss']}, friend {task.facts['ba', 'friend']}"


def test_names_grow_with_their_number():
    assert len(set(GraphQA(entities=300, hops=[1]).entities)) == 300
    assert {len(name) for name in GraphQA(entities=300, hops=[1]).entities} == {4}
    assert {len(name) for name in GraphQA(entities=100, hops=[1]).entities} == {2}


def test_the_corpus_holds_every_character(task):
    alphabet = set("".join(task.corpus()))
    texts = [p.prompt + "".join(p.demonstration) for p in task.train_batch(100, seed=9)]
    assert set("".join(texts + task.respond(["ba boss"]))) <= alphabet


def test_bad_options_are_refused(task):
    with pytest.raises(RecipeError, match="hops"):
        GraphQA(hops=[0])
    with pytest.raises(TaskError, match="holds out 14"):
        task.eval_problems(15)
    with pytest.raises(RecipeError):
        registry.get("task", "graph_qa").validate({"hops": []})
