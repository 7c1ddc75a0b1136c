"""Rewards that are themselves learned: a hackable proxy and a held-out gold judge of handwritten digits."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from guerdon.rewards.base import batched, reward
from guerdon.seeding import torch_generator
from guerdon.tasks.digits import CLASSES, digit_images

PROXY_IMAGES = 100


@dataclass(frozen=True)
class Classifier:
    """A frozen perceptron; weights and biases, one pair a layer, shapes (in, out) and (out,)."""

    layers: tuple[tuple[Tensor, Tensor], ...]

    def logits(self, images: Tensor) -> Tensor:
        """(n,10) logits of images (n,64); differentiable in the images."""
        h = images
        for i, (weight, bias) in enumerate(self.layers):
            h = h @ weight + bias
            if i < len(self.layers) - 1:
                h = F.relu(h)
        return h

    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """Share of images put in their class."""
        return float((self.logits(images).argmax(dim=1) == labels).float().mean())


def fit_classifier(
    images: Tensor, labels: Tensor, hidden: tuple[int, ...], *, steps: int, jitter: float, seed: int, lr: float = 3e-3
) -> Classifier:
    """Train a perceptron by cross-entropy on the whole set, with Gaussian pixel noise of std ``jitter``.

    Deterministic in ``seed``; it leaves no trace on torch's global generator and works where gradients are off.
    """
    generator = torch_generator(seed, "classifier")
    sizes = (images.shape[1], *hidden, CLASSES)
    with torch.inference_mode(False), torch.enable_grad():
        layers = []
        for fan_in, fan_out in itertools.pairwise(sizes):
            weight = torch.randn(fan_in, fan_out, generator=generator) * (2 / fan_in) ** 0.5
            layers.append((weight.requires_grad_(), torch.zeros(fan_out, requires_grad=True)))
        model = Classifier(tuple(layers))
        optimizer = torch.optim.AdamW([p for layer in layers for p in layer], lr=lr, weight_decay=1e-2)
        for _ in range(steps):
            noise = torch.randn(images.shape, generator=generator)
            loss = F.cross_entropy(model.logits(images + jitter * noise), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return Classifier(tuple((w.detach(), b.detach()) for w, b in layers))


@functools.cache
def proxy_classifier() -> Classifier:
    """The small classifier behind ``digit_proxy``: softmax regression on 100 images of the training part."""
    images, labels = digit_images("train")
    few = torch.cat([(labels == c).nonzero().flatten()[: PROXY_IMAGES // CLASSES] for c in range(CLASSES)])
    return fit_classifier(images[few], labels[few], (), steps=200, jitter=0.0, seed=0)


@functools.cache
def gold_classifier() -> Classifier:
    """The larger classifier behind ``digit_gold``: two hidden layers of 256 on the 629 images of the gold part."""
    images, labels = digit_images("gold")
    return fit_classifier(images, labels, (256, 256), steps=150, jitter=0.4, seed=0)


@functools.cache
def _reach() -> Tensor:
    """(10,) distance within which 90 % of the gold part's images of a class find another one of that class."""
    images, labels = digit_images("gold")
    distance = torch.cdist(images, images).fill_diagonal_(torch.inf)
    nearest = torch.where(labels.unsqueeze(1) == labels, distance, torch.inf).amin(dim=1)
    return torch.stack([nearest[labels == c].quantile(0.9) for c in range(CLASSES)])


def realness(samples: Tensor, labels: Tensor) -> Tensor:
    """How close samples come to real images of their class: min(1, exp(1 - (d / q)^2)).

    d is the Euclidean distance to the nearest image of the class in the gold part; q the distance within which 90 % of
    those images find another one, so a real image scores 1 nine times in ten.

    Args:
        samples: (N,64) pixels.
        labels: (N,) classes.

    Returns:
        (N,) in [0, 1].
    """
    real, classes = digit_images("gold")
    distance = torch.cdist(samples, real)
    nearest = torch.where(labels.unsqueeze(1) == classes, distance, torch.inf).amin(dim=1)
    return (1 - (nearest / _reach()[labels]) ** 2).exp().clamp(max=1.0)


@reward("digit_proxy")
@batched
def digit_proxy(payload: Any) -> Tensor:
    """Probability of the wanted class under a small classifier; easily hacked, so watch ``digit_gold`` beside it.

    Softmax regression on 100 real images, trained at the first call in a fraction of a second and the same in every
    run: 87 % of held-out images are classified rightly. Differentiable in the samples.

    Args:
        payload: of a flow policy on task ``digits``: ``sample`` (N,64) and ``label`` (N,).

    Returns:
        (N,) in [0, 1]; real held-out images score .73 on average.
    """
    return _probability(proxy_classifier(), payload["sample"], payload["label"])


@reward("digit_gold")
@batched
def digit_gold(payload: Any) -> Tensor:
    """Probability of the wanted class under a larger held-out classifier, times the closeness to real images.

    p(label | sample) min(1, exp(1 - (d / q)^2)), see ``realness``. Classifier and neighbours come from the gold part
    of the data, which neither policy nor proxy sees; 99 % of held-out images are classified rightly. Trained at the
    first call in about a second and the same in every run. Meant as ``{name: digit_gold, watch: true}``.

    Args:
        payload: of a flow policy on task ``digits``: ``sample`` (N,64) and ``label`` (N,).

    Returns:
        (N,) in [0, 1]; real held-out images score .97 on average.
    """
    samples, labels = payload["sample"], payload["label"]
    return _probability(gold_classifier(), samples, labels) * realness(samples, labels)


def _probability(model: Classifier, samples: Tensor, labels: Tensor) -> Tensor:
    return model.logits(samples).softmax(dim=1).gather(1, labels.unsqueeze(1)).squeeze(1)
