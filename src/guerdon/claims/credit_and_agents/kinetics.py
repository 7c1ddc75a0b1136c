"""Counted in FLOPs alone, small models with long thoughts look best. Counted with the time it takes to read the cache
of keys and values, which hardly shrinks with the model, larger models with shorter or sparser thoughts are.

The cost formulas are checked by numbers and against a sum over tokens. The law is looked at on invented curves: five
models in the shapes of Qwen3, whose accuracy rises with the length of thought towards a limit that rises with size. The
curves are the first that were written down, and the same for all prices; the grid of lengths was refined once, from
powers of 2. Measured is how the time of a decoding step of a small transformer grows with the length of its cache, on
the CPU at hand.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from guerdon.analysis.inference_cost import (
    INTENSITY,
    Configuration,
    Cost,
    ModelShape,
    best_within,
    block_sparse_cost,
    dense_cost,
    frontier,
    pass_at_k,
    sparse_cost,
)
from guerdon.claims.core import Check, Claim, Mutation, above, below, check, equal, every_seed
from guerdon.engine.decoding import decoder
from guerdon.engine.fused import fused
from guerdon.policies.tiny_lm import TinyTransformer
from guerdon.seeding import torch_generator

UNIT, PROMPT, KEYS = 1e12, 256, 512
MODEL = ModelShape(8.19e9, 32, 8, 4608)
FAMILY = {
    "0.6B": ModelShape(0.6e9, 16, 8, 128 * 28),
    "1.7B": ModelShape(1.7e9, 16, 8, 128 * 28),
    "4B": ModelShape(4.0e9, 32, 8, 128 * 36),
    "8B": ModelShape(8.19e9, 32, 8, 128 * 36),
    "14B": ModelShape(14.8e9, 40, 8, 128 * 40),
}
LENGTHS = [round(2 ** (k / 8)) for k in range(64, 121)]
TARGETS = [0.3, 0.4, 0.5, 0.6]


class Costs(NamedTuple):
    """What is under test: what dense and sparse attention cost."""

    dense: Any
    sparse: Any


def accuracy(parameters: float, length: int) -> float:
    """Rises with the length of thought towards a limit that rises with size; larger models need shorter thoughts."""
    billions = parameters / 1e9
    return (1 - 0.5 * billions**-0.3) * (1 - math.exp(-length / (4000 * billions**-0.25)))


def cheapest(costs: Any, target: float, price: str) -> str:
    """The model that attains the target at the lowest price."""
    tried = [
        Configuration(name, costs.dense(shape, length, 1, PROMPT), accuracy(shape.parameters, length))
        for name, shape in FAMILY.items()
        for length in LENGTHS
    ]
    return next(c.label for c in frontier(tried, price=price) if c.accuracy >= target)  # type: ignore[arg-type]


def by_token(length: int, budget: float, prompt: int) -> tuple[float, float]:
    """Compute and memory of one answer, summed token by token."""
    keys = sum(min(prompt + t + 0.5, budget) for t in range(length))
    p, h, kv, d = MODEL.parameters, MODEL.heads, MODEL.kv_heads, MODEL.width
    return 2 * p * length + 4 * keys * h * d, 4 * keys * kv * d


def step_times(seed: int, lengths: list[int]) -> list[float]:
    """Seconds of a decoding step of eight rows whose caches have those lengths: the least of five."""
    torch.manual_seed(seed)
    model, generator = TinyTransformer(32, 64, 2, 4), torch_generator(seed, "prefixes")
    out = []
    with torch.no_grad(), fused(model) as writer:
        for length in lengths:
            prefixes = torch.randint(32, (8, length), generator=generator).tolist()
            writing = decoder(writer, prefixes, capacity=16, pad=0)
            seconds = []
            for _ in range(5):
                start = time.perf_counter()
                writing.step(torch.zeros(8, dtype=torch.int64))
                seconds.append(time.perf_counter() - start)
            out.append(min(seconds))
    return out


def run(method: Costs, seeds: int) -> Iterator[Check]:
    """Numbers, the law on invented curves, then a stopwatch."""
    for length, compute, memory in ((1024, 17.24, 65.23), (16384, 350.0, 11480.0)):
        cost = method.dense(MODEL, length, 1, PROMPT)
        yield equal(f"compute of {length} tokens, 10^12", cost.compute / UNIT, compute, tol=0.01)
        yield equal(f"562.5 times memory of {length} tokens, 10^12", INTENSITY * cost.memory / UNIT, memory, tol=0.5)
    growth = method.dense(MODEL, 2e6).memory / method.dense(MODEL, 1e6).memory
    yield equal("memory of an answer twice as long", growth, 4.0)
    several, one = (method.dense(MODEL, *shape).eflops() for shape in ((1024, 16), (16384, 1)))
    yield below("price of 16 answers of 1024 tokens against one of 16384", several / one, 1.0)
    prompt = method.dense(MODEL, 1.0, 64, 1e6).memory / method.dense(MODEL, 1.0, 1, 1e6).memory
    yield equal("reading a long prompt for 64 answers against one", prompt, 1.0, tol=1e-3)

    for length, given in ((2048, 0), (2048, 100), (200, 256)):
        cost, (compute, memory) = method.sparse(MODEL, length, KEYS, 1, given), by_token(length, KEYS, given)
        seen = [cost.compute / compute, cost.memory / memory]
        yield equal(f"{KEYS} keys, {length} tokens after {given}, against a sum over tokens", seen, [1, 1], tol=1e-9)
    everything = method.sparse(MODEL, 1024, 1e9, 1, PROMPT)
    dense = dense_cost(MODEL, 1024, 1, PROMPT)
    yield equal("a budget that is never reached costs what full attention does", everything.memory / dense.memory, 1.0)
    blocks = block_sparse_cost(MODEL, 1024, 30, 2, PROMPT, block=16, local=32)
    search = (blocks.memory - sparse_cost(MODEL, 1024, KEYS, 2, PROMPT).memory) / MODEL.width
    yield equal("search among blocks of 16, in reads of a key", search, (1536 // 16) * 1024 * 8 * 2)

    chance = pass_at_k(torch.tensor([0, 1, 3, 10]), 10, 4)
    yield equal("pass@4 of 0, 1, 3 and 10 right in 10", chance, [0.0, 0.4, 1 - 35 / 210, 1.0])

    names = list(FAMILY)
    by_flops, by_time = ([names.index(cheapest(method, t, price)) for t in TARGETS] for price in ("flops", "eflops"))
    larger = all(b >= a for a, b in zip(by_flops, by_time, strict=True)) and sum(by_time) > sum(by_flops)
    shown = " ".join(f"{t:g}: {names[a]} {names[b]}" for t, a, b in zip(TARGETS, by_flops, by_time, strict=True))
    yield check(
        "cheapest model for an accuracy, by FLOPs and by FLOPs and reads",
        larger,
        expected="never smaller by the second, sometimes larger",
        seen=shown,
    )
    ratio = method.dense(MODEL, 32768, 1, PROMPT).eflops() / method.sparse(MODEL, 32768, KEYS, 1, PROMPT).eflops()
    yield above(f"price of full attention in that of {KEYS} keys, 32768 tokens", float(ratio), 10.0)
    tried = [
        Configuration(f"{kind} {length}", cost, accuracy(MODEL.parameters, length))
        for length in LENGTHS
        for kind, cost in (
            ("dense", method.dense(MODEL, length, 1, PROMPT)),
            ("sparse", method.sparse(MODEL, length, KEYS, 1, PROMPT)),
        )
    ]
    best = best_within(tried, 500 * UNIT)
    label = best.label if best else "nothing"
    yield check("best within 5 10^14", label.startswith("sparse"), expected="sparse", seen=label)

    lengths = [64, 512, 2048]
    slopes = [np.polyfit(lengths, np.array(step_times(s, lengths)) * 1e9, 1)[0] for s in range(seeds)]
    yield every_seed("nanoseconds that a token in the cache adds to a decoding step of eight rows", slopes, above=0.0)


def free_cache(model: ModelShape, *args: Any) -> Cost:
    """Count compute alone."""
    cost = dense_cost(model, *args)
    return Cost(cost.compute, 0 * cost.memory + 1)


CLAIM = Claim(
    system="kinetics",
    run=run,
    method=Costs(dense_cost, sparse_cost),
    mutation=Mutation("reading the cache costs nothing", Costs(free_cache, sparse_cost)),
    seeds=5,
)
