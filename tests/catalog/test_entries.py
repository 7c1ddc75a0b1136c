import json
from dataclasses import replace
from pathlib import Path

import pytest

from guerdon.catalog import results
from guerdon.catalog.entries import (
    FAMILIES,
    STATUSES,
    CatalogError,
    find_system,
    symptoms,
    system_rows,
    systems,
    systems_for,
)
from guerdon.registry import import_object

SYSTEMS = systems()
CLAIMED = [system for system in SYSTEMS if system.claim]


def test_every_published_system_is_listed_once():
    assert [system.id for system in SYSTEMS] == list(range(269))
    assert len({system.name for system in SYSTEMS}) == 269
    assert {system.family for system in SYSTEMS} == set(FAMILIES)
    assert all(system.title and system.home is not None for system in SYSTEMS)
    names = {symptom.name for symptom in symptoms()}
    assert all(set(system.answers) <= names for system in SYSTEMS)


@pytest.mark.parametrize("system", CLAIMED, ids=lambda system: system.name)
def test_what_has_a_claim_has_a_home_and_answers_something(system):
    assert system.home
    assert all(callable(import_object(path)) for path in system.home)
    assert all((results.PACKAGE / results._file(module)).is_file() for module in system.modules)
    assert system.answers
    assert (results.PACKAGE / "claims" / f"{system.claim}.py").is_file()


def test_a_result_that_ships_is_the_runners():
    for path in results.results_folder().rglob("*.json"):
        result = results.ClaimResult.from_dict(json.loads(path.read_text()))
        claim = str(path.relative_to(results.results_folder()).with_suffix("")).removesuffix(".broken")
        assert result.claim == claim
        assert result.broken == path.name.endswith(".broken.json")
        assert find_system(result.system).claim == claim
        assert result.checks


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of one claim and one module, and an empty folder of results."""
    for name in ("claims/family/claim.py", "credit/home.py"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(results, "PACKAGE", tmp_path)
    results._digest.cache_clear()
    yield tmp_path
    results._digest.cache_clear()


def shipped(folder: Path, **changes) -> None:
    given = {"claim": "family/claim", "system": "s", "verdict": "works", "broken": False, "mutation": "", "checks": ()}
    given |= {
        "seeds": 5,
        "seconds": 1.0,
        "version": "0",
        "stamp": results.stamp("family/claim", ["guerdon.credit.home"]),
    }
    results.save_result(results.ClaimResult(**given | changes), folder / "catalog" / "results")


def test_a_status_is_computed_from_the_result_and_the_code(package):
    system = replace(SYSTEMS[0], claim="family/claim", home=("guerdon.credit.home:method",))
    assert system.status == "open"
    shipped(package)
    assert system.status == "works"
    shipped(package, verdict="not reproduced")
    assert system.status == "not-reproduced"
    shipped(package, verdict="fails")
    assert system.status == "fails"
    for name in ("claims/family/claim.py", "credit/home.py"):
        before = (package / name).read_text()
        (package / name).write_text(before + "#")
        results._digest.cache_clear()
        assert system.status == "stale", name
        (package / name).write_text(before)
        results._digest.cache_clear()
        assert system.status == "fails"
    assert replace(system, claim="").status == "open"


def test_rows_can_be_filtered_and_have_the_published_keys():
    rows = system_rows("policy_optimization")
    assert len(rows) == 28
    assert all(set(row) == {"id", "name", "title", "family", "home", "claim", "status"} for row in rows)
    assert all(row["status"] in STATUSES for row in rows)
    assert all(row["status"] == "open" for row in system_rows(status="open"))
    with pytest.raises(CatalogError, match="no family 'policy_optimisation'; did you mean 'policy_optimization'"):
        system_rows("policy_optimisation")
    with pytest.raises(CatalogError, match="no status 'work'; did you mean 'works'"):
        system_rows(status="work")


@pytest.mark.parametrize("symptom", symptoms(), ids=lambda symptom: symptom.name)
def test_those_that_work_answer_first(symptom):
    found = systems_for(symptom.name)
    places = [STATUSES.index(system.status) for system in found]
    assert places == sorted(places)


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(CatalogError, match="no system 'gdpoo'; did you mean 'gdpo'"):
        find_system("gdpoo")
    with pytest.raises(CatalogError, match="no symptom 'entropy colapse'; did you mean 'entropy collapse'"):
        systems_for("entropy colapse")
