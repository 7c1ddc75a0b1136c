import math
import os
import re
import signal
import threading
import time
from fractions import Fraction

import pytest
from batches import batch_of
from hypothesis import given
from hypothesis import strategies as st

from guerdon.errors import RecipeError
from guerdon.registry import get
from guerdon.rewards import verifiable
from guerdon.rewards.base import Reward, score
from guerdon.rewards.verifiable import exact, math_verify, numeric, regex, relaxed_numeric


def run(name, texts, answers, options=None, **settings):
    """Score texts by a registered reward through the reward stage."""
    method = get("reward", name)
    batch, faults = score(
        batch_of(texts, answer=answers), [Reward(name, method, method.validate(options or {}), **settings)]
    )
    return batch.rewards[name].tolist(), faults


@pytest.mark.parametrize("name", ["exact", "numeric", "relaxed_numeric", "math_verify", "regex"])
def test_every_reward_is_registered_under_its_name_and_documented(name):
    method = get("reward", name)
    assert method.target is getattr(verifiable, name)
    assert method.requires == (("text",) if name == "regex" else ("text", "answer"))
    assert method.summary.startswith("Give 1 where")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Paris", "paris"),
        ("  Paris.\n", "Paris"),
        ("PARIS!", "paris"),
        ('"Paris"', "Paris"),
        ("“Paris.”", "Paris"),
        ("'it''s'", "it''s"),
        ("new   york\tcity", "New York City"),
        ("caf\u00e9", "cafe\u0301"),
        ("Straße", "STRASSE"),
        ("42", 42),
        ("-0.5", -0.5),
        ("-", "-"),
        ("...", "..."),
    ],
)
def test_exact_ignores_case_composition_space_and_punctuation_at_the_end(text, answer):
    assert exact(text, answer) == 1.0


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("", "Paris"),
        ("   ", "Paris"),
        (".", "Paris"),
        ("Paris, France", "Paris"),
        ("The answer is Paris", "Paris"),
        ("1.0", "1"),
        ("1", "1.0"),
        ("1,000", "1000"),
        ("5", "-5"),
        ("-5", "5"),
        ("5", ".5"),
        ("50", "50%"),
        ("a", "(a)"),
        ("−5", "-5"),
        ("it's", "its"),
        ("'Paris", "Paris"),
        ("+", "-"),
        ("!!!", "..."),
        ("", "..."),
        ("x²", "x2"),
        ("Par is", "Paris"),
        ("Paris " * 10_000, "Paris"),
    ],
)
def test_exact_refuses_everything_else(text, answer):
    assert exact(text, answer) == 0.0


def test_exact_without_normalising_compares_as_written():
    assert exact(" 5! \n", "5!", normalise=False) == 1.0
    assert exact("5!", "5") == 1.0
    assert exact("5!", "5", normalise=False) == 0.0
    assert exact("paris", "Paris", normalise=False) == 0.0


@pytest.mark.parametrize("function", [exact, numeric, relaxed_numeric, math_verify])
@pytest.mark.parametrize("text", ["", "anything", "0"])
def test_an_empty_reference_is_an_error_and_matches_nothing(function, text):
    for answer in ("", "  \n"):
        with pytest.raises(ValueError, match="reference answer is empty"):
            function(text, answer)


@pytest.mark.parametrize("function", [exact, numeric, relaxed_numeric, math_verify])
@pytest.mark.parametrize("answer", [None, ["Paris"], {"a": 1}])
def test_a_reference_that_is_neither_text_nor_number_is_an_error(function, answer):
    with pytest.raises(TypeError, match="want text or a number"):
        function("Paris", answer)


@given(st.text(), st.booleans())
def test_exact_accepts_the_reference_itself(answer, normalise):
    if answer.strip():
        assert exact(answer, answer, normalise=normalise) == 1.0


