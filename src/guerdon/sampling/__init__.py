"""How rollouts are drawn."""

from guerdon.sampling.engine import Completions, GenerationOptions, LanguageModel, generate

__all__ = ["Completions", "GenerationOptions", "LanguageModel", "generate"]
