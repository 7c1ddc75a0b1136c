import math

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon import registry
from guerdon.errors import RewardError
from guerdon.rewards.judges.questions import JudgeError, Verdict
from guerdon.rewards.reasoning_graph import (
    GraphReasoning,
    ReasoningGraph,
    canonical,
    exact_grade,
    language_share,
    match_graphs,
    read_triples,
    reasoning_graph,
    relation_paths,
    thinking_length,
    word_cosine,
)


def edges(text):
    """Triples from ``a1b b2c``: head, relation, tail of one letter each."""
    return [tuple(word) for word in text.split()]


def alike(a, b):
    return 1.0


@pytest.mark.parametrize(
    ("graph", "wanted"),
    [
        ("", []),
        ("a1b", ["1"]),
        ("a1b b2c", ["1", "12"]),
        ("a1b a2c b3d c4d d5e", ["1", "2", "13", "24", "135", "245"]),  # paths that meet are both followed on
        ("a1b b2c b3d c4e d5f", ["1", "12", "13", "124", "135"]),  # every edge of a node, beyond the first hop too
        ("a1b a2b", ["1", "2"]),
        ("a1b c2d", ["1", "2"]),
        ("a1b b2a", ["1", "2"]),  # a cycle that nothing points to: each of its entities is a root
        ("a1b b2c c3a", ["1", "12", "2", "23", "3", "31"]),
        ("x0a a1b b2a", ["0", "01"]),  # a cycle behind a root is entered there, and walked once
        ("a1a", []),
        ("a1a a2b", ["2"]),
    ],
)
def test_all_relation_paths_from_the_roots(graph, wanted):
    assert relation_paths(edges(graph)) == {tuple(path) for path in wanted}


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("12"), st.sampled_from("abcdef")), max_size=8))
def test_paths_of_acyclic_graphs_agree_with_networkx(triples):
    triples = [(head, relation, tail) for head, relation, tail in triples if head < tail]
    graph = nx.MultiDiGraph()
    graph.add_edges_from((h, t, r) for h, r, t in triples)
    roots = [node for node in graph if graph.in_degree(node) == 0]
    found = {
        tuple(key for _, _, key in path)
        for root in roots
        for target in graph
        if target != root
        for path in nx.all_simple_edge_paths(graph, root, target)
    }
    assert relation_paths(triples) == found


def test_names_are_compared_in_one_form():
    assert canonical("Treated_By") == canonical(" treated-by ") == canonical("TREATED BY") == "treated by"
    assert canonical("→") == "→"
    assert match_graphs([("Aspirin", "treats", "Pain")], [("aspirin", "TREATS", "pain.")]).score == 1.0
    assert match_graphs([("a", "treats", "b")], [("a", "cures", "b")]).logic == 0.0


def test_the_worked_example():
    match = match_graphs(edges("a1b b2c"), edges("a1b"), semantic=1.0)
    assert (match.logic, match.semantic, match.entities) == (0.5, 1.0, pytest.approx(2 / 3))
    assert match.score == pytest.approx(13 / 18)  # .722


def test_a_graph_with_too_many_paths_has_no_logic():
    layers = [(f"{i}{a}", f"{a}{b}", f"{i + 1}{b}") for i in range(12) for a in "xyz" for b in "xyz"]
    with pytest.raises(ValueError, match="more than 10000"):
        relation_paths(layers)
    assert match_graphs(layers, edges("a1b")).logic == 0.0


def test_the_best_reference_counts():
    references = [ReasoningGraph(edges("x1y"), "x"), ReasoningGraph(edges("a1b"), "b")]
    asked = []

    def similarity(a, b):
        asked.append((a, b))
        return 5.0 if b == "b" else -5.0

    match = reasoning_graph("a -> 1 -> b", references, similarity=similarity)
    assert match == (1.0, 1.0, 1.0)
    assert asked == [("a -> 1 -> b", "x"), ("a -> 1 -> b", "b")]
    assert reasoning_graph("nothing", references, similarity=alike) == (0.0, 1.0, 0.0)
    for broken in ([], [ReasoningGraph([], "x")]):
        with pytest.raises(RewardError, match="reference graphs"):
            reasoning_graph("x", broken)


def test_triples_are_read_line_by_line():
    text = "First:\n- Fever -> caused by -> Virus\n a->b->c \nx -> y\na -> b -> c -> d\n -> b -> c"
    assert read_triples(text) == [("Fever", "caused by", "Virus"), ("a", "b", "c")]


def test_word_cosine():
    assert word_cosine("a red fox", "Red fox!") == pytest.approx(1.0)
    assert word_cosine("red fox", "red hen") == pytest.approx(0.5)
    assert word_cosine("red red", "red hen") == pytest.approx(2 / math.sqrt(4 * 2))
    assert (word_cosine("", "x"), word_cosine("", "")) == (0.0, 1.0)


def test_language_is_told_by_script():
    assert language_share("der Schmerz", "why?") == 1.0
    assert language_share("疼痛 ab", "为什么") == 0.5
    assert language_share("because", "为什么") == 0.0
    assert language_share("12 + 3", "why") == 1.0
    assert language_share("abc", "12?") == 1.0


def test_thinking_longer_than_answering():
    assert thinking_length(0, 10) == 0.0
    assert thinking_length(20, 10) == thinking_length(99, 10) == thinking_length(5, 0) == 1.0
    assert thinking_length(10, 10) == pytest.approx((1 - math.exp(-1)) / (1 - math.exp(-2)))


def test_words_are_graded():
    assert exact_grade("The Aspirin.", "aspirin", []) == 2.0
    assert exact_grade("aspirin, 100 mg", ["Paracetamol", "aspirin"], ["ibuprofen"]) == 1.0
    assert exact_grade("aspirin or ibuprofen", "aspirin", ["ibuprofen"]) == 0.0
    assert exact_grade("", "aspirin", []) == 0.0


