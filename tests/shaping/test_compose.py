import torch

from guerdon.registry import get
from guerdon.shaping import weighted_sum

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
