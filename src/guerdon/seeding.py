"""Seeds derived from names, so that no random-number state has to survive a restart.

Every stage of every step draws from its own generator, seeded by the run's seed and a path such as
``(step, "sample")``. A resumed run therefore repeats the interrupted one exactly.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derive(seed: int, *path: int | str) -> int:
    """Return a 63-bit seed that is a pure function of ``seed`` and ``path``."""
    digest = hashlib.blake2b(repr((seed, *path)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def torch_generator(seed: int, *path: int | str) -> torch.Generator:
    """Return a CPU torch generator seeded by ``derive(seed, *path)``."""
    return torch.Generator().manual_seed(derive(seed, *path))


def numpy_generator(seed: int, *path: int | str) -> np.random.Generator:
    """Return a numpy generator seeded by ``derive(seed, *path)``."""
    return np.random.default_rng(derive(seed, *path))
