"""How rollouts are drawn."""

from guerdon.sampling.branching import ConstrainedBeam, TrieConstraint, constrained_beam_group
from guerdon.sampling.replay import Demonstrations, RehearsalBuffer
from guerdon.sampling.rounds import ConfidenceRounds, OneStepRounds, SeedWithSolved
from guerdon.sampling.success_replay import SuccessReplay
from guerdon.sampling.thought_buffer import CorrectedThoughts, ThoughtBuffer
from guerdon.sampling.value_guided import value_guided_decoding

__all__ = [
    "ConfidenceRounds",
    "ConstrainedBeam",
    "CorrectedThoughts",
    "Demonstrations",
    "OneStepRounds",
    "RehearsalBuffer",
    "SeedWithSolved",
    "SuccessReplay",
    "ThoughtBuffer",
    "TrieConstraint",
    "constrained_beam_group",
    "value_guided_decoding",
]
