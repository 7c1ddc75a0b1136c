"""How rollouts are drawn."""

from guerdon.sampling.branching import ConstrainedBeam, TrieConstraint, constrained_beam_group
from guerdon.sampling.replay import Demonstrations, RehearsalBuffer
from guerdon.sampling.rounds import ConfidenceRounds, OneStepRounds, SeedWithSolved

__all__ = [
    "ConfidenceRounds",
    "ConstrainedBeam",
    "Demonstrations",
    "OneStepRounds",
    "RehearsalBuffer",
    "SeedWithSolved",
    "TrieConstraint",
    "constrained_beam_group",
]
