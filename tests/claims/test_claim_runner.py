"""The runner's own rules; whether the claims hold is asked in test_claims.py."""

import json
import types

import pytest

from guerdon.catalog.entries import CatalogError, find_system
from guerdon.catalog.results import ClaimResult, load_result, save_result
from guerdon.claims import runner
from guerdon.claims.core import Check, Claim, Mutation, above, paired


def ran(kind: str, holds: bool) -> Check:
    return Check("x", kind, "1", "1", holds)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("checks", "broken", "verdict"),
    [
        ([ran("exact", True), ran("learning", True)], False, "works"),
        ([ran("exact", True), ran("learning", False)], False, "not reproduced"),
        ([ran("exact", False), ran("learning", True)], False, "fails"),
        ([ran("exact", True), ran("error", False)], False, "fails"),
        ([], False, "fails"),
        ([ran("exact", True), ran("learning", False)], True, "fails"),
        ([ran("exact", True), ran("learning", True)], True, "works"),
    ],
)
def test_verdicts(checks, broken, verdict):
    assert runner.judge(checks, broken=broken) == verdict


def doubled(x, seeds=0):
    return 2 * x


def example(method, seeds):
    yield above("two twos", method(2.0), 3.0)
    yield paired("doubling", [method(1.0)] * seeds, [1.0] * seeds)


def explodes(method, seeds):
    yield above("one", 1.0, 0.0)
    raise RuntimeError("lost")


@pytest.fixture
def module(monkeypatch):
    """A claim that exists in this test only."""
    find_system("grpo-guard")  # the catalog is read by importlib too

    def put(run):
        claim = Claim("grpo-guard", run, doubled, Mutation("nothing is doubled", lambda x: x), seeds=6)
        stand_in = types.SimpleNamespace(CLAIM=claim, __doc__="Doubles. Really.\n\nMore.")
        monkeypatch.setattr(runner.importlib, "import_module", lambda name: stand_in)

    return put


def test_a_claim_runs_with_its_method_and_with_its_mutation(module):
    module(example)
    seen = []
    result = runner.run("family/doubling", watch=seen.append)
    assert result.verdict == "works"
    assert list(result.checks) == seen
    assert result.seeds == 6
    assert result.checks[1].method == [2.0] * 6
    assert runner.run("family/doubling", seeds=3).checks[1].method == [2.0] * 3
    broken = runner.run("family/doubling", broken=True)
    assert (broken.verdict, broken.mutation) == ("fails", "nothing is doubled")
    assert [check.holds for check in broken.checks] == [False, False]
    assert len(runner.run("family/doubling", broken=True, until_caught=True).checks) == 1


def test_an_exception_is_a_check_that_does_not_hold(module):
    module(explodes)
    result = runner.run("family/explodes")
    assert result.verdict == "fails"
    assert result.checks[-1].kind == "error"
    assert "RuntimeError: lost (explodes" in result.checks[-1].seen


def test_results_survive_their_file(module, tmp_path):
    module(example)
    result = runner.run("family/doubling")
    path = save_result(result, tmp_path)
    assert path == tmp_path / "family" / "doubling.json"
    assert load_result("family/doubling", folder=tmp_path) == ClaimResult.from_dict(json.loads(path.read_text()))
    assert load_result("family/doubling", folder=tmp_path) == result
    assert load_result("family/doubling", broken=True, folder=tmp_path) is None
    save_result(runner.run("family/doubling", broken=True), tmp_path)
    assert load_result("family/doubling", broken=True, folder=tmp_path).verdict == "fails"


def test_claims_are_found_by_path_file_and_system():
    path = "policy_optimization/ngrpo"
    assert runner.find(path) == runner.find("ngrpo") == path
    assert runner.find("mathforge") == runner.find(runner.find("mathforge"))
    with pytest.raises(CatalogError, match="no claim 'ngrpu'; did you mean 'ngrpo'"):
        runner.find("ngrpu")


def test_claims_run_beside_each_other_as_they_do_alone():
    paths = [runner.find(name) for name in ("ngrpo", "tempo")]
    together = {result.claim: result.checks for result in runner.run_all(paths, seeds=5, jobs=2)}
    assert together == {path: runner.run(path, seeds=5).checks for path in paths}
