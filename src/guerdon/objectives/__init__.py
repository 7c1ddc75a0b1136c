"""What is minimised: policy objectives, and the terms that add up with them."""

from guerdon.objectives.aggregation import Aggregation, TermAggregation, aggregate
from guerdon.objectives.covariance import clip_cov, kl_cov, token_covariance
from guerdon.objectives.divergence import k1, k2, k3, kl
from guerdon.objectives.entropy import categorical_entropy, entropy
from guerdon.objectives.off_policy import dispo
from guerdon.objectives.policy import (
    cispo,
    dapo,
    gmpo,
    gspo,
    gspo_token,
    ppo_clip,
    reinforce,
    sapo,
    surrogate,
)
from guerdon.objectives.ratio import clip_by_sign, importance_ratio, log_ratio, sigmoid_gate
from guerdon.objectives.value import explained_variance, value

__all__ = [
    "Aggregation",
    "TermAggregation",
    "aggregate",
    "categorical_entropy",
    "cispo",
    "clip_by_sign",
    "clip_cov",
    "dapo",
    "dispo",
    "entropy",
    "explained_variance",
    "gmpo",
    "gspo",
    "gspo_token",
    "importance_ratio",
    "k1",
    "k2",
    "k3",
    "kl",
    "kl_cov",
    "log_ratio",
    "ppo_clip",
    "reinforce",
    "sapo",
    "sigmoid_gate",
    "surrogate",
    "token_covariance",
    "value",
]
