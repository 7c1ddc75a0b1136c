import math

import pytest

from guerdon.analysis.tool_ablation import final_answer, fixed_settings, same_answer, tool_ablation
from guerdon.tasks.base import Problem
from guerdon.tasks.math_modules import KnowledgeRetrieval, SolutionGeneration, plan_modules, run_modules


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so \\boxed{\\frac{1}{\\boxed{2}}}", "2"),
        ("\\boxed{x^{2}}", "x^{2}"),
        ("\\boxed{1} or \\boxed{2}", "2"),
        ("<answer>7</answer>", "7"),
        ("The answer is 3. So the answer is: 4.\nBye", "4"),
        ("\\boxed{open", None),
        ("four", None),
    ],
)
def test_the_final_answer_is_found(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("said", "answer", "same"),
    [
        ("\\frac{1}{2}", "0.5", 1),
        ("\\dfrac12", "1/2", 1),
        ("-\\frac{3}{4}", "-0.75", 1),
        ("50\\%", "50", 1),
        ("\\$1,200", "1200", 1),
        ("12\\text{ cm}", "12", 1),
        ("12 square units", "12", 1),
        ("90^\\circ", "90", 1),
        ("x = 3", "3", 1),
        ("\\left(1, 2\\right)", "(1,2)", 1),
        ("(1,200)", "(1200)", 0),
        ("\\sqrt{2}", "\\sqrt{2}", 1),
        ("7", "So \\boxed{7}", 1),
        ("0.50", ".5", 1),
        ("2", "3", 0),
        ("1/0", "1/0", 1),
        ("1/0", "2/0", 0),
        ("", "", 0),
        ("x", "y", 0),
    ],
)
def test_answers_are_compared_in_normal_form(said, answer, same):
    assert same_answer(f"\\boxed{{{said}}}", answer) == same


def test_a_solution_without_an_answer_is_wrong():
    assert same_answer("7", "7") == 0


def problem(number, level, subject="sums"):
    return Problem(number, f"{number} + 1?", number + 1, metadata={"level": level, "subject": subject})


def answers(prompt, /, *, max_tokens, temperature):
    """Right where a fact is known, and for 1; needs two tries for 3."""
    number = int(prompt.partition("Problem: ")[2].split()[0])
    if prompt.startswith("Recall"):
        return "a fact"
    return f"\\boxed{{{number + 1 if number == 1 or 'KR: a fact' in prompt else 0}}}"


def test_the_table_has_shares_and_costs_by_level_and_subject():
    modules = {"KR": KnowledgeRetrieval(answers), "SG": SolutionGeneration(answers)}
    problems = [problem(1, 1), problem(2, 1, "more"), problem(5, 2), problem(6, 2)]
    table = tool_ablation(problems, fixed_settings(modules, ["SG", "KR+SG"]))
    assert (table.accuracy("SG", 1), table.accuracy("SG", 2), table.accuracy("SG")) == (0.5, 0.0, 0.25)
    assert (table.accuracy("SG", subject="sums"), table.accuracy("SG", 1, "sums")) == (1 / 3, 1.0)
    assert (table.gain("KR+SG", 1), table.gain("KR+SG", 2)) == (0.5, 1.0)
    assert (table.calls("SG"), table.calls("KR+SG")) == (1.0, 2.0)
    assert math.isnan(table.accuracy("PG+SG"))
    assert "| KR+SG | 100% | 100% | 100% | 2.0 |" in str(table)


def test_order_of_problems_does_not_matter_and_planners_are_strategies():
    modules = {"KR": KnowledgeRetrieval(answers), "SG": SolutionGeneration(answers)}

    def planned(context):
        names = plan_modules(context, lambda prompt, /, **_: "[KR, SG]", list(modules))
        run_modules(context, names, modules)

    problems = [problem(n, n % 3) for n in range(9)]
    table, turned = (tool_ablation(p, {"planned": planned}) for p in (problems, problems[::-1]))
    assert sorted(table.rows) == sorted(turned.rows)
    assert table.accuracy("planned") == 1.0
    assert table.calls("planned") == 3.0


def test_a_retry_costs_one_more_call():
    tries = iter(["hm", "hm", "\\boxed{2}"])
    modules = {"SG": SolutionGeneration(lambda prompt, /, **_: next(tries))}
    table = tool_ablation([problem(1, 1)], fixed_settings(modules, ["SG"]))
    assert (table.accuracy("SG"), table.calls("SG")) == (1.0, 3.0)
