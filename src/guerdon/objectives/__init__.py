"""What is minimised: policy objectives, and the terms that add up with them."""

from guerdon.objectives.aggregation import Aggregation, TermAggregation, aggregate
from guerdon.objectives.blended import blended_clip
from guerdon.objectives.controlled import PIDKL, AsymmetricKL, EntropyGatedKL
from guerdon.objectives.covariance import clip_cov, kl_cov, token_covariance
from guerdon.objectives.distill import guided_thought, thought_action_clip
from guerdon.objectives.divergence import f_divergence, jensen_shannon, k1, k2, k3, kl
from guerdon.objectives.entropy import categorical_entropy, entropy
from guerdon.objectives.gflownet import fl_db, fl_subtb, front_preserving, order_preserving, subtb_terminating, var_tb
from guerdon.objectives.log_ratio_regression import log_ratio_regression
from guerdon.objectives.off_policy import dispo, rl_plus, stable_reinforce
from guerdon.objectives.offline import oreo
from guerdon.objectives.outcome import oreal
from guerdon.objectives.policy import cispo, dapo, gmpo, gspo, gspo_token, ppo_clip, reinforce, sapo, surrogate
from guerdon.objectives.ratio import clip_by_sign, importance_ratio, log_ratio, sigmoid_gate
from guerdon.objectives.replayed import replay_clip
from guerdon.objectives.value import explained_variance, huber_value, value

__all__ = [
    "PIDKL",
    "Aggregation",
    "AsymmetricKL",
    "EntropyGatedKL",
    "TermAggregation",
    "aggregate",
    "blended_clip",
    "categorical_entropy",
    "cispo",
    "clip_by_sign",
    "clip_cov",
    "dapo",
    "dispo",
    "entropy",
    "explained_variance",
    "f_divergence",
    "fl_db",
    "fl_subtb",
    "front_preserving",
    "gmpo",
    "gspo",
    "gspo_token",
    "guided_thought",
    "huber_value",
    "importance_ratio",
    "jensen_shannon",
    "k1",
    "k2",
    "k3",
    "kl",
    "kl_cov",
    "log_ratio",
    "log_ratio_regression",
    "order_preserving",
    "oreal",
    "oreo",
    "ppo_clip",
    "reinforce",
    "replay_clip",
    "rl_plus",
    "sapo",
    "sigmoid_gate",
    "stable_reinforce",
    "subtb_terminating",
    "surrogate",
    "thought_action_clip",
    "token_covariance",
    "value",
    "var_tb",
]
