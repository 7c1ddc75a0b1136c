import time

import pytest

from guerdon.errors import RecipeError
from guerdon.tasks.agents import Passage
from guerdon.tasks.math_modules import (
    MODULES,
    SETTINGS,
    KnowledgeRetrieval,
    ProgramGeneration,
    SharedText,
    SolutionGeneration,
    SymbolicSolver,
    WebSearch,
    first_tokens,
    module_tools,
    parse_setting,
    plan_modules,
    react,
    recall_by_bm25,
    run_modules,
    search_by_bm25,
)
from guerdon.tasks.tools import Call, Toolbox

PASSAGES = [Passage("circle", "the area of a circle is pi r^2"), Passage("cube", "the volume of a cube is s^3")]


class Says:
    """Gives texts in turn and keeps what it was asked."""

    def __init__(self, *texts):
        self.texts, self.asked = list(texts), []

    def __call__(self, prompt, /, *, max_tokens, temperature):
        self.asked.append((prompt, max_tokens, temperature))
        said = self.texts.pop(0)
        if isinstance(said, Exception):
            raise said
        return said


def context():
    return SharedText("What is 6 * 7?", "arithmetic", "2")


def test_the_text_begins_with_subject_and_level_and_grows_by_what_modules_give():
    text = context()
    KnowledgeRetrieval(Says(" use products "))(text)
    SolutionGeneration(Says("\\boxed{42}"))(text)
    assert text.text == ("Subject: arithmetic\nLevel: 2\nProblem: What is 6 * 7?\nKR: use products\nSG: \\boxed{42}")
    assert text.solution == "\\boxed{42}"
    assert text.calls == {"KR": 1, "SG": 1}
    assert not text.runs


def test_later_modules_read_what_earlier_ones_gave():
    knows, solves = Says("a fact"), Says("\\boxed{1}")
    text = context()
    run_modules(text, ["KR", "SG"], {"KR": KnowledgeRetrieval(knows), "SG": SolutionGeneration(solves)})
    assert "KR: a fact" in solves.asked[0][0]
    assert "a fact" not in knows.asked[0][0]


def test_defaults_are_those_of_the_release():
    write = Says("x", "concepts", "f1", "f2", "1", "print(1)", "\\boxed{1}")
    text = context()
    for module in (
        KnowledgeRetrieval(write),
        WebSearch(write, search_by_bm25([Passage("", "What is this"), Passage("", "concepts")])),
        SymbolicSolver(write, solve=lambda query: query),
        ProgramGeneration(write),
        SolutionGeneration(write),
    ):
        module(text)
    budgets = [(tokens, temperature) for _, tokens, temperature in write.asked]
    assert budgets == [(512, 0.5)] * 4 + [(600, 0.5), (256, 0.5), (600, 0.5)]
    assert len(SETTINGS) == len(set(SETTINGS)) == 14
    assert WebSearch(write, search_by_bm25([])).top == 5


@pytest.mark.parametrize(
    ("module", "runs"),
    [
        (KnowledgeRetrieval(Says("")), 0),
        (KnowledgeRetrieval(Says(TimeoutError("slow"))), 0),
        (SymbolicSolver(Says("import os")), 1),
        (SymbolicSolver(Says("2 +")), 1),
        (SymbolicSolver(Says("")), 0),
        (SymbolicSolver(Says("1"), solve=lambda query: 1 / 0), 1),
        (ProgramGeneration(Says("print(")), 1),
        (ProgramGeneration(Says("x = 1")), 1),
        (ProgramGeneration(Says("print(1)\nraise ValueError")), 1),
        (ProgramGeneration(Says("")), 0),
        (ProgramGeneration(Says("import time; time.sleep(60)"), wall_time=0.2), 1),
        (WebSearch(Says(""), lambda query, top: []), 1),
        (SolutionGeneration(Says("", "", "", "")), 0),
    ],
)
def test_a_module_that_fails_leaves_the_text_as_it_is(module, runs):
    text = context()
    before, started = text.text, time.time()
    module(text)
    assert text.text == before
    assert not text.added
    assert text.runs[module.name] == runs
    assert time.time() - started < 5


def test_a_program_is_appended_with_its_output():
    text = context()
    ProgramGeneration(Says("```python\nprint(6 * 7)\n```"))(text)
    assert text.added == [("PG", "print(6 * 7)\nOutput: 42")]
    assert (text.calls["PG"], text.runs["PG"]) == (1, 1)


def test_refining_shows_the_error_and_every_try_counts():
    write, fix = Says("print(6 * 7"), Says("print(seven)", "print(42)")
    text = context()
    ProgramGeneration(write, fix=fix, tries=3)(text)
    assert text.added == [("PG", "print(42)\nOutput: 42")]
    assert (text.calls["PG"], text.runs["PG"]) == (3, 3)
    assert "print(6 * 7" in fix.asked[0][0]
    assert "SyntaxError" in fix.asked[0][0]
    assert "print(seven)" in fix.asked[1][0]
    assert "NameError" in fix.asked[1][0]
    assert [asked[1:] for asked in fix.asked] == [(500, 0.7)] * 2
    text = context()
    ProgramGeneration(Says("(", "(", "(", "print(1)"), tries=3)(text)
    assert not text.added
    assert text.calls["PG"] == 3


