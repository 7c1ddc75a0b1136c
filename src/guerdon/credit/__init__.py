"""Who gets the credit: methods that turn rewards into an advantage for every action."""

from guerdon.credit.baseline import ShrinkageBaseline, opo, remax
from guerdon.credit.batch_scale import batch_scaled
from guerdon.credit.belief import igpo
from guerdon.credit.consistency import copo
from guerdon.credit.critic_baseline import CriticBaseline
from guerdon.credit.group import dgpo, dr_grpo, gdpo, gpg, grpo, mrn, ngrpo, reinforce_pp, reinforce_pp_baseline, rloo
from guerdon.credit.grouping import (
    Grouped,
    Singleton,
    center,
    group_mean,
    group_std,
    grouped,
    leave_one_out_mean,
    per_action,
    whiten,
)
from guerdon.credit.hierarchical import hae
from guerdon.credit.jepo import jepo
from guerdon.credit.likelihood import progrpo
from guerdon.credit.necessary_prefix import Decs
from guerdon.credit.novelty import novelty_sharpen
from guerdon.credit.outlier import sigma_filter, stable_reinforce
from guerdon.credit.pivotal import pivotal, pivotal_mask, positive_amplification
from guerdon.credit.process import min_form, thought_level
from guerdon.credit.process_filter import process_filter
from guerdon.credit.rank import rank_to_advantage
from guerdon.credit.refill import vspo
from guerdon.credit.risk import RiskPO
from guerdon.credit.scale import DynamicScale
from guerdon.credit.step import GAE, gae
from guerdon.credit.step_potential import spae, step_potential
from guerdon.credit.teacher import on_policy_distill, teacher_advantage
from guerdon.credit.telescoped import telescoped_process
from guerdon.credit.token import OREAL
from guerdon.credit.tree import sibling_grpo, tempo
from guerdon.credit.turn import gigpo, mapo
from guerdon.credit.turn_rloo import turn_rloo
from guerdon.credit.verpo import verpo
from guerdon.credit.weights import difficulty_weights

__all__ = [
    "GAE",
    "OREAL",
    "CriticBaseline",
    "Decs",
    "DynamicScale",
    "Grouped",
    "RiskPO",
    "ShrinkageBaseline",
    "Singleton",
    "batch_scaled",
    "center",
    "copo",
    "dgpo",
    "difficulty_weights",
    "dr_grpo",
    "gae",
    "gdpo",
    "gigpo",
    "gpg",
    "group_mean",
    "group_std",
    "grouped",
    "grpo",
    "hae",
    "igpo",
    "jepo",
    "leave_one_out_mean",
    "mapo",
    "min_form",
    "mrn",
    "ngrpo",
    "novelty_sharpen",
    "on_policy_distill",
    "opo",
    "per_action",
    "pivotal",
    "pivotal_mask",
    "positive_amplification",
    "process_filter",
    "progrpo",
    "rank_to_advantage",
    "reinforce_pp",
    "reinforce_pp_baseline",
    "remax",
    "rloo",
    "sibling_grpo",
    "sigma_filter",
    "spae",
    "stable_reinforce",
    "step_potential",
    "teacher_advantage",
    "telescoped_process",
    "tempo",
    "thought_level",
    "turn_rloo",
    "verpo",
    "vspo",
    "whiten",
]
