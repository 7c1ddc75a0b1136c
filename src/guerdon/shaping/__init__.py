"""How raw scores become the signal that credit is drawn from."""

from guerdon.shaping.compose import mixed, weighted_sum
from guerdon.shaping.control import control_sum
from guerdon.shaping.gate import conditioned_reward, staged_reward
from guerdon.shaping.normalise import PercentileLogistic, RunningRescaleSum
from guerdon.shaping.schedule import SlopeWeightedSum

__all__ = [
    "PercentileLogistic",
    "RunningRescaleSum",
    "SlopeWeightedSum",
    "conditioned_reward",
    "control_sum",
    "mixed",
    "staged_reward",
    "weighted_sum",
]
