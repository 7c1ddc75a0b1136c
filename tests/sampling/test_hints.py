import json

import torch

from guerdon.sampling.hints import SolvedStore, seed_with_solved


def vowels(texts):
    """How often each vowel occurs."""
    return torch.tensor([[float(text.count(vowel)) for vowel in "aeiou"] for text in texts])


def store(**options):
    out = SolvedStore(embed=vowels, **options)
    out.add(["aaa", "ooo", "aae", "eee"], ["1", "2", "3", "4"])
    return out


def test_the_nearest_come_last():
    # Cosines with (4, 1): .976 of aae, .970 of aaa, .243 of eee, 0 of ooo.
    assert store().nearest("aaaae") == [("aaa", "1"), ("aae", "3")]
    assert [p for p, _ in store().nearest("aaaae", k=4)] == ["eee", "aaa", "aae"]
    assert store().nearest("aaaae", least=0.975) == [("aae", "3")]
    assert store().nearest("iii") == []
    assert SolvedStore().nearest("a") == []


def test_a_prompt_is_not_given_its_own_solution():
    assert store().nearest("aae", k=1) == [("aaa", "1")]


def test_the_newest_solution_and_the_newest_prompts_stay():
    kept = store(capacity=3)
    assert list(kept.solutions) == ["ooo", "aae", "eee"]
    kept.add(["ooo"], ["5"])
    kept.add(["iii"], ["6"])
    assert kept.solutions == {"eee": "4", "ooo": "5", "iii": "6"}
    assert kept.nearest("o") == [("ooo", "5")]


def test_the_memory_survives_as_json():
    first, second = store(), SolvedStore(embed=vowels)
    first.nearest("a")
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert list(second.solutions.items()) == list(first.solutions.items())
    assert second.nearest("aaaae") == first.nearest("aaaae")


def test_examples_stand_before_the_prompt():
    assert seed_with_solved("aaaae", store()) == "aaa\n1\n\naae\n3\n\naaaae"
    assert seed_with_solved("aaaae", store(), k=1, form="[{prompt}={solution}]") == "[aae=3]aaaae"
    assert seed_with_solved("iii", store()) == "iii"


def test_long_solutions_are_cut():
    long = SolvedStore(embed=vowels)
    long.add(["a"], ["x" * 50])
    assert seed_with_solved("aa", long, longest=3) == "a\nxxx\n\naa"


def test_spelling_is_the_measure_by_default():
    spelled = SolvedStore()
    spelled.add(["Spell tiger backward", "Add 3 and 4", "Spell lion backward"], ["regit", "7", "noil"])
    assert {s for _, s in spelled.nearest("Spell zebra backward")} == {"regit", "noil"}
    assert {s for _, s in spelled.nearest("Add 5 and 6", k=1)} == {"7"}
