import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon.inference.hierarchical import Panel, greedy_search, hierarchical_greedy, ranked


def larger(a, b):
    return a - b


def test_a_bias_for_what_is_read_first_cancels():
    panel = Panel([lambda a, b: a - b + 2])
    assert [panel(3, 0), panel(1, 0), panel(0, 0), panel(-3, 0)] == [True, False, False, False]
    assert panel.calls == 8


def test_the_majority_must_be_strict_and_nan_is_no_vote():
    assert Panel([larger, larger, lambda a, b: b - a])(1, 0)
    assert not Panel([larger, lambda a, b: b - a])(1, 0)
    assert not Panel([lambda a, b: float("nan")])(1, 0)
    assert Panel([larger, lambda a, b: float("nan")])(1, 0)
    assert not Panel([])(1, 0)


def test_greedy_accepts_strict_gains_and_stops_after_patience():
    asked = []

    def propose(x, step):
        asked.append((x, step))
        return x + (1 if step < 3 else 0)

    climb = greedy_search(0, propose, Panel([larger]), patience=2)
    assert climb == (3, 5, 3)
    assert asked == [(0, 0), (1, 1), (2, 2), (3, 3), (3, 4)]


def test_an_acceptance_resets_patience_and_steps_are_bounded():
    climb = greedy_search(0, lambda x, step: x + (step % 2), Panel([larger]), patience=2, max_steps=7)
    assert climb == (3, 7, 3)
    assert greedy_search(0, lambda x, step: x + 1, Panel([larger]), max_steps=0).state == 0


@given(st.lists(st.integers(0, 9), max_size=12))
def test_ranking_by_a_sound_judge_sorts_and_drops_equals(xs):
    assert ranked(xs, lambda a, b: a > b) == sorted(set(xs), reverse=True)


def test_levels_are_searched_in_turn_and_edits_know_their_climb():
    asked = []

    def propose(text, level, number, step):
        asked.append((level, number, step))
        changed = list(text)
        changed[level] += 1 if step == 0 else 0
        return tuple(changed)

    prefer = Panel([lambda a, b: sum(a) - sum(b)])
    found = hierarchical_greedy((0, 0), propose, prefer, levels=2, beams=1, starts=2, patience=1)
    assert found == [(1, 1)]
    assert asked == [
        (level, number, step) for level in (0, 1) for number in (2 * level, 2 * level + 1) for step in (0, 1)
    ]


def test_one_level_beam_and_start_is_greedy_search():
    gains = [1, -5, 2, 0, 0, 3, -1, -1, -1]
    flat = greedy_search(0, lambda x, step: x + gains[step], Panel([larger]))
    panel = Panel([larger])
    found = hierarchical_greedy(0, lambda x, level, n, step: x + gains[step], panel, levels=1, beams=1, starts=1)
    assert found == [flat.state] == [6]
    assert panel.calls == 2 * flat.steps


def test_a_level_that_helps_nothing_leaves_the_text_as_it_was():
    def propose(text, level, number, step):
        return tuple(x + ((1, -1, 1)[level] if i == level and step == 0 else 0) for i, x in enumerate(text))

    found = hierarchical_greedy((0, 0, 0), propose, Panel([lambda a, b: sum(a) - sum(b)]), levels=3, starts=1)
    assert found[0] == (1, 0, 1)


def test_recombined_optima_are_kept_only_if_preferred():
    propose = lambda x, level, number, step: x + (number if step == 0 else 0)  # noqa: E731
    options = {"levels": 1, "starts": 3, "patience": 1, "beams": 3}
    seen = []

    def total(optima, level):
        seen.append((list(optima), level))
        return sum(optima)

    assert hierarchical_greedy(0, propose, Panel([larger]), recombine=total, **options) == [3, 2, 1]
    assert seen == [([2, 1, 0], 0)]
    assert hierarchical_greedy(0, propose, Panel([larger]), recombine=lambda o, level: -1, **options) == [2, 1, 0]
    assert hierarchical_greedy(0, propose, Panel([larger]), recombine=lambda o, level: 2, **options) == [2, 1, 0]


def test_the_best_beams_of_all_go_on():
    """Beams 2 and 1 of the first level; at the second the lower one gains more."""

    def propose(x, level, number, step):
        if step:
            return x
        return x + number if level == 0 else x + (10 if x == 1 else 1)

    found = hierarchical_greedy(0, propose, Panel([larger]), levels=2, beams=2, starts=3, patience=1)
    assert found == [11, 3]


@pytest.mark.parametrize("name", ["levels", "beams", "starts"])
def test_counts_below_1_are_named(name):
    with pytest.raises(ValueError, match=f"{name} is 0"):
        hierarchical_greedy(0, lambda x, *path: x, Panel([larger]), **{name: 0})
