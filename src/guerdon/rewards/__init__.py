"""How behaviour is scored."""

from guerdon.rewards.base import Fault, Reward, Score, batched, drop_faulted, reward, score
from guerdon.rewards.consensus import answer_entropy
from guerdon.rewards.consistency import ConsistencyReward
from guerdon.rewards.judge import ComparativeRubricJudge, Tournament
from guerdon.rewards.learned import digit_gold, digit_proxy
from guerdon.rewards.likelihood import low_prob_confidence
from guerdon.rewards.text import (
    AdaptiveSemantic,
    length_aware_bleu,
    semantic_similarity,
    sentence_coverage,
    text_overlap,
)
from guerdon.rewards.verifiable import exact, math_verify, numeric, regex

__all__ = [
    "AdaptiveSemantic",
    "ComparativeRubricJudge",
    "ConsistencyReward",
    "Fault",
    "Reward",
    "Score",
    "Tournament",
    "answer_entropy",
    "batched",
    "digit_gold",
    "digit_proxy",
    "drop_faulted",
    "exact",
    "length_aware_bleu",
    "low_prob_confidence",
    "math_verify",
    "numeric",
    "regex",
    "reward",
    "score",
    "semantic_similarity",
    "sentence_coverage",
    "text_overlap",
]
