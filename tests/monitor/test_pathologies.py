import pytest

from guerdon.catalog import find_system, symptoms
from guerdon.monitor.detectors import DETECTORS
from guerdon.monitor.pathologies import CODES, PATHOLOGIES, SYSTEMS_SHOWN, pathology, remedies

# What the project promises to find.
PROMISED = """zero-variance-groups unsolvable-tasks saturated-tasks drowned-component constant-component
conflicting-components reward-outliers noisy-reward length-collapse length-explosion truncation entropy-collapse
duplicate-rollouts answer-concentration proxy-gold-divergence kl-blowup ratio-bias clip-saturation stale-policy
advantage-leak reward-faults judge-bias format-only-learning""".split()


def test_every_code_that_is_promised_has_one_row_and_one_detector():
    assert {*PROMISED} <= {*CODES}
    assert len({*CODES}) == len(CODES)
    assert [d.code for d in DETECTORS if d.code not in CODES] == []
    assert {d.code for d in DETECTORS} == {*CODES}


@pytest.mark.parametrize("row", PATHOLOGIES, ids=CODES)
def test_a_row_names_symptoms_of_the_catalog_and_says_why_in_one_sentence(row):
    assert {*row.symptoms} <= {symptom.name for symptom in symptoms()}
    assert row.why.endswith(".")
    assert row.why.count(". ") == 0
    assert pathology(row.code) is row


def test_remedies_are_those_of_the_catalog_that_work_first():
    found = remedies("drowned-component")
    assert 0 < len(found) <= SYSTEMS_SHOWN
    assert found[0]["system"] == "gdpo"
    for remedy in found:
        system = find_system(remedy["system"])
        assert {"drowned component", "scale mismatch"} & {*system.answers}
        assert remedy["status"] == system.status
        assert remedy["claim"] == f"guerdon claims run {system.name}"
    statuses = [remedy["status"] for code in CODES for remedy in remedies(code)]
    assert "open" not in statuses


def test_what_no_system_answers_has_no_remedies_from_the_catalog():
    assert remedies("advantage-leak") == ()
