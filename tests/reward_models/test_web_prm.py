import itertools
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.reward_models.generative import Candidate
from guerdon.reward_models.web_prm import WebStep, read_web_steps, web_prm


def step(number, environment="a", bad=4):
    rejected = tuple(Candidate(f"bad {number} {q}") for q in range(bad))
    return WebStep(environment, f"task {number}", "page", Candidate(f"good {number}"), rejected)


def told(verdict):
    """A judge that says by (good, bad, order) whether the first of a pair wins."""

    def judge(prompts, first, second):
        rows = []
        for one, other in zip(first, second, strict=True):
            order = int("bad" in one)
            good, bad = (other, one) if order else (one, other)
            wins = verdict(good, bad, order)
            rows.append(None if wins is None else ((10, 0) if wins != bool(order) else (0, 10)))
        return rows

    return judge


def number(text, place):
    return int(text.split()[place])


def test_a_judge_that_guesses_has_a_half_and_a_sixteenth():
    """Every pattern of four verdicts, once in each order, is what guessing means on average."""
    patterns = list(itertools.product([True, False], repeat=4))
    steps = [step(n) for n in range(16)]

    def guess(good, bad, order):
        return patterns[(number(good, 2) + 5 * order) % 16][number(bad, 3)]

    report = web_prm(told(guess), steps)
    score = report.held_out
    assert (score.steps, score.pairs) == (16, 64)
    assert (score.pairwise, score.best_of_n) == (0.5, 1 / 16)
    assert score.first == 0.5
    assert (report.pairwise, report.best_of_n, report.trained) == (0.5, 1 / 16, None)


def test_pairs_are_counted_and_not_steps():
    score = web_prm(told(lambda good, bad, order: number(bad, 3) != 0), [step(0), step(1)]).held_out
    assert (score.pairwise, score.best_of_n, score.flipped) == (0.75, 0.0, 0.0)
    ragged = web_prm(told(lambda good, bad, order: number(bad, 3) != 3), [step(0), step(1, bad=1), step(2, bad=3)])
    assert (ragged.held_out.pairwise, ragged.held_out.best_of_n) == (7 / 8, 2 / 3)


@pytest.mark.parametrize("favoured", [0, 1])
def test_a_judge_that_looks_at_the_place_gains_nothing(favoured):
    score = web_prm(told(lambda good, bad, order: order == favoured), [step(0), step(1)]).held_out
    assert (score.pairwise, score.best_of_n, score.flipped) == (0.5, 0.5, 1.0)
    assert score.first == (1.0 if favoured == 0 else 0.0)


def test_what_cannot_be_read_is_lost():
    score = web_prm(told(lambda good, bad, order: None if order else True), [step(0)]).held_out
    assert (score.pairwise, score.best_of_n, score.unreadable, score.flipped) == (0.5, 0.5, 0.5, 0.0)
    assert score.first == 1.0
    score = web_prm(told(lambda good, bad, order: None), [step(0)]).held_out
    assert (score.pairwise, score.best_of_n, score.unreadable, score.first) == (0.0, 0.0, 1.0, 0.0)
    tied = web_prm(lambda prompts, first, second: [(5, 5)] * len(first), [step(0)]).held_out
    assert (tied.pairwise, tied.unreadable) == (0.0, 0.0)


def test_environments_stand_apart():
    steps = [step(0, "shop"), step(1, "shop"), step(2, "forum"), step(3, "map")]
    report = web_prm(told(lambda good, bad, order: number(good, 2) < 2), steps, trained=["shop"])
    assert {name: score.best_of_n for name, score in report.environments.items()} == {"shop": 1, "forum": 0, "map": 0}
    assert (report.trained.pairwise, report.held_out.pairwise) == (1.0, 0.0)
    assert report.best_of_n == pytest.approx(1 / 3)
    assert web_prm(told(lambda *_: True), steps, trained=["shop", "forum", "map"]).held_out is None


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(6)), st.integers(0, 100))
def test_order_of_steps_does_not_matter(order, seed):
    won = torch.rand(6, 4, 2, generator=torch.Generator().manual_seed(seed)) < 0.6
    judge = told(lambda good, bad, order: bool(won[number(good, 2), number(bad, 3), order]))
    steps = [step(n) for n in range(6)]
    one, other = web_prm(judge, steps).held_out, web_prm(judge, [steps[i] for i in order]).held_out
    assert one == other
    assert one.pairwise == pytest.approx(float(won.float().mean()))
    assert one.best_of_n == pytest.approx(float(won.all(dim=1).float().mean()))


def test_steps_are_read(tmp_path):
    row = {"environment": "a", "instruction": "i", "observation": "o", "chosen": {"action": "x", "thought": "t"}}
    row |= {"rejected": ["y", {"action": "z"}], "history": ["h"]}
    path = tmp_path / "steps.jsonl"
    path.write_text(json.dumps(row) + "\n\n")
    (read,) = read_web_steps(path)
    assert read == WebStep("a", "i", "o", Candidate("x", "t"), (Candidate("y"), Candidate("z")), ("h",))
    assert "1. h" in read.state
    with pytest.raises(ValueError, match="step 1 lacks chosen"):
        read_web_steps([{**row, "chosen": None}])
    with pytest.raises(ValueError, match="wanted at least 1"):
        web_prm(told(lambda *_: True), [])
    with pytest.raises(ValueError, match="bad action"):
        web_prm(told(lambda *_: True), [step(0, bad=0)])
