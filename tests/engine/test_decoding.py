import pytest
import torch
from torch import nn

from guerdon.engine import decoding
from guerdon.engine.decoding import weights_by_column
from guerdon.policies.tiny_lm import TinyTransformer


def strides(model):
    return [m.weight.stride() for m in model.modules() if isinstance(m, nn.Linear)]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return TinyTransformer(9, width=16, layers=1, heads=2)


def test_matrices_stand_by_column_inside_the_block_only(model):
    before, rows = model.state_dict(), strides(model)
    kept = {name: (x.clone(), x.data_ptr()) for name, x in before.items()}
    with weights_by_column(model):
        assert strides(model) == [(1, w.weight.shape[0]) for w in model.modules() if isinstance(w, nn.Linear)]
        for name, x in model.state_dict().items():
            assert torch.equal(x, kept[name][0])
    assert strides(model) == rows
    assert {name: x.data_ptr() for name, x in model.state_dict().items()} == {n: p for n, (_, p) in kept.items()}


def test_they_come_back_after_an_error(model):
    rows = strides(model)
    with pytest.raises(KeyError), weights_by_column(model):
        raise KeyError
    assert strides(model) == rows


def test_large_models_are_left_as_they_are(model, monkeypatch):
    monkeypatch.setattr(decoding, "BY_COLUMN", 100)
    rows = strides(model)
    with weights_by_column(model):
        assert strides(model) == rows
