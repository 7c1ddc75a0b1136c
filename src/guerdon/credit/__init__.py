"""Who gets the credit: methods that turn rewards into an advantage for every action."""

from guerdon.credit.baseline import opo, remax
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
from guerdon.credit.step import GAE, gae

__all__ = [
    "GAE",
    "Grouped",
    "Singleton",
    "center",
    "dgpo",
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
    "opo",
    "per_action",
    "reinforce_pp",
    "reinforce_pp_baseline",
    "remax",
    "rloo",
    "whiten",
]
