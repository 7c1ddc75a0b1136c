"""How raw scores become the signal that credit is drawn from."""

from guerdon.shaping.compose import mixed, weighted_sum
from guerdon.shaping.control import control_sum
from guerdon.shaping.gate import conditioned_reward, staged_reward
from guerdon.shaping.gated import gated_accumulation
from guerdon.shaping.normalise import PercentileLogistic, RunningRescaleSum
from guerdon.shaping.renorm import ReNorm, renorm
from guerdon.shaping.schedule import SlopeWeightedSum
from guerdon.shaping.turn_dense import turn_dense

__all__ = [
    "PercentileLogistic",
    "ReNorm",
    "RunningRescaleSum",
    "SlopeWeightedSum",
    "conditioned_reward",
    "control_sum",
    "gated_accumulation",
    "mixed",
    "renorm",
    "staged_reward",
    "turn_dense",
    "weighted_sum",
]
