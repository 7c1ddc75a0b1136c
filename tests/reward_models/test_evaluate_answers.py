import pytest

from guerdon.reward_models.evaluate import arena, metric_table


def longer(prompts, first, second):
    return [None if a == "?" or b == "?" else (len(a), len(b)) for a, b in zip(first, second, strict=True)]


def test_win_rate_by_hand():
    result = arena(longer, ["p"] * 4, ["aaa", "b", "cc", "?"], ["a", "bb", "dd", "e"])
    assert result.outcome.tolist() == [1.0, 0.0, 0.5, 0.5]
    assert (result.wins, result.ties, result.losses, result.failures) == (1, 2, 1, 2)
    assert result.win_rate == 0.5


def test_a_judge_that_favours_the_first_has_no_say():
    def first(prompts, left, right):
        return [(9.0, 1.0)] * len(prompts)

    assert arena(first, ["p"], ["a"], ["b"]).win_rate == 0.5
    assert arena(first, ["p"], ["a"], ["b"], both_orders=False).win_rate == 1.0


def test_arena_refuses_what_does_not_match():
    with pytest.raises(ValueError, match="2 prompts, 1 answers and 2 references"):
        arena(longer, ["p", "q"], ["a"], ["b", "c"])
    with pytest.raises(ValueError, match="at least 1"):
        arena(longer, [], [], [])


def test_every_cell_counts_once():
    def row(dataset, task, prediction, metric="equal"):
        return {"dataset": dataset, "task": task, "prediction": prediction, "gold": 1, "metric": metric}

    rows = [row("a", "t", 1), row("a", "t", 1), row("a", "t", 0), row("a", "u", 0), row("b", "t", 4, "far")]
    table = metric_table(rows, {"equal": lambda p, g: float(p == g), "far": lambda p, g: abs(p - g)})
    assert table.cells == {("a", "t", "equal"): 2 / 3, ("a", "u", "equal"): 0.0, ("b", "t", "far"): 3.0}
    assert table.macro == pytest.approx((2 / 3 + 0 + 3) / 3)
    with pytest.raises(ValueError, match="no metric 'far'; known: equal"):
        metric_table(rows, {"equal": lambda p, g: 0.0})
    with pytest.raises(ValueError, match="no rows"):
        metric_table([], {})
