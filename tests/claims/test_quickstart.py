import pytest
from typer.testing import CliRunner

from guerdon.claims import quickstart
from guerdon.training.run import Result


def result(sampled, greedy):
    evaluation = {"before": {"sampled": 0.4, "greedy": 0.7}, "after": {"sampled": sampled, "greedy": greedy}}
    return Result("runs/x", "language", 10, 1.0, evaluation, [], "", "finished")


GOOD, FLAT, WORSE = result(0.65, 0.7), result(0.55, 0.8), result(0.65, 0.69)


def test_both_accuracies_count():
    assert quickstart.improved(GOOD)
    assert not quickstart.improved(FLAT)
    assert not quickstart.improved(WORSE)


@pytest.mark.parametrize(
    ("results", "expected"),
    [([GOOD] * 4 + [FLAT], True), ([GOOD] * 3 + [FLAT, WORSE], False), ([GOOD], True), ([WORSE], False)],
)
def test_four_of_five_seeds_decide_and_the_exit_code_says_so(monkeypatch, recipes, results, expected):
    import typer

    ends = iter(results)
    monkeypatch.setattr(quickstart, "train", lambda recipe, progress: next(ends))
    app = typer.Typer()
    app.command()(quickstart.main)
    file = next(f for f in recipes if f.stem == "quickstart")
    outcome = CliRunner().invoke(app, ["--seeds", str(len(results)), "--recipe", str(file)])
    assert outcome.exit_code == (0 if expected else 1)
    assert ("works" if expected else "fails") in outcome.stderr
