"""How language models are run: rows packed as trees, attention without padding, and sampling on top of both."""

from guerdon.engine.generate import Completions, GenerationOptions, SamplingError, Written, generate
from guerdon.engine.logits import token_logp
from guerdon.engine.packing import Pack, compact, pack_rows
from guerdon.engine.padding import left_pad, right_pad
from guerdon.engine.reading import LanguageModel, read

__all__ = [
    "Completions",
    "GenerationOptions",
    "LanguageModel",
    "Pack",
    "SamplingError",
    "Written",
    "compact",
    "generate",
    "left_pad",
    "pack_rows",
    "read",
    "right_pad",
    "token_logp",
]
