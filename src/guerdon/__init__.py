"""guerdon: reinforcement learning for rewards that are sparse, delayed, collapsed, noisy, multi-part or hackable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from guerdon.errors import GuerdonError as GuerdonError
    from guerdon.recipe import Recipe as Recipe
    from guerdon.recipe import load_recipe as load_recipe
    from guerdon.registry import register as register
    from guerdon.rewards.forms import Score as Score
    from guerdon.rewards.forms import batched as batched
    from guerdon.rewards.forms import grouped as grouped
    from guerdon.rollouts import Rollouts as Rollouts
    from guerdon.training.loop import resume as resume
    from guerdon.training.loop import train as train
    from guerdon.training.run import Result as Result

# Public names and their homes: imported on first use, so that `import guerdon` and `guerdon --help` stay quick.
_HOMES = {
    "GuerdonError": "guerdon.errors",
    "Recipe": "guerdon.recipe",
    "load_recipe": "guerdon.recipe",
    "register": "guerdon.registry",
    "Score": "guerdon.rewards.forms",
    "batched": "guerdon.rewards.forms",
    "grouped": "guerdon.rewards.forms",
    "Rollouts": "guerdon.rollouts",
    "resume": "guerdon.training.loop",
    "train": "guerdon.training.loop",
    "Result": "guerdon.training.run",
}
__all__ = [
    "GuerdonError",
    "Recipe",
    "Result",
    "Rollouts",
    "Score",
    "__version__",
    "batched",
    "grouped",
    "load_recipe",
    "register",
    "resume",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'guerdon' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
