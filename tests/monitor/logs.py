"""Logs of rollouts for tests: a healthy one, and what changes it."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

STEPS, PROMPTS, SIZE = 40, 8, 8
Row = dict[str, Any]


def healthy(steps: int = STEPS, seed: int = 0, size: int = SIZE) -> list[Row]:
    """Rollouts of a policy that learns: texts that all differ, and half of them right by and by."""
    rng = random.Random(seed)
    rows = []
    for step in range(steps):
        for prompt in range(PROMPTS):
            for member in range(size):
                words = " ".join(
                    rng.choices("red blue green warm cold left right up down".split(), k=rng.randint(6, 12))
                )
                rows.append(
                    {
                        "step": step,
                        "prompt": f"question {step * PROMPTS + prompt}",
                        "completion": f"{words} {step} {prompt} {member}",
                        "reward": float(rng.random() < 0.3 + 0.4 * step / steps),
                    }
                )
    return rows


def changed(change: Callable[[Row, random.Random], Row], **options: Any) -> list[Row]:
    """The healthy log with every row changed by a function of the row and a generator."""
    rng = random.Random(1)
    return [change(row, rng) for row in healthy(**options)]


def write(path: Path, rows: Sequence[Row]) -> Path:
    """Write rows as Parquet."""
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path
