"""How rollouts are drawn."""

from guerdon.sampling.replay import Demonstrations, RehearsalBuffer
from guerdon.sampling.rounds import ConfidenceRounds, OneStepRounds, SeedWithSolved

__all__ = ["ConfidenceRounds", "Demonstrations", "OneStepRounds", "RehearsalBuffer", "SeedWithSolved"]