READINGS = [
    ("42", 42),
    ("so the answer is 42.", 42),
    ("is it 42?", 42),
    ("first 7, then 42", 42),
    ("1.0", 1),
    ("042", 42),
    ("+42", 42),
    ("-42", -42),
    ("−42", -42),
    ("–42", -42),
    ("－42", -42),
    ("x = -3.5", Fraction(-7, 2)),
    ("(-5)", -5),
    ("-0", 0),
    ("3-5", 5),
    ("f(x)-5", 5),
    ("x-5", 5),
    ("range 3–5", 5),
    ("- 5", 5),
    (".5", Fraction(1, 2)),
    ("-.5", Fraction(-1, 2)),
    ("...5", 5),
    ("1,000", 1000),
    ("-1,234,567.25", Fraction(-123456725, 100)),
    ("$1,000.", 1000),
    ("1,2", 2),
    ("-1,2", 2),
    ("1,0000", 0),
    ("1,234,5", 5),
    ("12,34", 34),
    ("1e3", 1000),
    ("1.5E-3", Fraction(3, 2000)),
    ("1e−3", Fraction(1, 1000)),
    ("-2.5e+2", -250),
    ("2e", 2),
    ("2/4", Fraction(1, 2)),
    ("-3 / 4", Fraction(-3, 4)),
    ("1/2/2024", 2024),
    ("3/4%", Fraction(3, 400)),
    ("50%", Fraction(1, 2)),
    ("50 %", Fraction(1, 2)),
    ("12.5\\%", Fraction(1, 8)),
    ("5kg", 5),
    ("the 3rd", 3),
    ("答案是42", 42),
    ("<answer>42</answer>", 42),
    ("\\boxed{42}", 42),
    ("#### 42", 42),
    ("**42**", 42),
    ("1e400", 10**400),
    ("9" * 4000, int("9" * 4000)),
]


@pytest.mark.parametrize(("text", "value"), READINGS)
def test_numeric_reads(text, value):
    value = Fraction(value)
    assert verifiable._last_number(text) == value
    if value.denominator == 1 and abs(value) < 10**15:
        assert numeric(text, str(value), rel_tol=0) == 1.0
        assert numeric(text, str(value + 1), rel_tol=0) == 0.0


@pytest.mark.parametrize(
    "text",
    [
        *("", "no number", "-", ".", "x42", "v1.5", "x_1", "1_000", "1.2.3", "7 in version 1.2.3", "٤٢", "½"),
        *("1/0", "3/0.0", "1e99999", "1e-99999", "1e999999999999", "9" * 4001),
    ],
)
def test_numeric_finds_no_number(text):
    assert verifiable._last_number(text) is None
    assert numeric(text, "0") == 0.0


@pytest.mark.parametrize("text", ["1423", "420", "42.5", "4.2", "0.42", "42e1", "42/2", "42%", "-42", "42,000", "42 7"])
def test_numeric_does_not_find_the_answer_inside_another_number(text):
    assert numeric(text, "42") == 0.0


def test_numeric_tolerances():
    assert numeric("0.333333", "1/3") == 1.0
    assert numeric("0.3333", "1/3") == 0.0
    assert numeric("0.3333", "1/3", rel_tol=1e-3) == 1.0
    assert numeric("3.3", "3", abs_tol=0.3) == 1.0  # though the float 0.3 is a little less
    assert numeric("3.3001", "3", abs_tol=0.3) == 0.0
    assert numeric("1e-9", "0") == 0.0
    assert numeric("1e-9", "0", abs_tol=1e-8) == 1.0


@pytest.mark.parametrize(
    ("text", "answer", "value"),
    [
        *[("105", "100", 1.0), ("95", 100, 1.0), ("105.1", "100", 0.0), ("94.9", 100.0, 0.0)],
        *[("-10.5", "-10", 1.0), ("10", "-10", 0.0), ("0.0001", "0", 0.0), ("0", "0", 1.0), ("0.525", "50%", 1.0)],
        *[("about 98 units", "100", 1.0), ("of 100 it is 7", "100", 0.0), ("none", "100", 0.0), ("1/0", "100", 0.0)],
        *[("7 <answer>99</answer> 3", "100", 1.0), ("100 <answer>7</answer>", "100", 0.0)],
        *[("<answer> Blue. </answer>", "blue", 1.0), ("red", "blue", 0.0), ("", "blue", 0.0)],
        *[("Q3 2022", "Q3 2021", 0.0), ("q3 2021", "Q3 2021", 1.0), ("5.1 kg", "5 kg", 0.0)],
    ],
)
def test_relaxed_numeric_allows_a_share_of_a_numeric_reference(text, answer, value):
    assert relaxed_numeric(text, answer) == value


