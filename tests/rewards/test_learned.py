import math

import pytest
import torch

from guerdon.registry import describe
from guerdon.rewards.base import Reward, score
from guerdon.rewards.learned import (
    Classifier,
    digit_gold,
    digit_proxy,
    fit_classifier,
    gold_classifier,
    proxy_classifier,
    realness,
)
from guerdon.rollouts import make_rollouts
from guerdon.tasks.digits import digit_images


def payload(images, labels):
    return {"sample": images, "label": labels}


@pytest.fixture(scope="module")
def held_out():
    return digit_images("test")


def test_logits_by_hand():
    """relu((1, 2) W + b) = relu(1 - 2, 3 + 1) = (0, 4); times ((1, 2), (3, -1)) plus (1, 0) = (13, -4)."""
    first = torch.tensor([[1.0, 1.0], [-1.0, 1.0]]), torch.tensor([0.0, 1.0])
    second = torch.tensor([[1.0, 2.0], [3.0, -1.0]]), torch.tensor([1.0, 0.0])
    model = Classifier((first, second))
    assert model.logits(torch.tensor([[1.0, 2.0]])).tolist() == [[13.0, -4.0]]
    assert model.accuracy(torch.tensor([[1.0, 2.0], [1.0, 2.0]]), torch.tensor([0, 1])) == 0.5


def test_accuracies_are_those_the_docs_state(held_out):
    assert proxy_classifier().accuracy(*held_out) == pytest.approx(0.87, abs=0.02)
    assert gold_classifier().accuracy(*held_out) == pytest.approx(0.99, abs=0.01)


def test_real_images_score_as_the_docs_state(held_out):
    assert digit_proxy(payload(*held_out)).mean().item() == pytest.approx(0.73, abs=0.03)
    assert digit_gold(payload(*held_out)).mean().item() == pytest.approx(0.97, abs=0.02)


def test_scores_are_probabilities(held_out):
    images, labels = held_out
    for samples in (images, 3 * images, torch.zeros_like(images)):
        for function in (digit_proxy, digit_gold):
            values = function(payload(samples, labels))
            assert values.shape == labels.shape
            assert (values >= 0).all()
            assert (values <= 1).all()
    every = torch.stack([digit_proxy(payload(images, torch.full_like(labels, c))) for c in range(10)])
    torch.testing.assert_close(every.sum(dim=0), torch.ones(len(labels)))


def test_the_wrong_class_and_noise_score_low(held_out):
    images, labels = held_out
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert digit_gold(payload(images, (labels + 1) % 10)).mean() < 0.01
    assert digit_proxy(payload(images, (labels + 1) % 10)).mean() < 0.05
    assert digit_gold(payload(noise, labels)).mean() < 0.01


def test_the_proxy_can_be_hacked_and_gold_sees_it(held_out):
    """Follow the proxy's gradient from real images: its score goes to 1, the samples leave the data."""
    images, labels = held_out
    samples = images.clone().requires_grad_()
    for _ in range(60):
        (gradient,) = torch.autograd.grad(digit_proxy(payload(samples, labels)).log().sum(), samples)
        samples = (samples + 0.5 * gradient / gradient.norm(dim=1, keepdim=True).clamp(min=1e-6)).detach()
        samples.requires_grad_()
    assert digit_proxy(payload(samples, labels)).mean() > 0.99
    assert digit_gold(payload(samples, labels)).mean() < 0.3


def test_realness_by_hand():
    """A real image has distance 0; d = 1.5 q off an image, away from all others, gives exp(1 - 1.5^2)."""
    images, labels = digit_images("gold")
    assert realness(images, labels).eq(1).all()
    label, real = labels[:1], images[labels == labels[0]]
    between = torch.cdist(real, real).fill_diagonal_(math.inf).amin(dim=1).sort().values
    reach = torch.quantile(between, 0.9).item()
    far = real[:1] + 40 * torch.ones(1, 64) / 8
    distance = torch.cdist(far, real).min().item()
    assert realness(far, label).item() == pytest.approx(math.exp(1 - (distance / reach) ** 2), rel=1e-4, abs=1e-30)
    direction = (far - real[:1]) / 40
    for length in (1.0, 3.0, 4.0):
        sample = real[:1] + length * direction
        nearest = torch.cdist(sample, real).min().item()
        expected = min(1.0, math.exp(1 - (nearest / reach) ** 2))
        assert realness(sample, label).item() == pytest.approx(expected, rel=1e-3)


def test_realness_counts_neighbours_of_the_wanted_class_only():
    """Ones asked to be zeros: the distance is to the nearest zero, though each is itself a real image."""
    images, labels = digit_images("gold")
    ones, zeros = images[labels == 1], images[labels == 0]
    between = torch.cdist(zeros, zeros).fill_diagonal_(math.inf).amin(dim=1)
    expected = (1 - (torch.cdist(ones, zeros).amin(dim=1) / torch.quantile(between, 0.9)) ** 2).exp()
    scores = realness(ones, torch.zeros(len(ones), dtype=torch.int64))
    torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-6)
    assert scores.max() < 1


def test_training_is_deterministic_and_leaves_the_global_generator_alone():
    images, labels = digit_images("train")
    torch.manual_seed(1)
    state = torch.get_rng_state()
    options = {"steps": 5, "jitter": 0.3}
    first = fit_classifier(images, labels, (8,), seed=4, **options)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again = fit_classifier(images, labels, (8,), seed=4, **options)
    other = fit_classifier(images, labels, (8,), seed=5, **options)
    assert torch.equal(first.logits(images), again.logits(images))
    assert not torch.equal(first.logits(images), other.logits(images))


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_training_works_where_gradients_are_off(off):
    images, labels = digit_images("train")
    expected = fit_classifier(images, labels, (), steps=20, jitter=0.0, seed=0)
    with off():
        model = fit_classifier(images, labels, (), steps=20, jitter=0.0, seed=0)
    assert torch.equal(model.logits(images), expected.logits(images))


def test_rewards_are_differentiable_in_the_samples(held_out):
    images, labels = held_out
    for function in (digit_proxy, digit_gold):
        samples = (images + 0.1).requires_grad_()
        function(payload(samples, labels)).sum().backward()
        assert torch.isfinite(samples.grad).all()
        assert samples.grad.abs().sum() > 0


def test_the_reward_stage_scores_a_batch(held_out):
    images, labels = held_out[0][:6], held_out[1][:6]
    mask = torch.ones(6, 2, dtype=torch.bool)
    flags = torch.ones(6, dtype=torch.bool)
    rollouts = make_rollouts(
        labels, labels, mask, torch.zeros(6, 2), done=flags, truncated=~flags, payload=payload(images, labels)
    )
    rewards = [
        Reward("digit_proxy", describe("reward", digit_proxy), {}),
        Reward("digit_gold", describe("reward", digit_gold), {}, watch=True),
    ]
    scored, faults = score(rollouts, rewards)
    assert not faults
    torch.testing.assert_close(scored.rewards["digit_proxy"], digit_proxy(payload(images, labels)))
    torch.testing.assert_close(scored.watch["digit_gold"], digit_gold(payload(images, labels)))
