import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.credit import grpo
from guerdon.credit.consistency import copo
from guerdon.errors import MissingField
from guerdon.monitor.progress import Progress
from guerdon.recipe import load_recipe
from guerdon.training.folder import RunFolder
from guerdon.training.loop import train
from guerdon.training.plan import make_plan

quick = settings(derandomize=True, deadline=None, max_examples=40)
RECIPE = {
    "task": {"name": "reasoning_gym", "dataset": "spell_backward", "config": {"min_word_len": 3, "max_word_len": 4}},
    "policy": {"name": "tiny_lm", "width": 16, "layers": 1, "heads": 2},
    "sampling": {"prompts": 3, "group_size": 4, "max_new_tokens": 3},
    "evaluation": {"problems": 4},
    "training": {"steps": 2, "minibatches": 2},
}


def prompts(*groups, **options):
    """Credit of trajectories of one action, from the (rewards, answers) of each prompt."""
    reward = torch.tensor([float(r) for rewards, _ in groups for r in rewards], dtype=torch.float64)
    text = [a for _, answers in groups for a in answers]
    group = torch.tensor([10 - q for q, (rewards, _) in enumerate(groups) for _ in rewards])
    out, stats = copo(reward, group, torch.ones(len(reward), 1).bool(), text, **options)
    return [x.squeeze(1) for x in out], stats


def test_agreeing_groups_are_compared_with_each_other():
    (local, between, weight), stats = prompts(([1] * 8, "a" * 8), ([0] * 8, "b" * 8), eps=0.0)
    assert (local == 0).all()
    # Means 1 and 0: 0.5 from their mean, sample standard deviation sqrt(1/2).
    assert between.tolist() == pytest.approx([math.sqrt(0.5)] * 8 + [-math.sqrt(0.5)] * 8)
    assert weight.tolist() == pytest.approx([1 / (1 + math.exp(30))] * 16)
    assert stats == pytest.approx({"answer_entropy": 0.0, "local_weight": 9.4e-14}, abs=1e-15)


def test_the_threshold_by_group_size():
    eight = prompts(([0] * 8, "aabbccdd"))[0][2][0].item()
    assert eight == pytest.approx(1 / (1 + math.exp(-20 * (math.log(4) - 1.5))))
    four = prompts(([0] * 4, "aabb"))[0][2][0].item()
    assert four == pytest.approx(1 / (1 + math.exp(-20 * (math.log(2) - 0.72 * math.log(4)))))
    given_one = prompts(([0] * 4, "aabb"), rho=math.log(2))[0][2]
    assert given_one.tolist() == pytest.approx([0.5] * 4)
    assert prompts(([0] * 4, "aabb"), rho=0.0, gamma=1.0)[0][2][0].item() == pytest.approx(2 / 3)


def test_each_prompt_counts_once_whatever_its_size():
    (_, between, _), _ = prompts(([1, 1, 1, 1], "aaaa"), ([0, 1], "ab"), ([0], "a"), eps=0.0)
    assert between.tolist() == pytest.approx([1.0] * 4 + [0.0] * 2 + [-1.0])


def test_prompts_that_are_equally_hard_give_no_credit():
    (_, between, _), _ = prompts(([0, 1], "ab"), ([1, 0], "ab"), eps=0.0)
    assert (between == 0).all()
    (_, alone, _), _ = prompts(([0, 1], "ab"))
    assert (alone == 0).all()


@quick
@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 3), st.sampled_from("abc")), max_size=12),
    st.integers(0, 99),
)
def test_permuting_padding_and_local_credit(rows, seed):
    reward = torch.tensor([r for r, _, _ in rows], dtype=torch.float64)
    group, text = torch.tensor([g for _, g, _ in rows], dtype=torch.int64), [a for _, _, a in rows]
    random = torch.Generator().manual_seed(seed)
    mask = torch.rand(len(rows), 3, generator=random) > 0.3
    out, _ = copo(reward, group, mask, text)
    assert torch.equal(out.advantage, grpo(reward, group, mask))
    for x in out:
        assert (x[~mask] == 0).all()
        assert x.isfinite().all()
    order = torch.randperm(len(rows), generator=random)
    other, _ = copo(reward[order], group[order], mask[order], [text[i] for i in order])
    for x, y in zip(out, other, strict=True):
        torch.testing.assert_close(x[order], y)


def test_a_run_blends_both_credits(tmp_path):
    recipe = RECIPE | {"runs_dir": str(tmp_path), "credit": "copo", "objective": "blended_clip"}
    metrics = RunFolder.open(train(load_recipe(recipe), progress=Progress(quiet=True)).run).metrics()
    weights = metrics["credit/copo/local_weight"]
    assert weights == pytest.approx(metrics["update/blended_clip/local_weight"], abs=0.2)
    assert all(0 <= w <= 1 for w in weights)


def test_the_objective_is_refused_without_its_credit():
    with pytest.raises(MissingField, match=r"blended_clip' needs 'prompt_advantage'.*use credit 'copo'"):
        make_plan(load_recipe(RECIPE | {"objective": "blended_clip"}))
