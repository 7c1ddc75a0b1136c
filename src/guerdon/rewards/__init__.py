"""How behaviour is scored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guerdon.rewards.base import Fault as Fault
    from guerdon.rewards.base import Reward as Reward
    from guerdon.rewards.base import Scorer as Scorer
    from guerdon.rewards.base import drop_faulted as drop_faulted
    from guerdon.rewards.base import score as score
    from guerdon.rewards.boxes import box_iou as box_iou
    from guerdon.rewards.code import python_tests as python_tests
    from guerdon.rewards.consensus import answer_entropy as answer_entropy
    from guerdon.rewards.consistency import ConsistencyReward as ConsistencyReward
    from guerdon.rewards.embedding import EmbeddingSimilarity as EmbeddingSimilarity
    from guerdon.rewards.forms import Calls as Calls
    from guerdon.rewards.forms import Score as Score
    from guerdon.rewards.forms import batched as batched
    from guerdon.rewards.forms import grouped as grouped
    from guerdon.rewards.forms import reward as reward
    from guerdon.rewards.judge import ComparativeRubricJudge as ComparativeRubricJudge
    from guerdon.rewards.judge import Tournament as Tournament
    from guerdon.rewards.judge_compare import JudgePairwise as JudgePairwise
    from guerdon.rewards.judge_compare import JudgeRanking as JudgeRanking
    from guerdon.rewards.judge_single import JudgeRubric as JudgeRubric
    from guerdon.rewards.judge_single import JudgeScore as JudgeScore
    from guerdon.rewards.judge_single import JudgeSteps as JudgeSteps
    from guerdon.rewards.learned import digit_gold as digit_gold
    from guerdon.rewards.learned import digit_proxy as digit_proxy
    from guerdon.rewards.likelihood import low_prob_confidence as low_prob_confidence
    from guerdon.rewards.multiple_choice import choice as choice
    from guerdon.rewards.ngrams import Bleu as Bleu
    from guerdon.rewards.ngrams import Chrf as Chrf
    from guerdon.rewards.ngrams import Rouge as Rouge
    from guerdon.rewards.ngrams import token_f1 as token_f1
    from guerdon.rewards.sql import SqlSchemaLinking as SqlSchemaLinking
    from guerdon.rewards.sql import sql_execution as sql_execution
    from guerdon.rewards.structure import JsonSchema as JsonSchema
    from guerdon.rewards.structure import tags as tags
    from guerdon.rewards.text import AdaptiveSemantic as AdaptiveSemantic
    from guerdon.rewards.text import length_aware_bleu as length_aware_bleu
    from guerdon.rewards.text import semantic_similarity as semantic_similarity
    from guerdon.rewards.text import sentence_coverage as sentence_coverage
    from guerdon.rewards.text import text_overlap as text_overlap
    from guerdon.rewards.verifiable import exact as exact
    from guerdon.rewards.verifiable import math_verify as math_verify
    from guerdon.rewards.verifiable import numeric as numeric
    from guerdon.rewards.verifiable import regex as regex
    from guerdon.rewards.workers import WorkerPool as WorkerPool

# Imported on first use, so that a worker process which wants one light module does not load torch.
_HOMES = {
    "base": ("Fault", "Reward", "Scorer", "drop_faulted", "score"),
    "boxes": ("box_iou",),
    "code": ("python_tests",),
    "consensus": ("answer_entropy",),
    "consistency": ("ConsistencyReward",),
    "embedding": ("EmbeddingSimilarity",),
    "forms": ("Calls", "Score", "batched", "grouped", "reward"),
    "judge": ("ComparativeRubricJudge", "Tournament"),
    "judge_compare": ("JudgePairwise", "JudgeRanking"),
    "judge_single": ("JudgeRubric", "JudgeScore", "JudgeSteps"),
    "learned": ("digit_gold", "digit_proxy"),
    "likelihood": ("low_prob_confidence",),
    "multiple_choice": ("choice",),
    "ngrams": ("Bleu", "Chrf", "Rouge", "token_f1"),
    "sql": ("SqlSchemaLinking", "sql_execution"),
    "structure": ("JsonSchema", "tags"),
    "text": ("AdaptiveSemantic", "length_aware_bleu", "semantic_similarity", "sentence_coverage", "text_overlap"),
    "verifiable": ("exact", "math_verify", "numeric", "regex"),
    "workers": ("WorkerPool",),
}
__all__ = [
    "AdaptiveSemantic",
    "Bleu",
    "Calls",
    "Chrf",
    "ComparativeRubricJudge",
    "ConsistencyReward",
    "EmbeddingSimilarity",
    "Fault",
    "JsonSchema",
    "JudgePairwise",
    "JudgeRanking",
    "JudgeRubric",
    "JudgeScore",
    "JudgeSteps",
    "Reward",
    "Rouge",
    "Score",
    "Scorer",
    "SqlSchemaLinking",
    "Tournament",
    "WorkerPool",
    "answer_entropy",
    "batched",
    "box_iou",
    "choice",
    "digit_gold",
    "digit_proxy",
    "drop_faulted",
    "exact",
    "grouped",
    "length_aware_bleu",
    "low_prob_confidence",
    "math_verify",
    "numeric",
    "python_tests",
    "regex",
    "reward",
    "score",
    "semantic_similarity",
    "sentence_coverage",
    "sql_execution",
    "tags",
    "text_overlap",
    "token_f1",
]


def __getattr__(name: str) -> Any:
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'guerdon.rewards' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(f"guerdon.rewards.{home}"), name)
