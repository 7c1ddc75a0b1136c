"""Learners for control: actions written as tokens, and cloning by subgoals from episodes of any origin."""

from guerdon.control.offline import SubgoalBound, sgc_elbo, step_filter, success_loss, vsc_rl
from guerdon.control.vla import ActionBins, Decoded, joint_ratio, turn_gae, turn_reward, vla_ppo

__all__ = [
    "ActionBins",
    "Decoded",
    "SubgoalBound",
    "joint_ratio",
    "sgc_elbo",
    "step_filter",
    "success_loss",
    "turn_gae",
    "turn_reward",
    "vla_ppo",
    "vsc_rl",
]
