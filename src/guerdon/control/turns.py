"""Reading numbers of actions as numbers of the turns that they make up."""

from __future__ import annotations

from torch import Tensor

from guerdon.credit.turn import Turns


def at_first(turns: Turns, x: Tensor) -> Tensor:
    """(N,M) what x (N,T) says of the first action of each turn; of turns that don't exist, anything."""
    if not x.shape[1]:
        return x.new_zeros(turns.exists.shape)
    return x.gather(1, turns.first(turns.mask).clamp(max=x.shape[1] - 1))
