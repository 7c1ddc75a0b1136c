import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_recipes import WORDS

import guerdon
from guerdon.monitor.progress import Progress
from guerdon.objectives.gated_distill import generalised_jsd, kl_between, quality_gated_distill, quality_gated_kl
from guerdon.registry import get
from guerdon.training.folder import RunFolder

quick = settings(derandomize=True, deadline=None, max_examples=25)
NAN = float("nan")


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def brute(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


@quick
@given(st.integers(0, 2**16), st.floats(0, 1))
def test_the_divergence_by_its_formula(seed, beta):
    logits, teacher = drawn(seed, 2, 4).unbind(0)
    s, t = logits.softmax(0).tolist(), teacher.softmax(0).tolist()
    if beta in (0, 1):
        wanted = brute(t, s) if beta == 0 else brute(s, t)
    else:
        m = [beta * a + (1 - beta) * b for a, b in zip(t, s, strict=True)]
        wanted = beta * brute(t, m) + (1 - beta) * brute(s, m)
    assert generalised_jsd(logits, teacher, beta=beta).item() == pytest.approx(wanted, abs=1e-9)
    assert generalised_jsd(logits, logits + 1, beta=beta).abs().item() < 1e-9


def test_a_teacher_may_rule_symbols_out():
    logits = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[0.0, 0.0, -math.inf]], dtype=torch.float64)
    for beta, wanted in ((0.0, math.log(1.5)), (0.5, None)):
        value = generalised_jsd(logits, teacher, beta=beta)
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        assert gradient.isfinite().all()
        assert wanted is None or value.item() == pytest.approx(wanted)
    assert kl_between(teacher.log_softmax(-1), torch.zeros(1, 3).log_softmax(-1)).item() == pytest.approx(math.log(1.5))


def test_only_good_answers_are_learned_from():
    logits, teacher = drawn(0, 3, 2, 5).requires_grad_(), drawn(1, 3, 2, 5)
    mask = torch.tensor([[True, True], [True, True], [True, False]])
    reward = torch.tensor([1.0, 0.999, 3.0])
    spoiled = torch.where(mask.unsqueeze(-1) & (reward >= 1)[:, None, None], teacher, NAN)
    loss, stats = quality_gated_distill(logits, spoiled, reward, mask)
    (gradient,) = torch.autograd.grad(loss, logits)
    each = generalised_jsd(logits, teacher).detach()
    assert loss.item() == pytest.approx(float((each[0].mean() + each[2, 0]) / 2))
    assert stats == pytest.approx({"kept": 2 / 3, "divergence": float((each[0].sum() + each[2, 0]) / 3)})
    assert (gradient[1] == 0).all()
    assert (gradient[2, 1] == 0).all()
    assert gradient.isfinite().all()
    assert (gradient[0] != 0).any()


@pytest.mark.parametrize("reward", [torch.zeros(2), torch.full((2,), NAN)])
def test_where_none_is_good_there_is_nothing(reward):
    logits = drawn(0, 2, 3, 4).requires_grad_()
    loss, stats = quality_gated_distill(logits, drawn(1, 2, 3, 4), reward, torch.ones(2, 3))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == 0
    assert not gradient.any()
    assert stats == {"kept": 0.0, "divergence": 0.0}


def test_vocabularies_must_agree():
    with pytest.raises(ValueError, match="one vocabulary"):
        quality_gated_distill(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4), torch.ones(1), torch.ones(1, 2))


def test_the_term_is_the_gate_on_the_reverse_kl():
    logits, teacher = drawn(0, 3, 2, 5), drawn(1, 3, 2, 5)
    mask = torch.tensor([[True, True], [True, True], [True, False]])
    reward = torch.tensor([1.0, 0.0, 2.0])
    divergence = torch.where(mask, generalised_jsd(logits, teacher, beta=1.0), NAN)
    term, seen = quality_gated_kl(divergence, reward, mask, beta=0.5)
    whole, stats = quality_gated_distill(logits, teacher, reward, mask, jsd_beta=1.0)
    assert term.item() == pytest.approx(0.5 * whole.item())
    assert seen == pytest.approx(stats)
    assert get("term", "quality_gated_kl").target is quality_gated_kl


def test_two_steps_of_a_recipe_with_hints(tmp_path):
    recipe = {
        **WORDS,
        "runs_dir": str(tmp_path),
        "sampling": {
            "prompts": 4,
            "group_size": 4,
            "max_new_tokens": 4,
            "sources": [
                {"name": "hint_rejection", "hint": "guerdon.sampling.hint_rejection:first_letters", "tries": 2}
            ],
        },
        "terms": [{"name": "quality_gated_kl", "beta": 0.1}],
        "training": {"steps": 2},
    }
    result = guerdon.train(recipe, progress=Progress(quiet=True))
    assert result.steps == 2
    assert "update/quality_gated_kl/kept" in RunFolder.open(result.run).metrics()
