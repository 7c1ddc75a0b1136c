import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.credit import grpo
from guerdon.registry import get

quick = settings(derandomize=True, deadline=None, max_examples=40)
ROW = st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 2), st.floats(0, 1), st.integers(0, 2))


def fields(rows, **more):
    reward, group, coverage, length = (torch.tensor(column) for column in zip(*rows, strict=True))
    mask = torch.arange(2) < length.unsqueeze(1)
    reward = reward.double()
    return {
        "advantage": grpo(reward, group, mask),
        "reward": reward,
        "group": group,
        "components": torch.stack([reward, coverage.double()], dim=1),
        "component_names": ("task", "sentence_coverage"),
        "metadata": [{"kind": "ab"[int(g) % 2]} for g in group],
        **more,
    }


def scaled(options=None, **more):
    rows = [(1.0, 0, 0.9, 2), (0.0, 0, 0.5, 2), (1.0, 1, 0.2, 2), (0.0, 1, 0.0, 2)]
    batch = fields(rows, **more)
    outcome = get("credit", "grpo_s").bind(options or {})(batch)
    return (outcome.fields["advantage"] / batch["advantage"])[:, 0], outcome.stats


def test_one_factor_per_prompt_by_hand():
    def s(x):
        return 1 / (1 + math.exp(-x))

    seen, stats = scaled({"demonstration": None})
    mean = 1 - (0.9 + 0.5 + 0.2) / 4
    easy, hard = (s(0.1) + s(0.5)) / 2 / s(mean), (s(0.8) + s(1.0)) / 2 / s(mean)
    assert seen.tolist() == pytest.approx([easy, easy, hard, hard], abs=1e-6)
    assert stats == pytest.approx({"scale_min": easy, "scale_max": hard})


def test_the_gap_is_that_of_its_category_against_its_past():
    credit = get("credit", "dynamic_scale").bind({"coverage": None, "category": "kind", "momentum": 0.5})
    rows = [(1.0, 0, 0.0, 1), (0.0, 0, 0.0, 1), (0.0, 1, 0.0, 1), (0.0, 1, 0.0, 1)]
    first = fields(rows)
    assert credit(first).stats == pytest.approx({"scale_min": 1.0, "scale_max": 1.0})
    second = fields([(1.0, 0, 0.0, 1), (0.5, 0, 0.0, 1), (1.0, 1, 0.0, 1), (0.0, 1, 0.0, 1)])
    seen = credit(second).fields["advantage"] / second["advantage"]

    def s(x):
        return 1 / (1 + math.exp(-x))

    assert seen[:, 0].tolist() == pytest.approx([s(0.25) / s(0.5)] * 2 + [s(0.5) / s(1.0)] * 2, abs=1e-6)
    fresh = get("credit", "dynamic_scale").bind({"coverage": None, "category": "kind", "momentum": 0.5})
    fresh.load_state_dict(json.loads(json.dumps(credit.state_dict())))
    assert fresh(first).fields["advantage"].tolist() == credit(first).fields["advantage"].tolist()


def test_the_demonstrations_reward_may_be_a_component():
    named, _ = scaled(
        {"coverage": None, "demonstration": "demo"},
        components=torch.tensor([[0.0, 3.0]] * 4),
        component_names=("task", "demo"),
    )
    assert named.tolist() == pytest.approx([1.0] * 4, abs=1e-6)


@quick
@given(st.lists(ROW, min_size=1, max_size=10), st.randoms(use_true_random=False))
def test_credit_keeps_its_sum_sign_and_order_independence(rows, random):
    batch = fields([(*row[:3], max(row[3], 1)) for row in rows])
    seen = get("credit", "dynamic_scale").bind()(batch).fields["advantage"]
    assert (seen.sign() == batch["advantage"].sign()).all()
    for key in batch["group"].unique():
        assert seen[batch["group"] == key, 0].sum().item() == pytest.approx(0, abs=1e-6)
    order = torch.tensor(random.sample(range(len(rows)), len(rows)))
    shuffled = {key: x[order] if isinstance(x, torch.Tensor) else x for key, x in batch.items()}
    again = get("credit", "dynamic_scale").bind()(shuffled).fields["advantage"]
    torch.testing.assert_close(again, seen[order])


def test_errors_say_what_to_list():
    with pytest.raises(ValueError, match="no reward 'sentence_coverage' among task; .* or set coverage: null"):
        scaled({}, components=torch.zeros(4, 1), component_names=("task",))
    with pytest.raises(ValueError, match="nothing is left to scale by"):
        get("credit", "dynamic_scale").bind({"coverage": None, "demonstration": None})
