"""What is minimised: policy objectives, and the terms that add up with them."""

from guerdon.objectives.aggregation import Aggregation, TermAggregation, aggregate
from guerdon.objectives.answer_term import answer_term
from guerdon.objectives.blended import blended_clip
from guerdon.objectives.bridge_distill import forward_kl_distill, opd
from guerdon.objectives.controlled import PIDKL, AsymmetricKL, EntropyGatedKL
from guerdon.objectives.covariance import clip_cov, kl_cov, token_covariance
from guerdon.objectives.distill import guided_thought, thought_action_clip
from guerdon.objectives.divergence import f_divergence, jensen_shannon, k1, k2, k3, kl
from guerdon.objectives.entropy import categorical_entropy, entropy
from guerdon.objectives.entropy_band import entropy_band_penalty, fork_mask, spine
from guerdon.objectives.entropy_change import entropy_change, steer
from guerdon.objectives.entropy_smoothing import EPO, EntropyHistory
from guerdon.objectives.first_turn import first_turn_kl
from guerdon.objectives.gated_distill import generalised_jsd, quality_gated_distill, quality_gated_kl
from guerdon.objectives.gflownet import fl_db, fl_subtb, front_preserving, order_preserving, subtb_terminating, var_tb
from guerdon.objectives.log_ratio_regression import log_ratio_regression
from guerdon.objectives.low_probability import filtered_proxy_logprob, lp_reg
from guerdon.objectives.off_policy import dispo, rl_plus, stable_reinforce
from guerdon.objectives.offline import oreo
from guerdon.objectives.outcome import oreal
from guerdon.objectives.policy import cispo, dapo, gmpo, gspo, gspo_token, ppo_clip, reinforce, sapo, surrogate
from guerdon.objectives.ratio import clip_by_sign, importance_ratio, log_ratio, sigmoid_gate
from guerdon.objectives.replayed import replay_clip
from guerdon.objectives.unclipped import opmd
from guerdon.objectives.value import explained_variance, huber_value, value

__all__ = [
    "EPO",
    "PIDKL",
    "Aggregation",
    "AsymmetricKL",
    "EntropyGatedKL",
    "EntropyHistory",
    "TermAggregation",
    "aggregate",
    "answer_term",
    "blended_clip",
    "categorical_entropy",
    "cispo",
    "clip_by_sign",
    "clip_cov",
    "dapo",
    "dispo",
    "entropy",
    "entropy_band_penalty",
    "entropy_change",
    "explained_variance",
    "f_divergence",
    "filtered_proxy_logprob",
    "first_turn_kl",
    "fl_db",
    "fl_subtb",
    "fork_mask",
    "forward_kl_distill",
    "front_preserving",
    "generalised_jsd",
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
    "lp_reg",
    "opd",
    "opmd",
    "order_preserving",
    "oreal",
    "oreo",
    "ppo_clip",
    "quality_gated_distill",
    "quality_gated_kl",
    "reinforce",
    "replay_clip",
    "rl_plus",
    "sapo",
    "sigmoid_gate",
    "spine",
    "stable_reinforce",
    "steer",
    "subtb_terminating",
    "surrogate",
    "thought_action_clip",
    "token_covariance",
    "value",
    "var_tb",
]
