import pytest
import torch

from guerdon.credit import grpo
from guerdon.registry import get
from guerdon.shaping import mixed, weighted_sum

NAN = float("nan")


def test_by_hand():
    components = torch.tensor([[1.0, 0.5, -2.0], [0.0, 1.0, 4.0]])
    assert weighted_sum(components, torch.tensor([2.0, 1.0, 0.25])).tolist() == [2.0, 2.0]


def test_a_component_that_does_not_apply_contributes_nothing():
    components = torch.tensor([[1.0, NAN], [NAN, 3.0], [NAN, NAN]])
    assert weighted_sum(components, torch.tensor([2.0, 0.5])).tolist() == [2.0, 1.5, 0.0]


def test_gradient_is_the_weight_where_a_component_applies():
    components = torch.tensor([[1.0, NAN], [0.0, 3.0]], requires_grad=True)
    weighted_sum(components, torch.tensor([2.0, 0.5])).sum().backward()
    assert components.grad.tolist() == [[2.0, 0.0], [2.0, 0.5]]


def test_order_of_trajectories_and_of_components():
    random = torch.Generator().manual_seed(0)
    components, weights = torch.randn(6, 4, generator=random), torch.randn(4, generator=random)
    out = weighted_sum(components, weights)
    rows, columns = torch.randperm(6, generator=random), torch.randperm(4, generator=random)
    torch.testing.assert_close(weighted_sum(components[rows][:, columns], weights[columns]), out[rows])


def test_integer_weights_and_the_registry():
    fields = {"components": torch.tensor([[0.5, 1.0]]), "component_weights": torch.tensor([2, 1])}
    assert get("shaping", "weighted_sum").bind()(fields).fields["reward"].tolist() == [2.0]


# Two kinds of task with a reward each, the second on a scale a hundred times that of the first; both have a format.
KINDS = [{"task_type": kind} for kind in ("box", "text", "box", "text", "box", "text")]
ROUTED = torch.tensor([[0.0, NAN, 1], [NAN, 0, 1], [0.5, NAN, 1], [NAN, 50, 1], [1, NAN, 1], [NAN, 100, 1]])
WEIGHTS = torch.tensor([1.0, 1.0, 0.5])


def test_mixed_adds_up_what_applies():
    assert mixed(ROUTED, WEIGHTS, KINDS).tolist() == [0.5, 0.5, 1.0, 50.5, 1.5, 100.5]
    assert mixed(ROUTED, WEIGHTS, [{}] * 6).tolist() == weighted_sum(ROUTED, WEIGHTS).tolist()


def test_mixed_brings_kinds_to_one_scale():
    out = mixed(ROUTED, WEIGHTS, KINDS, normalise="type", eps=0.0)
    assert out.tolist() == pytest.approx([-1, -1, 0, 0, 1, 1], abs=1e-6)
    # std 0.5 and 50 with eps 0.5: (0.5, 50) / (1, 50.5)
    assert mixed(ROUTED, WEIGHTS, KINDS, normalise="type", eps=0.5).tolist()[4:] == pytest.approx([0.5, 50 / 50.5])


def test_mixed_takes_the_order_and_the_names_of_kinds_as_they_come():
    rows = [3, 0, 5, 2, 1, 4]
    metadata = [{"kind": 7 if KINDS[i]["task_type"] == "box" else None} for i in rows]
    out = mixed(ROUTED[rows], WEIGHTS, metadata, normalise="type", task_type="kind", eps=0.0)
    assert out.tolist() == pytest.approx([0, -1, 1, 0, -1, 1], abs=1e-6)


def test_mixed_leaves_out_samples_without_a_reward_and_gives_a_lone_one_nothing():
    components = torch.tensor([[1.0], [3.0], [NAN], [5.0]])
    metadata = [{"task_type": kind} for kind in ("a", "a", "a", "b")]
    out = mixed(components, torch.ones(1), metadata, normalise="type", eps=0.0)
    assert out.tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5, 0, 0])


def test_a_z_score_inside_groups_undoes_the_scale_of_kinds():
    group, mask = torch.tensor([0, 1, 0, 1, 0, 1]), torch.ones(6, 1, dtype=torch.bool)
    plain, scaled = (mixed(ROUTED, WEIGHTS, KINDS, normalise=way, eps=0.0) for way in ("none", "type"))
    torch.testing.assert_close(grpo(plain, group, mask, eps=0.0), grpo(scaled, group, mask, eps=0.0))


def test_mixed_names_the_sample_without_a_kind():
    with pytest.raises(ValueError, match="metadata of sample 1 have no 'task_type'; known: kind"):
        mixed(ROUTED[:2], WEIGHTS, [KINDS[0], {"kind": "box"}], normalise="type")


def test_mixed_in_the_registry():
    fields = {"components": ROUTED, "component_weights": WEIGHTS, "metadata": KINDS}
    bound = get("shaping", "mixed").bind({"normalise": "type"})
    assert bound(fields).fields["reward"].abs().sum() == pytest.approx(4, abs=1e-2)
