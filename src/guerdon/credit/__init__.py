"""Who gets the credit: methods that turn rewards into an advantage for every action."""

from guerdon.credit.baseline import ShrinkageBaseline, opo, remax
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
from guerdon.credit.likelihood import progrpo
from guerdon.credit.novelty import novelty_sharpen
from guerdon.credit.outlier import sigma_filter, stable_reinforce
from guerdon.credit.rank import rank_to_advantage
from guerdon.credit.refill import vspo
from guerdon.credit.risk import RiskPO
from guerdon.credit.scale import DynamicScale
from guerdon.credit.step import GAE, gae
from guerdon.credit.token import OREAL
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
    "gpg",
    "group_mean",
    "group_std",
    "grouped",
    "grpo",
    "leave_one_out_mean",
    "mrn",
    "ngrpo",
    "novelty_sharpen",
    "opo",
    "per_action",
    "progrpo",
    "rank_to_advantage",
    "reinforce_pp",
    "reinforce_pp_baseline",
    "remax",
    "rloo",
    "sigma_filter",
    "stable_reinforce",
    "vspo",
    "whiten",
]