GRAPHS = {"graphs": [{"triples": [["a", "1", "b"]], "text": "whatever"}]}
THOUGHT = "a -> 1 -> b\nb -> 2 -> c"


def wrote(thought=THOUGHT, answer="b"):
    return f"<think>{thought}</think><answer>{answer}</answer>"


def scored(text, metadata=GRAPHS, prompt="who?", **options):
    return GraphReasoning(similarity=alike, **options)(text, "b", metadata, prompt)


def test_a_right_answer_with_the_graph_of_the_example_earns_what_the_paper_says():
    assert scored(wrote()).value == pytest.approx(1 + 0.8 * 13 / 18)  # 1.578
    assert scored(wrote(), weight=0.5).value == pytest.approx(1 + 0.5 * 13 / 18)
    parts = scored(wrote()).detail
    assert parts["logic"] == 0.5
    assert parts["answer"] == 1.0


def test_grades_are_worth_0_4_and_10_tenths():
    for grade, worth in ((0, 0.0), (1, 0.4), (2, 1.0)):
        value = scored(wrote(), grade=lambda answer, reference, wrong, grade=grade: grade).value
        assert value == pytest.approx(worth + 0.8 * 13 / 18)
    with pytest.raises(RewardError, match="want 0, 1 or 2"):
        scored(wrote(), grade=lambda *_: 0.5)


def test_the_grade_sees_answer_reference_and_what_misleads():
    seen = []
    scored(wrote(), {**GRAPHS, "misleading": ["x"]}, grade=lambda *given: seen.append(given) or 2)
    assert seen == [("b", "b", ["x"])]


def test_a_wrong_answer_with_a_perfect_graph_beats_a_rough_one_without_unless_gated():
    perfect = wrote("a -> 1 -> b", answer="z")
    assert scored(perfect).value == pytest.approx(0.8)
    assert scored(perfect, gate=True).value == 0.0
    rough = wrote("no graph here, none at all", answer="b or so")
    assert GraphReasoning(similarity=lambda a, b: 0.0)(rough, "b", GRAPHS, "who?").value == pytest.approx(0.4)
    assert scored(wrote(), gate=True).value == scored(wrote()).value


def test_each_deviation_costs_up_to_a_tenth():
    full = 1 + 0.8 * 13 / 18
    assert scored(wrote(), prompt="谁").value == pytest.approx(full - 0.1 - 0.1)
    assert scored(wrote("a->1->b"), prompt="who?").value == pytest.approx(1.8)
    long_answer = GraphReasoning(similarity=alike, grade=lambda *_: 2)(wrote("a->1->b", "b" * 7), "b", GRAPHS, "who?")
    assert long_answer.value == pytest.approx(1.8 - 0.1 * (1 - thinking_length(7, 7)))
    assert long_answer.detail["length"] == pytest.approx(thinking_length(7, 7), abs=1e-4)
    assert scored(wrote(), prompt="谁", penalty=0.5).value == pytest.approx(full - 0.5 - 0.5)


def test_searches_are_cut_out_before_anything_is_measured():
    search = "<|begin_of_query|>疼痛疼痛<|end_of_query|><|begin_of_documents|>x -> 9 -> y\n疼痛<|end_of_documents|>"
    assert scored(wrote(search + THOUGHT)).value == scored(wrote()).value
    only = wrote(search, "bbbb")
    assert GraphReasoning(similarity=alike, grade=lambda *_: 2)(only, "b", GRAPHS, "who?").detail["length"] == 0.0


def test_a_bad_form_earns_nothing():
    assert scored("b").value == 0.0
    assert "stands 0 times" in scored("b").detail["why"]
    assert scored(wrote() + "x").value == 0.0
    assert scored(wrote(THOUGHT + "<|end_of_documents|>")).value == 0.0


def test_unusable_references_are_faults():
    for metadata in ({}, {"graphs": [{}]}, {"graphs": 3}, {"graphs": [{"triples": [["a", "b"]]}]}, {"graphs": []}):
        with pytest.raises(RewardError, match="graphs"):
            scored("anything at all", metadata) if metadata != {"graphs": []} else scored(wrote(), metadata)


def test_a_judge_may_grade():
    class Judge:
        def __init__(self, value):
            self.value, self.asked = value, []

        def stats(self):
            return {}

        def ask(self, questions):
            self.asked += questions
            return [Verdict((self.value,)) if self.value is not None else JudgeError("silent")] * len(questions)

    judge = Judge(0.5)
    value = GraphReasoning(similarity=alike, grade=judge)(wrote(), "b", {**GRAPHS, "misleading": ["x"]}, "who?").value
    assert value == pytest.approx(0.4 + 0.8 * 13 / 18)
    assert judge.asked[0].reference == "b"
    assert "mislead" in judge.asked[0].criteria
    with pytest.raises(JudgeError):
        GraphReasoning(similarity=alike, grade=Judge(None))(wrote(), "b", GRAPHS, "who?")


def test_a_recipe_names_functions_by_path():
    method = registry.get("reward", "graph_reasoning")
    bound = method.bind({"extract": "guerdon.rewards.reasoning_graph:read_triples", "gate": True})
    fields = {"text": wrote("a -> 1 -> b", "z"), "answer": "b", "metadata": GRAPHS, "prompt": "who?"}
    assert bound(fields).fields["value"] == 0.0


@given(st.text(alphabet="ab<>/thinkanswer-> 1\n", max_size=80))
def test_any_text_gets_a_number(text):
    assert -0.3 <= scored(text).value <= 1.8
