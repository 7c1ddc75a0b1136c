import json

import pytest

from guerdon.sandbox import CallTest, CodeTest, StdinTest, code_tests, read_tests


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ([{"input": "1\n", "output": "2\n"}], [StdinTest("1\n", "2\n")]),
        ([{"output": "2", "name": "two"}], [StdinTest("", "2", "two")]),
        ([{"input": ["1", "2"], "output": ["3"]}], [StdinTest("1\n2", "3")]),
        ([{"args": [1], "expected": 2}], [CallTest("solve", [1], 2)]),
        ([{"function": "f", "kwargs": {"x": 1}, "expected": 2, "name": "n"}], [CallTest("f", [], 2, {"x": 1}, "n")]),
        ({"args": [1], "expected": None}, [CallTest("solve", [1], None)]),
        ({"inputs": [[1], [2]], "outputs": [2, 3], "fn_name": "f"}, [CallTest("f", [1], 2), CallTest("f", [2], 3)]),
        (["assert f(1) == 2"], [CodeTest("assert f(1) == 2", ("f",), None, "assert f(1) == 2")]),
        ("assert f(1)", [CodeTest("assert f(1)", ("f",), None, "assert f(1)")]),
        ([{"code": "assert f(1)", "name": "n"}], [CodeTest("assert f(1)", ("f",), None, "n")]),
        ([StdinTest("1", "2")], [StdinTest("1", "2")]),
    ],
)
def test_the_forms_of_data_sets(given, made):
    assert read_tests(given, entry_point="solve") == made
    if not isinstance(given, str) and not isinstance(given[0] if isinstance(given, list) else None, StdinTest):
        assert read_tests(json.dumps(given), entry_point="solve") == made


def test_inputs_and_outputs_without_a_function_are_a_program():
    assert read_tests({"inputs": ["1\n"], "outputs": ["2\n"]}) == [StdinTest("1\n", "2\n")]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "no tests in None; give a list"),
        ([], "no tests in"),
        ("  ", "no tests in"),
        (7, "no tests in 7"),
        ([7], "test 0 is int 7, want a text or a mapping"),
        ([{"in": 1}], "test 0 has the keys in; want 'input' and 'output'"),
        ([{"args": [1], "expected": 2}], "test 0 does not say which 'function' to call"),
        ({"inputs": [1], "outputs": []}, "1 inputs and 0 outputs"),
        ("assert f(", "the test code is not Python"),
        ("def helper(): pass", "every solution would pass it"),
        ('"""Tests."""\nimport math\nclass T: pass', "every solution would pass it"),
        ("def check(candidate):\n    assert candidate(1)", "an entry_point"),
    ],
)
def test_what_is_no_test_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        read_tests(given)


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("assert f(g(1)) == h", ("f", "g", "h")),
        ("x = f(1)\nassert x", ("f",)),
        ("import math as m, os.path\nassert m.pi < f(os)", ("f",)),
        ("from solution import f\nassert f(1)", ()),
        ("def t(a, *b, c=1, **d):\n    return f(a, b, c, d)\nt(1)", ("f",)),
        ("try:\n    f()\nexcept E as e:\n    print(e)", ("E", "f")),
        ("for i in f(): assert [j for j in g(i)]", ("f", "g")),
        ("match f():\n    case [a, *b]: assert a < b", ("f",)),
        ("assert sorted(f(1)) == [1] and isinstance(f, object)", ("f",)),
        ("assert (lambda q: f(q))(1)", ("f",)),
        ("class A(B):\n    x = f()\nA()", ("B", "f")),
    ],
)
def test_names_come_from_the_solution_where_nothing_else_has_them(source, names):
    assert code_tests(source)[0].names == names


def test_a_name_of_pythons_own_is_the_solutions_only_where_the_entry_point_says_so():
    assert code_tests("assert sum([1]) == 1")[0].names == ()
    assert code_tests("assert sum([1]) == 1", entry_point="sum")[0].names == ("sum",)


def test_functions_are_tests_each():
    made = code_tests("import math\ndef test_a(): assert f(1)\ndef helper(): pass\ndef test_b(): assert f(2)", name="n")
    assert [(test.run, test.name, test.names) for test in made] == [
        ("test_a", "n: test_a", ("f",)),
        ("test_b", "n: test_b", ("f",)),
    ]


def test_check_is_called_with_the_entry_point():
    (made,) = code_tests("def check(candidate):\n    assert candidate(1) == 2", entry_point="f")
    assert made.source.endswith("check(f)\n")
    assert made.names == ("f",)
    (called,) = code_tests("def check(candidate):\n    assert candidate(1) == 2\ncheck(g)", entry_point="f")
    assert called.names == ("g",)
