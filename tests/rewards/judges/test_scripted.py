import math
import statistics

import pytest

from guerdon.rewards.judges import (
    Checklist,
    Item,
    JudgeError,
    Preference,
    Ranking,
    Rating,
    ScriptedJudge,
    Steps,
    Verdict,
    resolve_judge,
)


def truth(prompt, text, statement):
    """A text of n letters has quality n / 10, but for statements about its first letter."""
    return float(text.startswith(statement)) if statement else len(text) / 10


def judged(**settings):
    return ScriptedJudge(truth=truth, **settings)


def one(question, **settings):
    (answer,) = judged(**settings).ask([question])
    return answer.values if isinstance(answer, Verdict) else answer


def pair(a, b):
    return Preference(prompt="p", answers=(a, b))


def test_without_faults_it_tells_the_truth():
    assert one(Rating(prompt="p", answers=("abc",))) == (0.3,)
    assert one(pair("abc", "ab")) == (1.0,)
    assert one(pair("ab", "abc")) == (0.0,)
    assert one(pair("ab", "cd")) == (0.5,)
    assert one(Ranking(prompt="p", answers=("a", "abc", "ab"))) == (0.0, 1.0, 0.5)
    assert one(Steps(prompt="p", answers=("abcdefg", "a"))) == (1.0, 0.0)
    assert one(Steps(prompt="p", answers=("abcdefg", "a"), scale=(0, 1))) == (0.7, 0.1)
    assert one(Checklist(prompt="p", answers=("abc",), items=(Item("a"), Item("b")))) == (1.0, 0.0)


def test_biases_by_hand():
    assert one(pair("ab", "abc"), position_bias=0.2) == (1.0,)
    assert one(pair("abc", "ab"), position_bias=-0.2) == (0.0,)
    assert one(Ranking(prompt="p", answers=("a", "abc", "ab")), position_bias=0.15) == (0.5, 1.0, 0.0)
    assert one(Rating(prompt="p", answers=("abc",)), position_bias=0.5) == (0.3,)
    assert one(Rating(prompt="p", answers=("a" * 5,)), length_bias=20.0) == (pytest.approx(0.6),)
    assert one(pair("ab", "abc"), tie_margin=0.11) == (0.5,)
    assert one(pair("ab", "abc"), tie_margin=0.09) == (0.0,)
    assert one(Rating(prompt="p", answers=("a" * 30,))) == (1.0,), "values stay in [0,1]"


def test_noise_has_the_size_asked_for_and_is_repeatable():
    questions = [Rating(prompt=str(i), answers=("aaaaa",)) for i in range(2000)]
    values = [a.values[0] for a in judged(noise=0.1).ask(questions)]
    assert statistics.fmean(values) == pytest.approx(0.5, abs=4 * 0.1 / math.sqrt(2000))
    assert statistics.stdev(values) == pytest.approx(0.1, rel=4 / math.sqrt(2 * 2000))
    assert [a.values[0] for a in judged(noise=0.1).ask(questions[::-1])] == values[::-1]
    assert [a.values[0] for a in judged(noise=0.1, seed=1).ask(questions)] != values


def test_either_order_gets_a_look_of_its_own():
    there, back = zip(*((("a" + str(i), "b" + str(i)), ("b" + str(i), "a" + str(i))) for i in range(1000)), strict=True)
    noisy = judged(noise=0.5)
    verdicts = [[a.values[0] for a in noisy.ask([pair(*p) for p in pairs])] for pairs in (there, back)]
    agree = statistics.fmean(a == 1 - b for a, b in zip(*verdicts, strict=True))
    assert agree == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(1000)), "of equal answers the looks are independent"


def test_it_fails_as_often_as_asked():
    questions = [Rating(prompt=str(i), answers=("a",)) for i in range(2000)]
    failing = judged(failure_rate=0.2)
    failed = sum(isinstance(answer, JudgeError) for answer in failing.ask(questions))
    assert failed == pytest.approx(400, abs=4 * math.sqrt(2000 * 0.2 * 0.8))
    assert failing.stats()["failures"] == failed
    assert failing.stats()["questions"] == 2000
    assert isinstance(one(questions[0], failure_rate=1.0), JudgeError)


def test_a_recipe_can_name_one():
    path = f"{__file__}:truth"
    (answer,) = resolve_judge({"backend": "scripted", "truth": path}).ask([Rating(prompt="p", answers=("ab",))])
    assert answer == Verdict((0.2,))
