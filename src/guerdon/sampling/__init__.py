"""How rollouts are drawn."""

from guerdon.sampling.branching import ConstrainedBeam, TrieConstraint, constrained_beam_group
from guerdon.sampling.forced_modes import ForcedModes
from guerdon.sampling.gold_chains import GoldChains
from guerdon.sampling.hint_rejection import HintRejection
from guerdon.sampling.paraphrase import Paraphrase
from guerdon.sampling.proxy import FilteredProxy
from guerdon.sampling.recombination import Cure
from guerdon.sampling.reference_answer import ReferenceAnswer
from guerdon.sampling.reference_hints import ReferenceGuided, partial_reference
from guerdon.sampling.reflect_retry import ReflectRetry, read_report
from guerdon.sampling.replay import Demonstrations, RehearsalBuffer
from guerdon.sampling.rollback import SaarRollback, splice_turn
from guerdon.sampling.rounds import ConfidenceRounds, OneStepRounds, SeedWithSolved
from guerdon.sampling.step_probe import StepProbe
from guerdon.sampling.success_replay import SuccessReplay
from guerdon.sampling.thought_buffer import CorrectedThoughts, ThoughtBuffer
from guerdon.sampling.value_guided import value_guided_decoding

__all__ = [
    "ConfidenceRounds",
    "ConstrainedBeam",
    "CorrectedThoughts",
    "Cure",
    "Demonstrations",
    "FilteredProxy",
    "ForcedModes",
    "GoldChains",
    "HintRejection",
    "OneStepRounds",
    "Paraphrase",
    "ReferenceAnswer",
    "ReferenceGuided",
    "ReflectRetry",
    "RehearsalBuffer",
    "SaarRollback",
    "SeedWithSolved",
    "StepProbe",
    "SuccessReplay",
    "ThoughtBuffer",
    "TrieConstraint",
    "constrained_beam_group",
    "partial_reference",
    "read_report",
    "splice_turn",
    "value_guided_decoding",
]
