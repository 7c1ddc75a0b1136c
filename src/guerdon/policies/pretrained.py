"""What pretrained Hugging Face policies share: adapters, and what a chat puts around an observation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from guerdon.errors import RecipeError

Message = Callable[[str, str], dict[str, Any]]

# Stands for a turn of the policy in a chat, to find what the template puts behind it.
_TURN = "guerdon-turn-7f3a"


def with_lora(network: Any, rank: int, alpha: float | None, targets: str | list[str]) -> Any:
    """The network with adapters of a rank on some modules; their scale is twice the rank by default.

    Raises:
        RecipeError: when peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise RecipeError('policy.lora needs the peft package; pip install "guerdon[peft]"') from None
    scale = alpha or 2.0 * rank
    config = LoraConfig(r=rank, lora_alpha=scale, target_modules=targets, lora_dropout=0.0, task_type="CAUSAL_LM")  # type: ignore[arg-type]
    return get_peft_model(network, config)


def observation_in_chat(
    text: str, ended: bool, *, template: Callable[[list[dict[str, Any]]], str], message: Message, end: str
) -> str:
    """An observation as the user's next message, with all that a chat template puts around it.

    Args:
        text: the observation.
        ended: whether the policy's turn before it ends with ``end``, which is then not repeated.
        template: makes one text of messages.
        message: makes a message of a role and what it says.
        end: the tokenizer's end of a turn.
    """
    after = template([message("user", "?"), message("assistant", _TURN), message("user", text)]).split(_TURN, 1)[1]
    return after.removeprefix(end) if ended else after
