"""Tests of a program weighed by how rarely they are passed, and by how many others are passed as often."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from guerdon.credit.grouping import group_mean
from guerdon.rewards.code import python_tests
from guerdon.rewards.forms import Score, grouped, reward

Positive = Annotated[float, Field(gt=0)]


def unit_test_weights(
    passed: Tensor,
    group: Tensor | None = None,
    *,
    alpha: float = 2.0,
    sigma: float = 0.1,
    delta: float = 1e-6,
    normalise: bool = False,
) -> Tensor:
    """What each test is worth, so that many easy tests don't outweigh the few that decide.

    w_j = exp(-alpha rho_j) / (sum_j' exp(-(rho_j - rho_j')^2 / (2 sigma^2)) + delta)

    rho_j is the share of the group's attempts that pass test j. The sum counts the tests that are passed about as
    often, the test itself included, so a test that stands there twice weighs half as much each time.

    Args:
        passed: (M,J) 1 where an attempt passes a test, else 0; an attempt that crashed passes none.
        group: (M,) key of the attempts that share a problem and its tests; one group by default.
        alpha: how much more a rare test is worth. This value and those of sigma and delta are ours; the source's are
            not known.
        sigma: how close two shares are, for the tests to count as alike.
        delta: keeps the divisor above 0.
        normalise: let the weights of a group add up to 1, so that the scores of all problems are on one scale.

    Returns:
        (M,J) the weights in each attempt's group.

    Source: Wang et al. 2026, arXiv 2601.03525.
    """
    tests = torch.arange(passed.shape[1], device=passed.device)
    key = torch.zeros(len(passed), dtype=torch.int64, device=passed.device) if group is None else group
    rho = group_mean(passed, (key * max(len(tests), 1)).unsqueeze(1) + tests)
    alike = torch.exp(-((rho.unsqueeze(2) - rho.unsqueeze(1)) ** 2) / (2 * sigma**2)).sum(dim=2)
    weight = torch.exp(-alpha * rho) / (alike + delta)
    return weight / weight.sum(dim=1, keepdim=True) if normalise else weight


def unit_test_scores(
    passed: Tensor,
    group: Tensor | None = None,
    *,
    alpha: float = 2.0,
    sigma: float = 0.1,
    delta: float = 1e-6,
    normalise: bool = False,
) -> Tensor:
    """Sum of the weights of the tests that each attempt passes: R_m = sum_j w_j p_{m,j}, (M,).

    Args and source: ``unit_test_weights``.
    """
    weights = unit_test_weights(passed, group, alpha=alpha, sigma=sigma, delta=delta, normalise=normalise)
    return (weights * passed).sum(dim=1)


@reward("density_calibrated_tests", paper="Wang et al. 2026, arXiv 2601.03525")
@grouped
def density_calibrated_tests(
    text: Sequence[str],
    answer: Sequence[Any] | None = None,
    metadata: Sequence[Any] | None = None,
    *,
    alpha: Positive = 2.0,
    sigma: Positive = 0.1,
    delta: Positive = 1e-6,
    normalise: bool = False,
    entry_point: str | None = None,
    wall_time: Positive = 10.0,
    cpu_time: Positive = 5.0,
    tests_in: Literal["answer", "metadata"] = "answer",
    reuse: bool = True,
) -> list[Score]:
    """Pay for every test that a program passes by what the test is worth in its group.

    R_i = sum_j w_j p_{i,j},  w: ``unit_test_weights``

    Programs are found, run and judged as by ``python_tests``, all tests of each; what they are worth is known once the
    whole group has run. It belongs with the credit ``verpo``, and beside the outcome, ``python_tests``.

    Args:
        text: what the policy wrote, of each member of the group.
        answer: the tests, see ``python_tests``.
        metadata: what the task knows of the problem.
        alpha, sigma, delta, normalise: see ``unit_test_weights``.
        entry_point, wall_time, cpu_time, tests_in, reuse: see ``python_tests``.

    Returns:
        A score of each member; its detail holds ``passed`` and ``tests``, their numbers, and ``weights`` of all tests.

    Raises:
        ValueError: when there are no tests, one cannot be read or run, or the members have different numbers of tests.
        SandboxError: when no sandbox can be made.

    Source: Wang et al. 2026, arXiv 2601.03525.
    """
    answers, known = answer or [None] * len(text), metadata or [None] * len(text)
    options: dict[str, Any] = {"entry_point": entry_point, "wall_time": wall_time, "cpu_time": cpu_time}
    options |= {"tests_in": tests_in, "reuse": reuse}
    results = [
        python_tests(written, tests, facts, award="share", **options).detail["results"]
        for written, tests, facts in zip(text, answers, known, strict=True)
    ]
    counts = {len(tests) for tests in results}
    if len(counts) > 1:
        raise ValueError(f"members of a group have {sorted(counts)} tests; a group shares one problem and its tests")
    passed = torch.tensor([[float(test["passed"]) for test in tests] for tests in results], dtype=torch.float64)
    weights = unit_test_weights(passed, alpha=alpha, sigma=sigma, delta=delta, normalise=normalise)
    values = (weights * passed).sum(dim=1).tolist()
    shown = [round(w, 6) for w in weights[0].tolist()]
    return [
        Score(value, detail={"passed": int(row.sum()), "tests": len(row), "weights": shown})
        for value, row in zip(values, passed, strict=True)
    ]
