"""Who gets the credit: methods that turn rewards into an advantage for every action."""

from guerdon.credit.baseline import ShrinkageBaseline, opo, remax
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
from guerdon.credit.likelihood import progrpo
from guerdon.credit.novelty import novelty_sharpen
from guerdon.credit.outlier import sigma_filter, stable_reinforce
from guerdon.credit.process import min_form, thought_level
from guerdon.credit.process_filter import process_filter
from guerdon.credit.rank import rank_to_advantage
from guerdon.credit.refill import vspo
from guerdon.credit.risk import RiskPO
from guerdon.credit.scale import DynamicScale
from guerdon.credit.step import GAE, gae
from guerdon.credit.token import OREAL
from guerdon.credit.tree import sibling_grpo, tempo
from guerdon.credit.turn import gigpo, mapo
from guerdon.credit.verpo import verpo
from guerdon.credit.weights import difficulty_weights

__all__ = [
    "GAE",
    "OREAL",
    "CriticBaseline",
    "DynamicScale",
    "Grouped",
    "RiskPO",
    "ShrinkageBaseline",
    "Singleton",
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
    "leave_one_out_mean",
    "mapo",
    "min_form",
    "mrn",
    "ngrpo",
    "novelty_sharpen",
    "opo",
    "per_action",
    "process_filter",
    "progrpo",
    "rank_to_advantage",
    "reinforce_pp",
    "reinforce_pp_baseline",
    "remax",
    "rloo",
    "sibling_grpo",
    "sigma_filter",
    "stable_reinforce",
    "tempo",
    "thought_level",
    "verpo",
    "vspo",
    "whiten",
]