def test_programs_share_no_names_and_keep_their_backslashes():
    text = context()
    ProgramGeneration(Says("leaked = 7\nprint(leaked)"))(text)
    ProgramGeneration(Says("print(leaked)"))(text)
    ProgramGeneration(Says("print(len('\\\\n'), len('\\n'), r'\\frac')"))(text)
    assert [said.rpartition("Output: ")[2] for _, said in text.added] == ["7", "2 1 \\frac"]


def test_budgets_hold_whatever_is_written_or_printed():
    assert first_tokens("one, two\n  three", 3) == "one, two"
    assert first_tokens("one  two\n", 5) == "one  two\n"
    text = context()
    KnowledgeRetrieval(Says("word " * 900))(text)
    ProgramGeneration(Says("print('9 ' * 900)"))(text)
    SymbolicSolver(Says("1"), solve=lambda query: "8 " * 900, max_tokens=50)(text)
    words = [len(said.split()) for _, said in text.added]
    assert words == [512, 256 + len("print('9 ' * 900) Output:".split()), 50]


def test_two_searches_are_made_and_extracted_apart():
    pytest.importorskip("bm25s")
    write = Says("volume of a cube", "area fact", "volume fact")
    text = SharedText("area of a circle")
    WebSearch(write, search_by_bm25(PASSAGES), top=1)(text)
    assert text.added == [("BS", "area fact\nvolume fact")]
    assert "pi r^2" in write.asked[1][0]
    assert "s^3" in write.asked[2][0]
    assert (text.calls["BS"], text.runs["BS"]) == (3, 2)
    text = SharedText("the area of a circle")
    KnowledgeRetrieval(recall_by_bm25(PASSAGES, 1))(text)
    assert text.added == [("KR", "the area of a circle is pi r^2")]


def test_the_answer_is_written_anew_until_it_has_its_form():
    write = Says("hm", "well", "\\boxed{4}", "\\boxed{5}")
    text = context()
    SolutionGeneration(write)(text)
    assert text.solution == "\\boxed{4}"
    assert text.calls["SG"] == 3
    text = context()
    SolutionGeneration(Says("a", "b", "", "", "\\boxed{5}"))(text)
    assert text.solution == "b"
    assert text.calls["SG"] == 4


def test_settings_end_in_the_answer_writer():
    assert parse_setting("BS+PG+WA+SG") == ["BS", "PG", "WA", "SG"]
    for setting in SETTINGS:
        assert set(parse_setting(setting)) <= set(MODULES)
    with pytest.raises(RecipeError, match="ends in 'PG'"):
        parse_setting("PG")
    with pytest.raises(RecipeError, match="no module 'PX'"):
        parse_setting("PX+SG")


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ("[KR, PG, SG]", ["KR", "PG", "SG"]),
        ("I take ['WA', \"SG\"] here", ["WA", "SG"]),
        ("KR then SG", ["SG"]),
        ("[KR, PG]", ["SG"]),
        ("[KR, XX, SG]", ["SG"]),
        ("[]", ["SG"]),
        (ValueError("down"), ["SG"]),
    ],
)
def test_a_plan_that_cannot_be_read_is_the_answer_writer_alone(said, names):
    write, text = Says(said), context()
    assert plan_modules(text, write, examples=[("2 + 2", ["PG", "SG"])]) == names
    assert write.asked[0][1:] == (128, 0.0)
    assert "plan: [PG, SG]" in write.asked[0][0]
    assert text.calls["plan"] == 1
    assert not text.added


def test_react_chooses_from_the_text_until_the_answer():
    modules = {"KR": KnowledgeRetrieval(Says(*"ab")), "SG": SolutionGeneration(Says("\\boxed{1}"))}
    choose, text = Says("Next: KR", "KR again", "SG"), context()
    assert react(text, modules, choose) == ["KR", "KR", "SG"]
    assert "KR: b" in choose.asked[2][0]
    assert text.calls["react"] == 3
    modules = {"KR": KnowledgeRetrieval(Says(*"abc")), "SG": SolutionGeneration(Says(*["\\boxed{1}"] * 2))}
    assert react(context(), modules, Says("KR", "KR"), most=3) == ["KR", "KR", "SG"]
    assert react(context(), modules, Says("none of them")) == ["SG"]


def test_modules_are_tools():
    text = context()
    box = Toolbox(
        module_tools({"PG": ProgramGeneration(Says("print(42)", "print(")), "KR": KnowledgeRetrieval(Says("f"))}, text)
    )
    assert box.schemas[0]["function"]["description"].startswith("PG: a Python program")
    assert box.call(Call("PG", {})) == "print(42)\nOutput: 42"
    assert box.call(Call("PG", {})) == "no output"
    assert box.call(box.read("KR", "line")) == "f"
    assert [name for name, _ in text.added] == ["PG", "KR"]
