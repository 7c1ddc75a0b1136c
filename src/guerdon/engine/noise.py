"""Counter-based uniforms: the draw for a row and a position does not depend on the rest of the batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_GAMMA = np.uint64(0x9E3779B97F4A7C15)  # odd constant of splitmix64 (Steele et al. 2014)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)


def _mix(z: np.ndarray) -> np.ndarray:
    """Finaliser of splitmix64: a bijection of 64-bit words whose outputs look independent."""
    z = (z ^ (z >> np.uint64(30))) * _MIX1
    z = (z ^ (z >> np.uint64(27))) * _MIX2
    return z ^ (z >> np.uint64(31))


class RowUniforms:
    """One stream of uniforms in [0, 1) per row, addressed by position.

    Args:
        seed: seed of the call.
        rows: identity of each row, so that a row draws the same numbers wherever it stands in the batch.
    """

    def __init__(self, seed: int, rows: Sequence[int] | np.ndarray) -> None:
        keys = np.asarray(rows, dtype=np.uint64)
        self._keys = _mix(_mix(keys * _GAMMA + np.uint64(seed & 0xFFFFFFFFFFFFFFFF)) + _GAMMA)

    def at(self, position: int | np.ndarray, rows: np.ndarray | None = None) -> Tensor:
        """Uniforms (N,) float64 of the given rows (all by default) at one position each."""
        keys = self._keys if rows is None else self._keys[rows]
        counter = np.asarray(position, dtype=np.uint64) * _GAMMA
        bits = _mix(keys + counter) >> np.uint64(11)
        return torch.from_numpy(bits.astype(np.float64) * 2.0**-53)
