"""The detectors, in the order in which they are asked: conditions on a history that training and diagnosis share."""

from __future__ import annotations

from guerdon.monitor import policy_detectors as policy
from guerdon.monitor import reward_detectors as reward
from guerdon.monitor.finding import Detector

DETECTORS: tuple[Detector, ...] = (
    Detector("not-finite", ("update/*", "reward/mean", "entropy/mean"), policy.not_finite),
    Detector("unsolvable-tasks", ("reward/mean",), reward.unsolvable_tasks),
    Detector("saturated-tasks", ("reward/mean",), reward.saturated_tasks),
    Detector("reward-faults", ("faults",), reward.reward_faults),
    Detector("entropy-collapse", ("entropy/mean",), policy.entropy_collapse),
    Detector("truncation", ("truncated",), policy.truncation, language_only=True),
    Detector("zero-variance-groups", ("groups/zero_variance",), reward.zero_variance_groups),
    Detector("kl-blowup", ("update/*/kl", "update/*/approx_kl"), policy.kl_blowup),
    Detector("constant-component", ("reward/*/std",), reward.constant_component, at_least=2),
    Detector("drowned-component", ("components/*/share",), reward.drowned_component),
    Detector("conflicting-components", ("components/*/correlation",), reward.conflicting_components),
    Detector("reward-outliers", ("reward/outliers",), reward.reward_outliers),
    Detector("noisy-reward", ("components/*/noise",), reward.noisy_reward),
    Detector("duplicate-rollouts", ("groups/duplicates",), reward.duplicate_rollouts),
    Detector("answer-concentration", ("text/commonest",), policy.answer_concentration),
    Detector("length-collapse", ("length/mean",), policy.length_collapse, language_only=True),
    Detector("length-explosion", ("length/mean",), policy.length_explosion, language_only=True),
    Detector("proxy-gold-divergence", ("watch/*/mean",), reward.proxy_gold_divergence),
    Detector("format-only-learning", ("reward/*/mean", "watch/*/mean"), reward.format_only_learning, at_least=2),
    Detector("judge-bias", ("judge/*/length",), reward.judge_bias),
    Detector("ratio-bias", ("update/*/ratio",), policy.ratio_bias),
    Detector("clip-saturation", ("update/*/clip_fraction",), policy.clip_saturation),
    Detector("stale-policy", ("staleness",), policy.stale_policy),
    Detector("advantage-leak", ("advantage/off_mask",), policy.advantage_leak),
)
