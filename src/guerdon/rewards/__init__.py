"""How behaviour is scored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guerdon.rewards.answer_likelihood import answer_likelihood as answer_likelihood
    from guerdon.rewards.base import Fault as Fault
    from guerdon.rewards.base import Reward as Reward
    from guerdon.rewards.base import Scorer as Scorer
    from guerdon.rewards.base import drop_faulted as drop_faulted
    from guerdon.rewards.base import score as score
    from guerdon.rewards.bmas import Bmas as Bmas
    from guerdon.rewards.boxes import box_iou as box_iou
    from guerdon.rewards.code import python_tests as python_tests
    from guerdon.rewards.collective_vote import collective_vote as collective_vote
    from guerdon.rewards.collective_vote import rlccf as rlccf
    from guerdon.rewards.collective_vote import rlccf_labels as rlccf_labels
    from guerdon.rewards.consensus import answer_entropy as answer_entropy
    from guerdon.rewards.consistency import ConsistencyReward as ConsistencyReward
    from guerdon.rewards.contrastive_vote import co_reward as co_reward
    from guerdon.rewards.contrastive_vote import contrastive_reward as contrastive_reward
    from guerdon.rewards.detection import box_criterion as box_criterion
    from guerdon.rewards.detection import box_detection as box_detection
    from guerdon.rewards.detection import box_map as box_map
    from guerdon.rewards.detection import box_map_length as box_map_length
    from guerdon.rewards.detection import box_repetition as box_repetition
    from guerdon.rewards.embedding import EmbeddingSimilarity as EmbeddingSimilarity
    from guerdon.rewards.evidence import evidence_found as evidence_found
    from guerdon.rewards.forms import Calls as Calls
    from guerdon.rewards.forms import Score as Score
    from guerdon.rewards.forms import batched as batched
    from guerdon.rewards.forms import grouped as grouped
    from guerdon.rewards.forms import reward as reward
    from guerdon.rewards.gui_action import gui_action as gui_action
    from guerdon.rewards.intent import intent_f1 as intent_f1
    from guerdon.rewards.judge import ComparativeRubricJudge as ComparativeRubricJudge
    from guerdon.rewards.judge import Tournament as Tournament
    from guerdon.rewards.judge_compare import JudgePairwise as JudgePairwise
    from guerdon.rewards.judge_compare import JudgeRanking as JudgeRanking
    from guerdon.rewards.judge_single import JudgeRubric as JudgeRubric
    from guerdon.rewards.judge_single import JudgeScore as JudgeScore
    from guerdon.rewards.judge_single import JudgeSteps as JudgeSteps
    from guerdon.rewards.label_free import log_probability as log_probability
    from guerdon.rewards.label_free import majority_vote as majority_vote
    from guerdon.rewards.label_free import probability_gap as probability_gap
    from guerdon.rewards.label_free import self_certainty as self_certainty
    from guerdon.rewards.label_free import token_certainty as token_certainty
    from guerdon.rewards.label_free import trajectory_probability as trajectory_probability
    from guerdon.rewards.label_free import vote as vote
    from guerdon.rewards.learned import digit_gold as digit_gold
    from guerdon.rewards.learned import digit_proxy as digit_proxy
    from guerdon.rewards.likelihood import low_prob_confidence as low_prob_confidence
    from guerdon.rewards.multiple_choice import choice as choice
    from guerdon.rewards.next_segment import NextSegmentReward as NextSegmentReward
    from guerdon.rewards.ngrams import Bleu as Bleu
    from guerdon.rewards.ngrams import Chrf as Chrf
    from guerdon.rewards.ngrams import Rouge as Rouge
    from guerdon.rewards.ngrams import token_f1 as token_f1
    from guerdon.rewards.novelty_vote import evol_reward as evol_reward
    from guerdon.rewards.novelty_vote import evol_rl as evol_rl
    from guerdon.rewards.path_faithfulness import path_faithfulness_reward as path_faithfulness_reward
    from guerdon.rewards.process import cost_aware_f1 as cost_aware_f1
    from guerdon.rewards.process import retrieval_bonus as retrieval_bonus
    from guerdon.rewards.process import search_format as search_format
    from guerdon.rewards.progress_attribution import ProgressAttribution as ProgressAttribution
    from guerdon.rewards.ranked import rank_discount as rank_discount
    from guerdon.rewards.reasoning_graph import GraphReasoning as GraphReasoning
    from guerdon.rewards.reasoning_patterns import reasoning_pattern as reasoning_pattern
    from guerdon.rewards.reference_judge import ReferenceJudge as ReferenceJudge
    from guerdon.rewards.rubric_score import RubricScore as RubricScore
    from guerdon.rewards.sets import evidence_set as evidence_set
    from guerdon.rewards.sets import triplet_set as triplet_set
    from guerdon.rewards.sql import SqlSchemaLinking as SqlSchemaLinking
    from guerdon.rewards.sql import sql_execution as sql_execution
    from guerdon.rewards.sql_partial import SqlJudge as SqlJudge
    from guerdon.rewards.sql_partial import sql_ngrams as sql_ngrams
    from guerdon.rewards.sql_partial import sql_syntax as sql_syntax
    from guerdon.rewards.sql_partial import tag_boundaries as tag_boundaries
    from guerdon.rewards.structure import JsonSchema as JsonSchema
    from guerdon.rewards.structure import tags as tags
    from guerdon.rewards.template_format import template_format as template_format
    from guerdon.rewards.text import AdaptiveSemantic as AdaptiveSemantic
    from guerdon.rewards.text import length_aware_bleu as length_aware_bleu
    from guerdon.rewards.text import semantic_similarity as semantic_similarity
    from guerdon.rewards.text import sentence_coverage as sentence_coverage
    from guerdon.rewards.text import text_overlap as text_overlap
    from guerdon.rewards.tool_calls import correct_tool_calls as correct_tool_calls
    from guerdon.rewards.tool_calls import thought_words as thought_words
    from guerdon.rewards.tool_calls import tool_format as tool_format
    from guerdon.rewards.unit_test_density import density_calibrated_tests as density_calibrated_tests
    from guerdon.rewards.verdict import pairwise_verdict as pairwise_verdict
    from guerdon.rewards.verifiable import exact as exact
    from guerdon.rewards.verifiable import math_verify as math_verify
    from guerdon.rewards.verifiable import numeric as numeric
    from guerdon.rewards.verifiable import regex as regex
    from guerdon.rewards.verifiable import relaxed_numeric as relaxed_numeric
    from guerdon.rewards.workers import WorkerPool as WorkerPool

# Imported on first use, so that a worker process which wants one light module does not load torch.
_HOMES = {
    "base": ("Fault", "Reward", "Scorer", "drop_faulted", "score"),
    "bmas": ("Bmas",),
    "boxes": ("box_iou",),
    "code": ("python_tests",),
    "consensus": ("answer_entropy",),
    "consistency": ("ConsistencyReward",),
    "detection": ("box_criterion", "box_detection", "box_map", "box_map_length", "box_repetition"),
    "embedding": ("EmbeddingSimilarity",),
    "evidence": ("evidence_found",),
    "forms": ("Calls", "Score", "batched", "grouped", "reward"),
    "judge": ("ComparativeRubricJudge", "Tournament"),
    "judge_compare": ("JudgePairwise", "JudgeRanking"),
    "judge_single": ("JudgeRubric", "JudgeScore", "JudgeSteps"),
    "learned": ("digit_gold", "digit_proxy"),
    "likelihood": ("low_prob_confidence",),
    "multiple_choice": ("choice",),
    "ngrams": ("Bleu", "Chrf", "Rouge", "token_f1"),
    "process": ("cost_aware_f1", "retrieval_bonus", "search_format"),
    "reasoning_graph": ("GraphReasoning",),
    "sets": ("evidence_set", "triplet_set"),
    "sql": ("SqlSchemaLinking", "sql_execution"),
    "sql_partial": ("SqlJudge", "sql_ngrams", "sql_syntax", "tag_boundaries"),
    "ranked": ("rank_discount",),
    "structure": ("JsonSchema", "tags"),
    "text": ("AdaptiveSemantic", "length_aware_bleu", "semantic_similarity", "sentence_coverage", "text_overlap"),
    "tool_calls": ("correct_tool_calls", "thought_words", "tool_format"),
    "gui_action": ("gui_action",),
    "intent": ("intent_f1",),
    "rubric_score": ("RubricScore",),
    "progress_attribution": ("ProgressAttribution",),
    "unit_test_density": ("density_calibrated_tests",),
    "verdict": ("pairwise_verdict",),
    "verifiable": ("exact", "math_verify", "numeric", "regex", "relaxed_numeric"),
    "answer_likelihood": ("answer_likelihood",),
    "collective_vote": (
        "collective_vote",
        "rlccf",
        "rlccf_labels",
    ),
    "contrastive_vote": (
        "co_reward",
        "contrastive_reward",
    ),
    "label_free": (
        "log_probability",
        "majority_vote",
        "probability_gap",
        "self_certainty",
        "token_certainty",
        "trajectory_probability",
        "vote",
    ),
    "next_segment": ("NextSegmentReward",),
    "novelty_vote": (
        "evol_reward",
        "evol_rl",
    ),
    "path_faithfulness": ("path_faithfulness_reward",),
    "reasoning_patterns": ("reasoning_pattern",),
    "reference_judge": ("ReferenceJudge",),
    "template_format": ("template_format",),
    "workers": ("WorkerPool",),
}
__all__ = [
    "AdaptiveSemantic",
    "Bleu",
    "Bmas",
    "Calls",
    "Chrf",
    "ComparativeRubricJudge",
    "ConsistencyReward",
    "EmbeddingSimilarity",
    "Fault",
    "GraphReasoning",
    "JsonSchema",
    "JudgePairwise",
    "JudgeRanking",
    "JudgeRubric",
    "JudgeScore",
    "JudgeSteps",
    "NextSegmentReward",
    "ProgressAttribution",
    "ReferenceJudge",
    "Reward",
    "Rouge",
    "RubricScore",
    "Score",
    "Scorer",
    "SqlJudge",
    "SqlSchemaLinking",
    "Tournament",
    "WorkerPool",
    "answer_entropy",
    "answer_likelihood",
    "batched",
    "box_criterion",
    "box_detection",
    "box_iou",
    "box_map",
    "box_map_length",
    "box_repetition",
    "choice",
    "co_reward",
    "collective_vote",
    "contrastive_reward",
    "correct_tool_calls",
    "cost_aware_f1",
    "density_calibrated_tests",
    "digit_gold",
    "digit_proxy",
    "drop_faulted",
    "evidence_found",
    "evidence_set",
    "evol_reward",
    "evol_rl",
    "exact",
    "grouped",
    "gui_action",
    "intent_f1",
    "length_aware_bleu",
    "log_probability",
    "low_prob_confidence",
    "majority_vote",
    "math_verify",
    "numeric",
    "pairwise_verdict",
    "path_faithfulness_reward",
    "probability_gap",
    "python_tests",
    "rank_discount",
    "reasoning_pattern",
    "regex",
    "relaxed_numeric",
    "retrieval_bonus",
    "reward",
    "rlccf",
    "rlccf_labels",
    "score",
    "search_format",
    "self_certainty",
    "semantic_similarity",
    "sentence_coverage",
    "sql_execution",
    "sql_ngrams",
    "sql_syntax",
    "tag_boundaries",
    "tags",
    "template_format",
    "text_overlap",
    "thought_words",
    "token_certainty",
    "token_f1",
    "tool_format",
    "trajectory_probability",
    "triplet_set",
    "vote",
]


def __getattr__(name: str) -> Any:
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'guerdon.rewards' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(f"guerdon.rewards.{home}"), name)
