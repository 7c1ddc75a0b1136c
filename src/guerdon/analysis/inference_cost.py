"""What reasoning at test time costs once reading the cache of keys and values is paid for, and how best to spend it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy.special import gammaln
from torch import Tensor

INTENSITY = 562.5
Count = float | np.ndarray
Price = Literal["eflops", "flops"]


@dataclass(frozen=True)
class ModelShape:
    """What the cost of a model depends on.

    Attributes:
        parameters: P.
        heads: H, heads of queries.
        kv_heads: heads of keys and values.
        width: d, the width of a head times the number of layers.
    """

    parameters: float
    heads: int
    kv_heads: int
    width: int


class Cost(NamedTuple):
    """FLOPs and elements of the cache read; each has the shape that the arguments broadcast to."""

    compute: Count
    memory: Count

    def eflops(self, intensity: float = INTENSITY) -> Count:
        """compute + intensity * memory: FLOPs that the hardware could have done in the time.

        Args:
            intensity: FLOPs per element read at which the hardware is balanced.
        """
        return self.compute + intensity * self.memory


def dense_cost(model: ModelShape, length: Count, trials: Count = 1, prompt: Count = 0) -> Cost:
    """Cost of N answers of L tokens to one prompt, with full attention.

    compute = (2 P L + 2 (2 L_in + L) L H d) N
    memory  = 2 (2 L_in + L N) L H_kv d

    The cache of the prompt is read once for all N, those of the answers are not shared. Reading the weights is left
    out: batches are taken to be large.

    Args:
        model: its shape.
        length: L, tokens of an answer; numbers or arrays, which broadcast.
        trials: N, answers.
        prompt: L_in, tokens of the prompt.

    Source: Sadhukhan et al. 2025, arXiv 2506.05333.
    """
    p, h, kv, d = model.parameters, model.heads, model.kv_heads, model.width
    compute = (2 * p * length + 2 * (2 * prompt + length) * length * h * d) * trials
    return Cost(compute, 2 * (2 * prompt + length * trials) * length * kv * d)


def sparse_cost(model: ModelShape, length: Count, budget: Count, trials: Count = 1, prompt: Count = 0) -> Cost:
    """Cost with attention to at most B keys per token, where choosing them is free.

    K = B L - max(0, B - L_in)^2 / 2,  the keys that L tokens read
    compute = (2 P L + 4 K H d) N,  memory = 4 K H_kv d N

    The first tokens have fewer than B keys, which is what K takes off; one release adds it for token-sparse attention.
    An answer that ends before a token has B keys reads as many as under full attention, (L_in + L / 2) L, where the
    formula, meant for L >= B - L_in, would not hold.

    Args:
        model, length, trials, prompt: see ``dense_cost``.
        budget: B, keys per token.

    Source: Sadhukhan et al. 2025, arXiv 2506.05333.
    """
    p, h, kv, d = model.parameters, model.heads, model.kv_heads, model.width
    # Tokens before the budget is full: all of a short answer, none after a long prompt.
    filling = np.clip(np.asarray(budget, dtype=float) - prompt, 0, length)
    keys = (prompt + filling / 2) * filling + budget * (np.asarray(length, dtype=float) - filling)
    return Cost((2 * p * length + 4 * keys * h * d) * trials, 4 * keys * kv * d * trials)


def block_sparse_cost(
    model: ModelShape,
    length: Count,
    blocks: Count,
    trials: Count = 1,
    prompt: Count = 0,
    *,
    block: int = 16,
    local: int = 0,
) -> Cost:
    """Cost with attention to the best blocks of keys, search included.

    that of ``sparse_cost`` with B = local + block * blocks, and floor((2 L_in + L) / block) L d, times H N in compute
    and times H_kv N in memory, for comparing every token with one key per block

    Args:
        model, length, trials, prompt: see ``dense_cost``.
        blocks: how many blocks each token attends to.
        block: keys in a block.
        local: latest keys, always attended to.

    Source: Sadhukhan et al. 2025, arXiv 2506.05333.
    """
    attended = sparse_cost(model, length, local + block * np.asarray(blocks, dtype=float), trials, prompt)
    search = np.floor((2 * np.asarray(prompt, dtype=float) + length) / block) * length * model.width * trials
    return Cost(attended.compute + search * model.heads, attended.memory + search * model.kv_heads)


def pass_at_k(correct: Tensor, samples: int | Tensor, k: int) -> Tensor:
    """Chance that one of k answers is right, estimated without bias from n >= k answers.

    pass@k = 1 - C(n - c, k) / C(n, k)

    Args:
        correct: (...) c, right answers.
        samples: n, answers drawn; a number or (...).
        k: how many one may give.

    Returns:
        (...) float64 in [0,1].

    Raises:
        ValueError: when there are fewer samples than k or than right ones, or k is below 1.

    Source: Chen et al. 2021, arXiv 2107.03374.
    """
    c = np.asarray(torch.as_tensor(correct).cpu(), dtype=float)
    n = np.broadcast_to(np.asarray(torch.as_tensor(samples).cpu(), dtype=float), c.shape)
    if k < 1 or (n < k).any() or (c > n).any() or (c < 0).any():
        raise ValueError(f"pass@{k} of {c} right in {n} samples; wanted 1 <= k <= samples and 0 <= right <= samples")
    enough = n - c >= k
    left = np.where(enough, n - c, k)
    log_ratio = gammaln(left + 1) - gammaln(left - k + 1) - gammaln(n + 1) + gammaln(n - k + 1)
    return torch.from_numpy(np.where(enough, 0.0 - np.expm1(np.minimum(log_ratio, 0.0)), 1.0))


class Configuration(NamedTuple):
    """A way to answer: a model, a length, a number of trials, perhaps a budget of keys; what it costs and attains."""

    label: str
    cost: Cost
    accuracy: float


def frontier(
    configurations: Sequence[Configuration], *, price: Price = "eflops", intensity: float = INTENSITY
) -> list[Configuration]:
    """Configurations that nothing cheaper equals, cheapest first.

    Args:
        configurations: all that were tried, each with numbers for cost.
        price: ``eflops``, or ``flops`` for compute alone.
        intensity: see ``Cost.eflops``.

    Source: Sadhukhan et al. 2025, arXiv 2506.05333.
    """
    best: list[Configuration] = []
    for tried in sorted(configurations, key=lambda c: (_price(c, price, intensity), -c.accuracy)):
        if not best or tried.accuracy > best[-1].accuracy:
            best.append(tried)
    return best


def best_within(
    configurations: Sequence[Configuration], budget: float, *, price: Price = "eflops", intensity: float = INTENSITY
) -> Configuration | None:
    """The most accurate configuration that costs no more than the budget; of equals the cheapest, None without one."""
    best = frontier(configurations, price=price, intensity=intensity)
    affordable = [c for c in best if _price(c, price, intensity) <= budget]
    return affordable[-1] if affordable else None


def _price(configuration: Configuration, price: Price, intensity: float) -> float:
    cost = configuration.cost
    return float(cost.compute if price == "flops" else cost.eflops(intensity))