def test_the_share_is_of_the_reference():
    assert relaxed_numeric("100", "95.2") == 0.0
    assert relaxed_numeric("95.2", "100") == 1.0
    assert relaxed_numeric("110", "100", tolerance=0.1) == 1.0
    assert relaxed_numeric("100.1", "100", tolerance=0) == 0.0


def test_integers_are_not_rounded():
    assert numeric("1234567", "1234568") == 0.0
    assert numeric("1234567.0", "1234568") == 0.0
    assert numeric("1234567", "1234568", abs_tol=1) == 1.0
    assert numeric("123456789012345678901234567890", "123456789012345678901234567891") == 0.0
    assert numeric("9" * 400, "1" + "0" * 400) == 0.0


def test_numeric_takes_the_last_number_of_the_reference():
    rationale = "She sells 16 - 3 - 4 = 9 eggs, so 9 * 2 = $18.\n#### 18"
    assert numeric("I get 18 dollars", rationale) == 1.0
    assert numeric("I get 9", rationale) == 0.0
    assert numeric("2.50", 2.5) == 1.0


def test_a_reference_without_a_number_is_an_error():
    with pytest.raises(ValueError, match=r"'Paris' holds no number; use 'exact' or 'math_verify'"):
        numeric("42", "Paris")


@pytest.mark.parametrize(
    "text", ["1," * 200_000, "1 " * 200_000, "1.,-" * 100_000, "-" * 400_000, "1" + "," * 400_000, "1/" * 200_000]
)
def test_numeric_is_linear_in_the_text(text):
    start = time.process_time()
    verifiable._last_number(text)
    assert time.process_time() - start < 2.0


@given(st.integers(-(10**30), 10**30))
def test_numeric_agrees_with_pythons_own_formatting_of_integers(value):
    for text in (f"{value}", f"{value:,}", f"= {value}.", f"${value}$"):
        assert verifiable._last_number(text) == value


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numeric_agrees_with_pythons_own_formatting_of_floats(value):
    for text in (repr(value), f"{value:.17e}", f"is {value!r}."):
        assert verifiable._last_number(text) == Fraction(re.search(r"-?[0-9][-+0-9.e]*[0-9]", text)[0])  # type: ignore
    assert numeric(repr(value), value) == 1.0


def test_regex_where():
    assert [regex("say yes now", pattern="yes", where=w) for w in ("anywhere", "start", "whole")] == [1, 0, 0]
    assert [regex("yes now", pattern="yes", where=w) for w in ("anywhere", "start", "whole")] == [1, 1, 0]
    assert [regex("yes", pattern="yes", where=w) for w in ("anywhere", "start", "whole")] == [1, 1, 1]
    assert regex("yes\n", pattern="yes", where="whole") == 0.0


def test_regex_flags_stand_in_the_pattern():
    assert regex("YES", pattern="yes") == 0.0
    assert regex("YES", pattern="(?i)yes") == 1.0
    assert regex("a\nb", pattern="a.b") == 0.0
    assert regex("a\nb", pattern="(?s)a.b") == 1.0
    assert regex("a\nb", pattern="(?m)^b$") == 1.0
    assert regex("ab", pattern=re.compile("A", re.IGNORECASE)) == 1.0


def test_regex_in_a_recipe():
    texts = ["<think>hm</think> 4", "4", "<think>a\nb</think> 5"]
    values, faults = run("regex", texts, [""] * 3, {"pattern": r"(?s)<think>.+</think> \d", "where": "whole"})
    assert values == [1.0, 0.0, 1.0]
    assert faults == []


