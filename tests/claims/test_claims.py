"""Every claim is whole; the quick ones hold, and notice when their mechanism is broken."""

from pathlib import Path

import pytest
import yaml

from guerdon.catalog import find_system
from guerdon.claims import runner
from guerdon.recipe import load_recipe
from guerdon.training.plan import make_plan

QUICKSTART = Path(__file__).parent.parent.parent / "recipes" / "quickstart.yaml"
ENTRIES = [runner.load(path) for path in runner.claim_paths()]
QUICK = [entry.path for entry in ENTRIES if entry.claim.quick]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.path)
def test_a_claim_is_whole(entry):
    assert find_system(entry.claim.system).claim == entry.path
    assert entry.claim.seeds >= 5
    assert entry.claim.mutation.method is not entry.claim.method
    first = entry.description.partition("\n\n")[0]
    assert 1 <= first.count(". ") + first.endswith(".") <= 3
    if entry.claim.recipe:
        changes = yaml.safe_load(entry.claim.recipe)
        make_plan(load_recipe(yaml.safe_load(QUICKSTART.read_text()) | changes))


@pytest.mark.parametrize("path", QUICK)
def test_a_quick_claim_holds(path):
    result = runner.run(path)
    assert result.verdict == "works", [check for check in result.checks if not check.holds]


@pytest.mark.parametrize("path", QUICK)
def test_a_quick_claim_notices_its_mutation(path):
    result = runner.run(path, broken=True, until_caught=True)
    assert result.verdict == "fails"
    assert result.checks[-1].kind != "error", result.checks[-1].seen
