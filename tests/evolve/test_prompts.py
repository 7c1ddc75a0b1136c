import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.evolve import greedy_prune, prompt_quine, rerank
from guerdon.evolve.prompts import Pruned, PruneResult

WEIGHT = torch.linspace(-1, 1, 12)
LETTERS = "abcdefghijkl"


def linear(keep):
    return keep.float() @ WEIGHT


@pytest.mark.parametrize("survival", ["generational", "steady"])
@pytest.mark.parametrize("start", ["copies", "pruned"])
@given(seed=st.integers(0, 50))
@settings(max_examples=5, deadline=None)
def test_every_prompt_is_new_short_enough_and_lacks_a_few_tokens_of_another(survival, start, seed):
    fixed = torch.tensor([True] + [False] * 11)
    options = {"min_length": 5, "population": 6, "children": 8, "removed": (2, 3)}
    found = prompt_quine(linear, LETTERS, fixed=fixed, survival=survival, start=start, seed=seed, **options)
    masks = [each.keep for each in found.tried]
    assert len({tuple(m.tolist()) for m in masks}) == len(masks)
    assert all(m[0] for m in masks)
    assert min(int(m.sum()) for m in masks) >= 5
    for i, m in enumerate(masks):
        if i > (6 if start == "pruned" else 0):
            before = masks[:i]
            assert any(int((p & ~m).sum()) in (2, 3) and not (m & ~p).any() for p in before)
    assert found.best.fitness == max(each.fitness for each in found.tried)
    assert all(each.fitness == pytest.approx(float(linear(each.keep.unsqueeze(0))[0])) for each in found.tried)


def test_equal_texts_are_tried_once():
    found = prompt_quine(lambda keep: keep.sum(dim=1), "aaaaaa", min_length=2)
    assert sorted(int(each.keep.sum()) for each in found.tried) == [2, 3, 4, 5, 6]


def test_the_best_of_all_is_kept_though_generations_die():
    """Fitness peaks at 8 tokens; every generation is shorter than the one before."""
    found = prompt_quine(lambda keep: -(keep.sum(dim=1) - 8.0).abs(), LETTERS, min_length=3, population=4, children=6)
    assert found.best.fitness == 0.0
    assert int(found.tried[-1].keep.sum()) == 3


def test_parents_survive_only_in_the_steady_mode():
    seen = {"generational": [], "steady": []}
    for survival, lengths in seen.items():

        def longest(keep, lengths=lengths):
            lengths.append(keep.sum(dim=1).tolist())
            return keep.sum(dim=1).float()

        prompt_quine(longest, range(30), survival=survival, population=3, children=4, min_length=10, max_prompts=60)
    assert max(seen["generational"][-1]) < 15
    assert max(seen["steady"][5]) >= 28  # the whole prompt is still a parent


def test_the_fittest_of_a_tournament_becomes_the_parent():
    """With a tournament of all there is one parent a generation, the best."""
    found = prompt_quine(
        linear, LETTERS, population=5, children=5, tournament=1.0, removed=(1, 1), min_length=6, seed=3
    )
    tried = found.tried
    start = 1
    parent = tried[0].keep
    while start < len(tried):
        brood = tried[start : start + 5]
        assert all(int((parent & ~child.keep).sum()) == 1 for child in brood)
        parent = max(brood, key=lambda each: each.fitness).keep
        start += len(brood)


def test_the_budget_holds_and_nan_is_the_worst():
    calls = []

    def fitness(keep):
        calls.append(len(keep))
        return torch.where(keep[:, 0], torch.tensor(math.nan), torch.tensor(1.0))

    found = prompt_quine(fitness, range(40), max_prompts=70)
    assert sum(calls) == len(found.tried) == 70
    assert found.best.fitness == 1.0


def test_the_same_seed_finds_the_same():
    one, two, other = (prompt_quine(linear, LETTERS, min_length=4, seed=s) for s in (1, 1, 2))
    assert [e.fitness for e in one.tried] == [e.fitness for e in two.tried] != [e.fitness for e in other.tried]


def test_greedy_pruning_by_hand():
    """1 + .03 + .5: the second goes (.980 of the best), then nothing can."""
    weight = torch.tensor([1.0, 0.03, 0.5], dtype=torch.float64)
    found = greedy_prune(lambda keep: keep.double() @ weight, "abc")
    order = ["".join(c for c, k in zip("abc", each.keep.tolist(), strict=True) if k) for each in found.tried]
    assert order == ["abc", "bc", "ac", "a", "c", "a"]
    assert found.best.fitness == pytest.approx(1.53)


def test_greedy_pruning_drops_what_harms_and_keeps_what_is_fixed():
    fixed = torch.zeros(12).bool()
    fixed[0] = True
    found = greedy_prune(linear, LETTERS, fixed=fixed)
    assert found.best.keep.tolist() == [True] + [False] * 5 + [True] * 6
    assert int(greedy_prune(lambda keep: torch.ones(len(keep)), LETTERS, min_length=7).tried[-1].keep.sum()) == 7
    assert len(greedy_prune(linear, LETTERS, max_prompts=4).tried) == 4


def test_greedy_pruning_of_negative_scores_never_takes_a_worse_one_for_a_better():
    found = greedy_prune(lambda keep: -10.0 - (~keep).sum(dim=1), LETTERS)
    assert found.best.keep.all()
    assert len(found.tried) == 13
    mild = greedy_prune(lambda keep: -10.0 - 0.2 * (~keep).sum(dim=1), LETTERS)
    assert min(each.fitness for each in mild.tried) == pytest.approx(-10.6)  # down to -10 / .96, and one try further


def test_reranking_scores_the_best_part_anew():
    tried = [Pruned(torch.tensor([bool(i & 1), bool(i & 2)]), float(i)) for i in range(4)]
    found = PruneResult(tried[3], tried)
    asked = []

    def again(keep):
        asked.append(keep.tolist())
        return [5.0, 9.0][: len(keep)]

    out = rerank(found, again, share=0.5)
    assert asked == [[[True, True], [False, True]]]
    assert out.best.keep.tolist() == [False, True]
    assert out.best.fitness == 9.0
    assert len(rerank(found, again, share=0.01).tried) == 1


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="population 0"):
        prompt_quine(linear, LETTERS, population=0)
    with pytest.raises(ValueError, match=r"fixed has shape \(2,\), wanted one entry for each of 12"):
        greedy_prune(linear, LETTERS, fixed=torch.ones(2))
    with pytest.raises(ValueError, match="fitness gave 2 numbers for 1 prompts"):
        greedy_prune(lambda keep: [0.0, 1.0], LETTERS)
