import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.errors import RecipeError
from guerdon.monitor.progress import Progress
from guerdon.recipe import load_recipe
from guerdon.shaping.process_bound import ClipDelta, clip_process, delta_process
from guerdon.training.folder import RunFolder
from guerdon.training.loop import train

quick = settings(derandomize=True, deadline=None, max_examples=25)
NAMES, WEIGHTS = ("steps", "c"), torch.ones(2)
RECIPE = {
    "task": {"name": "reasoning_gym", "dataset": "spell_backward", "config": {"min_word_len": 3, "max_word_len": 4}},
    "policy": {"name": "tiny_lm", "width": 16, "layers": 1, "heads": 2, "value_head": True},
    "sampling": {"prompts": 3, "group_size": 4, "max_new_tokens": 3},
    "evaluation": {"problems": 4},
    "training": {"steps": 2},
}


def test_bounds_by_hand():
    score = torch.tensor([[0.0, 0.9, math.nan, 0.4, 0.7]], dtype=torch.float64)
    ends = torch.tensor([[False, True, False, True, True]])
    clipped = clip_process(score, ends, eta=0.8)
    assert clipped[0].tolist() == pytest.approx([0, 0, 0, -0.4, -0.1])
    assert delta_process(score, ends)[0].tolist() == pytest.approx([0, 0.5, 0, -0.3, 0.7])
    assert delta_process(clipped, ends)[0].tolist() == pytest.approx([0, 0.4, 0, -0.3, -0.1])


@quick
@given(st.integers(0, 5), st.integers(0, 8), st.integers(0, 99))
def test_what_is_to_come_is_the_step_itself(n, width, seed):
    random = torch.Generator().manual_seed(seed)
    score = torch.randn(n, width, generator=random, dtype=torch.float64)
    ends = torch.rand(n, width, generator=random) > 0.5
    for x in (score, clip_process(score, ends, eta=0.2)):
        out = delta_process(x.masked_fill(~ends, math.nan), ends)
        to_come = out.flip(1).cumsum(dim=1).flip(1)
        torch.testing.assert_close(to_come[ends], x[ends])
        assert (out[~ends] == 0).all()


def shaped(dense, success, **options):
    dense = torch.tensor(dense, dtype=torch.float64)
    components = torch.tensor([[0.0, c] for c in success], dtype=torch.float64)
    options = {"alpha": 0.5, "eta": 0.8} | options
    mask = torch.ones_like(dense).bool()
    return ClipDelta(outcome="c", **options)(mask, components, NAMES, WEIGHTS, dense)


def test_an_answer_without_steps_earns_its_outcome():
    out, stats = shaped([[0.7 + 1.0], [0.7]], [1.0, 0.0])
    assert out.dense.tolist() == [[1.0], [0.0]]
    assert out.reward.tolist() == [1.0, 0.0]
    assert stats["nonzero"] == 0


def test_every_bound_on_one_answer():
    dense = [[0.9, 0.4, 0.6 + 1.0]]
    for options, wanted in (
        ({"clip": False, "delta": False}, [0.45, 0.2, 1.0]),
        ({"delta": False}, [0.0, -0.2, 1.0]),
        ({"clip": False}, [0.25, 0.2, 1.0]),
        ({}, [0.2, -0.2, 1.0]),
        ({"final_scored": False}, [0.2, -0.1, 0.9]),
    ):
        out, _ = shaped(dense, [1.0], **options)
        assert out.dense[0].tolist() == pytest.approx(wanted)
        assert out.reward[0] == pytest.approx(sum(wanted))


def test_returns_do_not_depend_on_how_many_steps_follow():
    steps = [0.3, *[0.9] * 6]
    for copies in range(1, 7):
        row = [*steps[: copies + 1], *[0.0] * (6 - copies), 0.5]
        raw, _ = shaped([row], [0.0], alpha=1.0, clip=False, delta=False)
        bound, _ = shaped([row], [0.0], alpha=1.0, clip=False)
        both, _ = shaped([row], [0.0], alpha=1.0)
        assert raw.reward[0] == pytest.approx(0.3 + 0.9 * copies)
        assert bound.reward[0] == pytest.approx(0.3)
        assert both.reward[0] == pytest.approx(-0.5)


def test_the_median_of_the_first_batch_is_kept():
    rule = ClipDelta(outcome="c", alpha=1.0, delta=False, final_scored=False)
    mask, components = torch.ones(1, 3).bool(), torch.zeros(1, 2)
    _, stats = rule(mask, components, NAMES, WEIGHTS, torch.tensor([[0.2, 0.6, 0.7]]))
    assert stats == pytest.approx({"eta": 0.6, "nonzero": 1 / 3})
    again = ClipDelta(outcome="c", alpha=1.0, delta=False, final_scored=False)
    again.load_state_dict(rule.state_dict())
    out, _ = again(mask, components, NAMES, WEIGHTS, torch.tensor([[0.1, 0.1, 0.1]]))
    assert out.dense[0].tolist() == pytest.approx([-0.5] * 3)


@quick
@given(st.integers(1, 7), st.integers(0, 99))
def test_rows_commute_and_nothing_off_the_mask_is_read(n, seed):
    random = torch.Generator().manual_seed(seed)
    mask = torch.rand(n, 5, generator=random) > 0.3
    scores = (
        torch.rand(n, 5, generator=random, dtype=torch.float64) * (torch.rand(n, 5, generator=random) > 0.4)
    ) * mask
    components = torch.zeros(n, 2, dtype=torch.float64)

    def rule(dense, rows):
        return ClipDelta(outcome="c", eta=0.5)(mask[rows], components[rows], NAMES, WEIGHTS, dense[rows])[0]

    rows, order = torch.arange(n), torch.randperm(n, generator=random)
    out, other = rule(scores, rows), rule(scores, order)
    garbage = rule(scores.masked_fill(~mask, math.nan), rows)
    for x, y, z in zip(out, other, garbage, strict=True):
        torch.testing.assert_close(x[order], y)
        torch.testing.assert_close(x, z)
    assert (out.dense[~mask] == 0).all()


def test_what_cannot_work_is_refused():
    mask = torch.ones(1, 1).bool()
    with pytest.raises(RecipeError, match="no reward is called 'C'"):
        ClipDelta(outcome="C")(mask, torch.zeros(1, 1), ("c",), torch.ones(1), torch.zeros(1, 1))
    with pytest.raises(RecipeError, match="list 'weighted_sum' before it"):
        ClipDelta(outcome="c")(mask, torch.zeros(1, 1), ("c",), torch.ones(1))


def test_a_run_of_two_steps(tmp_path):
    scores = tmp_path / "scores.py"
    scores.write_text(
        "import torch\nfrom guerdon import batched\n\n\n@batched\ndef steps(tokens, mask):\n"
        '    """A score of every token."""\n    return torch.where(mask, 0.1 + (tokens % 7) / 10, 0.0)\n'
    )
    recipe = RECIPE | {
        "runs_dir": str(tmp_path),
        "rewards": ["task", f"{scores}:steps"],
        "shaping": ["weighted_sum", {"name": "pr_clip_delta", "outcome": "task"}],
        "credit": {"name": "gae", "gamma": 1.0},
        "terms": ["value"],
    }
    metrics = RunFolder.open(train(load_recipe(recipe), progress=Progress(quiet=True)).run).metrics()
    assert 0 < metrics["shaping/pr_clip_delta/nonzero"][0] < 1
    assert metrics["shaping/pr_clip_delta/eta"][0] == metrics["shaping/pr_clip_delta/eta"][1]
