"""guerdon's shaping and credit inside verl, as an advantage estimator.

A module that verl is told to import registers it::

    # my_credit.py, with VERL_USE_EXTERNAL_MODULES=my_credit and algorithm.adv_estimator=guerdon
    from guerdon.integrations.verl import register

    register("guerdon", credit="riskpo")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guerdon.errors import RecipeError
from guerdon.integrations.columns import Spec, as_rollouts, bind_signal
from guerdon.training.signal import Signal

# What verl hands to an estimator; not whether an episode ended, nor what was written.
SUPPLIED = frozenset("group mask turn length step seed components component_names component_weights".split())

Estimator = Callable[..., tuple[Tensor, Tensor]]


def estimator(credit: Spec | Sequence[Spec] = "grpo", *, shaping: Sequence[Spec] = (), seed: int = 0) -> Estimator:
    """An advantage estimator with verl's interface.

    The reward is one component per token, as verl gives it. Where verl also hands over the batch, which it does for the
    estimator of the name ``gdpo``, the components are those that ``algorithm.gdpo_reward_keys`` names, with
    ``algorithm.gdpo_reward_weights``. What a method remembers lasts as long as the process; verl's checkpoints lack it.

    Args:
        credit, shaping: methods of these stages, by name or as mappings with options.
        seed: of what methods draw.

    Returns:
        A function of token_level_rewards (N,T), response_mask (N,T) and index (N,) that gives advantages (N,T), and the
        same as returns.

    Raises:
        MissingField: when a method asks for a field that verl does not hand over.
    """
    shapers, credits = bind_signal(shaping, credit, SUPPLIED, "verl")
    calls = 0

    @torch.no_grad()
    def compute(
        token_level_rewards: Tensor,
        response_mask: Tensor,
        index: np.ndarray | None = None,
        config: Mapping[str, Any] | None = None,
        non_tensor_batch: Mapping[str, Any] | None = None,
        **unused: Any,
    ) -> tuple[Tensor, Tensor]:
        nonlocal calls
        if index is None:
            raise RecipeError("verl gave no 'uid', by which the responses to a prompt are told; want one per response")
        mask, n = response_mask.bool(), len(response_mask)
        keys = [str(key) for key in index]
        number = {key: place for place, key in enumerate(dict.fromkeys(keys))}
        rollouts = as_rollouts(
            mask,
            torch.tensor([number[key] for key in keys], device=mask.device),
            prompts=keys,
            completions=[""] * n,
            columns={},
            truncated=torch.zeros(n, dtype=torch.bool, device=mask.device),
        )
        names, weights = _components(rollouts.rewards, token_level_rewards.float(), config, non_tensor_batch)
        signal = Signal(shapers, credits, names, weights, seed)
        rollouts, _ = signal.shape(rollouts, calls)
        rollouts, _ = signal.assign_credit(rollouts, calls)
        calls += 1
        advantages = rollouts.advantage.to(token_level_rewards)  # type: ignore[union-attr]  # a credit gives one
        return advantages, advantages

    return compute


def _components(
    rewards: Any, whole: Tensor, config: Mapping[str, Any] | None, batch: Mapping[str, Any] | None
) -> tuple[tuple[str, ...], Tensor]:
    """Write the components of a batch, and give their names and weights."""
    names = tuple(str(key) for key in (config or {}).get("gdpo_reward_keys") or ()) if batch is not None else ()
    if not names:
        rewards["reward"] = whole
        return ("reward",), whole.new_ones(1)
    assert batch is not None
    for name in names:
        if name not in batch:
            raise RecipeError(
                f"algorithm.gdpo_reward_keys names '{name}', which the batch lacks; it has {', '.join(sorted(batch))}"
            )
        rewards[name] = torch.as_tensor(np.asarray(batch[name], dtype=np.float32), device=whole.device)
    given = (config or {}).get("gdpo_reward_weights")
    weights = whole.new_tensor(list(given)) if given is not None else whole.new_ones(len(names))
    if len(weights) != len(names):
        raise RecipeError(
            f"algorithm.gdpo_reward_weights has {len(weights)} numbers for {len(names)} keys; want as many"
        )
    return names, weights


def register(
    name: str = "guerdon", credit: Spec | Sequence[Spec] = "grpo", *, shaping: Sequence[Spec] = (), seed: int = 0
) -> Estimator:
    """Let verl find an estimator under a name of ``algorithm.adv_estimator``.

    The name ``gdpo`` takes the place of verl's own, for only there verl tells the components of a reward apart.

    Raises:
        ImportError: when verl is not installed.
        MissingField: see ``estimator``.
    """
    made = estimator(credit, shaping=shaping, seed=seed)
    try:
        from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY  # type: ignore[import-not-found]
    except ImportError as error:
        raise ImportError(
            "guerdon.integrations.verl.register needs verl, which is not installed or not whole"
        ) from error
    if name in ADV_ESTIMATOR_REGISTRY and name != "gdpo":
        raise RecipeError(f"verl has an estimator '{name}' already; give this one another name, such as 'guerdon'")
    ADV_ESTIMATOR_REGISTRY[name] = made
    return made