def test_an_invalid_pattern_is_refused_before_the_run():
    with pytest.raises(RecipeError, match=r"reward 'regex'.*'pattern' is '\(a'.*regular expression"):
        get("reward", "regex").validate({"pattern": "(a"})
    with pytest.raises(RecipeError, match=r"'where' is 'middle'"):
        get("reward", "regex").validate({"pattern": "a", "where": "middle"})
    with pytest.raises(RecipeError, match="'pattern' is missing"):
        get("reward", "regex").validate({})


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("42", "42"),
        ("the answer is $\\frac{1}{2}$", "1/2"),
        ("0.5", "\\frac{1}{2}"),
        ("so \\boxed{\\frac12}", "0.5"),
        ("$1 + x^2$", "x^2+1"),
        ("$(x-1)(x+1)$", "$x^2-1$"),
        ("$\\{3,1,2\\}$", "\\{1,2,3\\}"),
        ("$-3$", "−3"),
        ("−3", "-3"),
        ("1,000", 1000),
        ("-0", "0"),
        ("0.5", "50\\%"),
        ("5 and 6, so \\boxed{7}", "7"),
    ],
)
def test_math_verify_accepts_what_is_equal(text, answer):
    assert math_verify(text, answer) == 1.0


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("", "42"),
        ("I do not know", "42"),
        ("1423", "42"),
        ("3", "-3"),
        ("−3", "3"),
        ("$x^2$", "x^2+1"),
        ("42 or \\boxed{7}", "42"),
        ("$\\frac{1}{0}$", "42"),
        ("\\boxed{", "42"),
        ("$" * 5000, "42"),
        ("1 " * 50_000 + "2", "1"),
    ],
)
def test_math_verify_refuses_what_is_not(text, answer):
    assert math_verify(text, answer) == 0.0


@pytest.mark.parametrize("answer", ["(", "\\frac", "1/0"])
def test_math_verify_reports_a_reference_it_cannot_use(answer):
    with pytest.raises(ValueError, match=r".+"):
        math_verify("42", answer)


def test_math_verify_works_outside_the_main_thread():
    found = []
    threads = [threading.Thread(target=lambda i=i: found.append((i, math_verify(f"${i}$", "2")))) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [(0, 0.0), (1, 0.0), (2, 1.0), (3, 0.0)]


def test_a_text_that_hangs_computer_algebra_is_a_fault_of_its_sample_and_the_next_is_scored():
    texts = ["$42$", "$9^{9^{9^{9}}}$", "$42$", "$41$"]
    values, faults = run("math_verify", texts, ["42"] * 4, {"timeout": 2.0})
    assert values[0] == values[2] == 1.0
    assert values[3] == 0.0
    assert math.isnan(values[1])
    assert [(f.row, f.kind) for f in faults] == [(1, "timeout")]
    assert faults[0].message == "TimeoutError: no result within 2 s"


def test_a_failure_of_the_library_is_a_fault_and_not_a_zero():
    values, faults = run("math_verify", ["5", "5"], ["1/0", "5"])
    assert math.isnan(values[0])
    assert values[1] == 1.0
    assert [(f.row, f.kind) for f in faults] == [(0, "exception")]
    assert "zoo" in faults[0].message


def test_math_verify_reads_the_end_of_a_long_text():
    assert math_verify("$9^{9^{9^{9}}}$" + " so" * 2000 + " $42$", "42") == 1.0


def test_the_process_of_math_verify_is_replaced_when_it_dies():
    assert math_verify("$1$", "1") == 1.0
    (pid,) = verifiable._pool.pids()
    os.kill(pid, signal.SIGKILL)
    assert math_verify("$1$", "1") == 1.0


def test_a_bad_reference_in_a_batch_is_a_fault_of_its_sample():
    values, faults = run("exact", ["a", "b", ""], ["a", "", "c"])
    assert values[0] == 1.0
    assert math.isnan(values[1])
    assert values[2] == 0.0
    assert [(f.row, f.kind) for f in faults] == [(1, "exception")]
