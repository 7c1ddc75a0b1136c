import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.shaping.quantiles import LEVELS, QuantileTracker, bundle

quick = settings(derandomize=True, deadline=None, max_examples=60)


def papers_by_hand(groups, size):
    """Independent form with lists: the rows of every paper, bundle by bundle."""
    prompts = list(dict.fromkeys(groups))
    rows = {p: [i for i, g in enumerate(groups) if g == p] for p in prompts}
    papers, bundles, full = [], [], []
    for number, start in enumerate(range(0, len(prompts), size)):
        members = prompts[start : start + size]
        for answers in zip(*(rows[p] for p in members), strict=False):
            papers.append(set(answers))
            bundles.append(number)
            full.append(len(members) == size)
    return papers, bundles, full


@quick
@given(st.lists(st.integers(-3, 5), min_size=1, max_size=24), st.integers(1, 4))
def test_papers_are_those_that_lists_give(groups, size):
    seen = bundle(torch.tensor(groups), size=size)
    papers, bundles, full = papers_by_hand(groups, size)
    rows = [{i for i, p in enumerate(seen.paper.tolist()) if p == number} for number in range(len(bundles))]
    assert rows == papers
    assert seen.bundle.tolist() == bundles
    assert seen.full.tolist() == full
    assert (seen.paper == -1).sum() == len(groups) - sum(map(len, papers))


@quick
@given(st.lists(st.integers(0, 4), min_size=1, max_size=20), st.integers(1, 3))
def test_names_of_groups_do_not_matter(groups, size):
    group = torch.tensor(groups)
    renamed = torch.tensor([40, -7, 3, 900, 12])[group]
    for mine, other in zip(bundle(group, size=size), bundle(renamed, size=size), strict=True):
        assert mine.tolist() == other.tolist()


def test_totals_go_to_papers_and_back():
    papers = bundle(torch.tensor([5, 5, 5, 2, 2]), size=2)
    reward = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    assert papers.total(reward).tolist() == [9.0, 18.0]
    assert papers.spread(papers.total(reward)).tolist() == [9.0, 18.0, 0.0, 9.0, 18.0]
    with pytest.raises(ValueError, match="size is 0"):
        bundle(torch.tensor([1]), size=0)


def test_the_first_batch_sets_and_later_ones_move():
    tracker = QuantileTracker([0.25, 0.5], rate=0.1)
    assert tracker.at(0.5) is None
    tracker.update(torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]))
    assert tracker.values == pytest.approx([1.0, 2.0])
    # q + rate (a - share strictly below q): 1 + 0.1 (0.25 - 0.5), 2 + 0.1 (0.5 - 0.5)
    tracker.update(torch.tensor([0.0, 0.5, 2.0, 3.0]))
    assert tracker.values == pytest.approx([0.975, 2.0])
    assert tracker.update(torch.zeros(0)) == pytest.approx([0.975, 2.0])


def test_between_levels_it_interpolates_and_beyond_them_it_refuses():
    tracker = QuantileTracker([0.2, 0.4], rate=0.1)
    tracker.update(torch.tensor([0.0, 10.0]))
    assert tracker.at(0.2) == pytest.approx(2.0)
    assert tracker.at(0.25) == pytest.approx(2.5)
    with pytest.raises(ValueError, match=r"level 0\.5 is not tracked: levels run from 0\.2 to 0\.4"):
        tracker.at(0.5)


def test_neighbours_that_pass_one_another_are_sorted():
    tracker = QuantileTracker([0.1, 0.5], rate=1.0)
    tracker.values = [0.0, 0.05]
    tracker.update(torch.tensor([0.02, 0.02]))  # 0 + (0.1 - 0), 0.05 + (0.5 - 1)
    assert tracker.values == pytest.approx([-0.45, 0.1])


def test_it_stays_within_its_rate_of_the_true_quantiles():
    generator = torch.Generator().manual_seed(3)
    tracker = QuantileTracker()
    tracker.values = [2.0 + 0.001 * k for k in range(19)]  # far off; the level 0.95 sinks by 0.005 per batch
    for _ in range(400):
        tracker.update(torch.rand(256, generator=generator))
    assert tracker.values == pytest.approx(list(LEVELS), abs=0.1)


def test_memory_survives_json():
    tracker, other = QuantileTracker(), QuantileTracker()
    tracker.update(torch.arange(7.0))
    other.load_state_dict(json.loads(json.dumps(tracker.state_dict())))
    for each in (tracker, other):
        each.update(torch.tensor([3.0, 9.0]))
    assert other.values == tracker.values


@pytest.mark.parametrize(("levels", "rate"), [([], 0.1), ([0.5, 0.2], 0.1), ([0.0, 0.5], 0.1), ([0.5], 0.0)])
def test_impossible_settings_are_refused(levels, rate):
    with pytest.raises(ValueError, match="levels are|rate is"):
        QuantileTracker(levels, rate=rate)
