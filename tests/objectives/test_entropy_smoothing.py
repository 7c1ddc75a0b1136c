import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.monitor.progress import Progress
from guerdon.objectives.entropy_smoothing import EPO, EntropyHistory, phase_weight, smoothing_penalty
from guerdon.training.folder import RunFolder
from guerdon.training.loop import train


def episodes(seed=0, n=4, t=9, turns=3):
    generator = torch.Generator().manual_seed(seed)
    entropy = 2 * torch.rand(n, t, generator=generator, dtype=torch.float64)
    mask = torch.rand(n, t, generator=generator) < 0.8
    turn = torch.randint(turns, (n, t), generator=generator).sort(dim=1).values
    return entropy, mask, torch.where(mask, turn, -1)


def test_weights_of_the_phases():
    assert [phase_weight(step, 150) for step in (0, 75, 150)] == pytest.approx([1, 0.82707, 0.03983], abs=1e-5)
    assert phase_weight(75.001, 150) == pytest.approx(0.8, abs=1e-4)


def test_history_counts_what_was_reached():
    history = EntropyHistory()
    assert history.mean(torch.tensor([0])).isnan().all()
    history.update([1.0, 4.0])
    history.update([3.0, math.nan, 5.0])
    mean = history.mean(torch.tensor([[0, 1], [2, 3], [-1, 0]]))
    assert torch.equal(mean.nan_to_num(-9), torch.tensor([[2.0, 4.0], [5.0, -9.0], [-9.0, 2.0]]).double())
    again = EntropyHistory()
    again.load_state_dict(json.loads(json.dumps(history.state_dict())))
    assert again == history


def test_both_forms_by_hand():
    entropy = torch.tensor([0.5, 0.8, 1.0, 1.2, 3.0, 9.0], requires_grad=True)
    usual = torch.tensor([1.0, 1.0, 1.0, 1.0, 2.0, math.nan])
    hinge = smoothing_penalty(entropy, usual, alpha=2.0)
    assert hinge.tolist() == pytest.approx([0.6, 0, 0, 0, 0.6, 0], abs=1e-6)
    (slope,) = torch.autograd.grad(hinge.sum(), entropy)
    assert slope[[0, 2, 4, 5]].tolist() == [-2, 0, 1, 0]
    indicator = smoothing_penalty(entropy, usual, alpha=2.0, form="indicator")
    assert indicator.tolist() == [2, 2, 0, 2, 2, 0]
    assert not indicator.requires_grad
    assert smoothing_penalty(torch.tensor(0.5), torch.tensor(0.0)).isfinite()


def test_history_is_that_of_the_steps_before():
    term = EPO(beta=1.0, alpha=1.0, kappa_low=0.0, kappa_high=1.0)
    mask, turn = torch.ones(1, 2).bool(), torch.tensor([[0, 1]])
    first, stats = term(torch.tensor([[1.0, 2.0]]), mask, turn, 0)
    assert (first.item(), stats["penalty"]) == (-1.5, 0.0)
    _, stats = term(torch.tensor([[3.0, 2.0]]), mask, turn, 0)  # a second minibatch of the same step
    assert stats["penalty"] == 0.0
    _, stats = term(torch.tensor([[4.0, 2.0]]), mask, turn, 1)
    assert term.history.sums == [2.0, 2.0]
    assert stats["penalty"] == pytest.approx(0.5)  # (4 - 2) / 2 on one of two
    assert stats["outside"] == 1.0  # the bounds are open
    copy = EPO(beta=1.0, alpha=1.0, kappa_low=0.0, kappa_high=1.0)
    copy.load_state_dict(json.loads(json.dumps(term.state_dict())))
    same = [x(torch.tensor([[5.0, 1.0]]), mask, turn, 2)[0].item() for x in (term, copy)]
    assert same[0] == same[1]


def test_only_where_an_episode_has_come_half_way():
    term = EPO(beta=1.0, alpha=1.0, kappa_low=0.0, kappa_high=0.5, max_turns=4)
    mask = torch.ones(1, 2).bool()
    for turn, penalised in (([0, 1], False), ([1, 2], True)):
        term.load_state_dict({"history": {"sums": [1.0] * 4, "counts": [1] * 4}, "step": 0, "now": []})
        _, stats = term(torch.ones(1, 2), mask, torch.tensor([turn]), 0)
        assert (stats["penalty"] > 0) == penalised


def test_the_mean_of_a_turn_can_be_held_instead():
    entropy = torch.tensor([[0.0, 2.0, 3.0]], requires_grad=True)
    turn, mask = torch.tensor([[0, 0, 1]]), torch.ones(1, 3).bool()
    memory = {"history": {"sums": [1.0, 1.0], "counts": [1, 1]}, "step": 0, "now": []}
    seen = {}
    for unit in ("token", "turn"):
        term = EPO(beta=1.0, alpha=1.0, unit=unit)
        term.load_state_dict(memory)
        seen[unit] = term(entropy, mask, turn, 0)[1]["penalty"]
    assert seen["token"] == pytest.approx((0.8 + 0.8 + 1.8) / 3)
    assert seen["turn"] == pytest.approx(1.8 / 3)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.sampled_from(["token", "turn"]), st.sampled_from(["hinge", "indicator"]))
def test_rows_padding_and_what_is_masked_do_not_matter(seed, unit, form):
    outcomes = []
    for changed in (False, True):
        term = EPO(beta=0.5, alpha=2.0, unit=unit, form=form)
        for step in range(3):
            entropy, mask, turn = episodes(seed + step)
            if changed:
                order = torch.randperm(len(mask))
                entropy = torch.nn.functional.pad(torch.where(mask, entropy, math.nan)[order], (0, 2), value=math.nan)
                mask, turn = (torch.nn.functional.pad(x[order], (0, 2)) for x in (mask, torch.where(mask, turn, 99)))
            entropy.requires_grad_()
            loss, _ = term(entropy, mask, turn, step)
            assert torch.autograd.grad(loss, entropy)[0][mask].isfinite().all()
            outcomes.append(loss)
    torch.testing.assert_close(outcomes[:3], outcomes[3:])


def test_nothing_and_nonsense():
    term = EPO()
    for step in range(2):
        loss, _ = term(torch.zeros(0, 3), torch.zeros(0, 3).bool(), torch.zeros(0, 3).long(), step)
        assert loss.item() == 0.0
    with pytest.raises(ValueError, match=r"kappa_low is 2\.0"):
        EPO(kappa_low=2.0)


def test_a_recipe_of_several_turns_trains_with_it(tmp_path):
    recipe = {
        "name": "epo",
        "runs_dir": str(tmp_path),
        "task": {"name": "gridtext", "size": 3, "max_turns": 4},
        "policy": {"name": "tiny_lm", "width": 16, "layers": 1, "heads": 2},
        "sampling": {"prompts": 2, "group_size": 4, "max_new_tokens": 4},
        "terms": [{"name": "epo", "beta": 0.1, "kappa_high": 0.5, "kappa_low": 0.0, "alpha": 1.0}],
        "training": {"steps": 2},
        "evaluation": {"problems": 2},
        "logging": {"rollouts_every": 0},
    }
    metrics = RunFolder.open(train(recipe, progress=Progress(quiet=True)).run).metrics()
    assert metrics["update/epo/penalty"][0] == 0.0
    assert metrics["update/epo/penalty"][1] > 0.0
