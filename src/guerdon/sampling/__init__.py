"""How rollouts are drawn."""

from guerdon.sampling.engine import Completions, GenerationOptions, LanguageModel, generate
from guerdon.sampling.replay import Demonstrations, RehearsalBuffer
from guerdon.sampling.rounds import ConfidenceRounds, OneStepRounds, SeedWithSolved

__all__ = [
    "Completions",
    "ConfidenceRounds",
    "Demonstrations",
    "GenerationOptions",
    "LanguageModel",
    "OneStepRounds",
    "RehearsalBuffer",
    "SeedWithSolved",
    "generate",
]
