"""How raw scores become the signal that credit is drawn from."""

from guerdon.shaping.calibrate import calibrate_low, flip_noise
from guerdon.shaping.compose import mixed, weighted_sum
from guerdon.shaping.conciseness import conciseness_reward
from guerdon.shaping.control import control_sum
from guerdon.shaping.gate import conditioned_reward, staged_reward
from guerdon.shaping.gated import gated_accumulation
from guerdon.shaping.length_history import HapoReward
from guerdon.shaping.length_limit import truncation_reward
from guerdon.shaping.length_schedule import grpo_lambda
from guerdon.shaping.mode_cost import mode_cost_reward
from guerdon.shaping.normalise import PercentileLogistic, RunningRescaleSum
from guerdon.shaping.process_bound import ClipDelta
from guerdon.shaping.progress_bonus import progress_bonus
from guerdon.shaping.renorm import ReNorm, renorm
from guerdon.shaping.schedule import SlopeWeightedSum
from guerdon.shaping.trust import Trapo
from guerdon.shaping.turn_dense import turn_dense

__all__ = [
    "ClipDelta",
    "HapoReward",
    "PercentileLogistic",
    "ReNorm",
    "RunningRescaleSum",
    "SlopeWeightedSum",
    "Trapo",
    "calibrate_low",
    "conciseness_reward",
    "conditioned_reward",
    "control_sum",
    "flip_noise",
    "gated_accumulation",
    "grpo_lambda",
    "mixed",
    "mode_cost_reward",
    "progress_bonus",
    "renorm",
    "staged_reward",
    "truncation_reward",
    "turn_dense",
    "weighted_sum",
]
