"""A small image-text-to-text model, trained from scratch on the task's own characters and images."""

from __future__ import annotations

from typing import Any, Literal

from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from guerdon.errors import RecipeError
from guerdon.policies.tiny_lm import ANSWER, Kind, build_tokenizer
from guerdon.policies.vision_language import VisionLanguagePolicy
from guerdon.registry import register
from guerdon.tasks.base import Task
from guerdon.tasks.pictures import MARK

# What is said stands as it is; a turn of the policy ends with the end token, and the answer's token asks for the next.
_TEMPLATE = (
    "{% for message in messages %}{% for part in message.content %}"
    "{% if part.type == 'image' %}" + MARK + "{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "{% if message.role == 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}" + ANSWER + "{% endif %}"
)


@register("policy", "tiny_vlm")
class TinyVLM(VisionLanguagePolicy):
    """A LLaVA of a few hundred thousand parameters: a vision transformer, two projections and a Llama."""

    def __init__(
        self,
        task: Task,
        *,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        image: int = 32,
        patch: int = 8,
        vision_width: int = 64,
        vision_layers: int = 2,
        tokenizer: Kind = "char",
        vocab_size: int = 512,
        value_head: bool | Literal["soft_min"] = False,
    ) -> None:
        """Build the vocabulary from ``task.corpus()`` and draw initial weights.

        Args:
            width: size of the language model's residual stream, a multiple of ``2 * heads``.
            layers: its blocks.
            heads: attention heads, of the vision transformer too.
            image: height and width to which images are brought, a multiple of ``patch``.
            patch: height and width of what becomes one token.
            vision_width: size of the vision transformer's residual stream, a multiple of ``heads``.
            vision_layers: its blocks.
            tokenizer: one token per character (``char``), per word between spaces (``word``), or byte-pair merges
                (``bpe``) up to ``vocab_size``.
            value_head: add a critic on the last hidden state, linear or ``soft_min`` (``SoftMinCritic``).
        """
        if width % (2 * heads) or vision_width % heads or image % patch:
            raise RecipeError(
                f"policy 'tiny_vlm': want width {width} a multiple of 2 * heads = {2 * heads}, vision_width "
                f"{vision_width} one of heads = {heads}, and image {image} one of patch = {patch}"
            )
        processor = tiny_processor(build_tokenizer(task.corpus(), tokenizer, vocab_size), image, patch)
        words: Any = processor.tokenizer
        vision = CLIPVisionConfig(
            hidden_size=vision_width,
            intermediate_size=2 * vision_width,
            num_hidden_layers=vision_layers,
            num_attention_heads=heads,
            image_size=image,
            patch_size=patch,
            initializer_range=vision_width**-0.5,  # the usual 0.02 is for wide models, and keeps small ones blind
        )
        text = LlamaConfig(
            vocab_size=len(words),
            hidden_size=width,
            intermediate_size=8 * -(-width // 3),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            tie_word_embeddings=True,
            initializer_range=width**-0.5,
            bos_token_id=None,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
        config = LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=words.convert_tokens_to_ids(MARK),
            vision_feature_layer=-1,
            vision_feature_select_strategy="default",
            tie_word_embeddings=True,
        )
        network = LlavaForConditionalGeneration(config)
        super().__init__(network, processor, value_head=value_head)


def tiny_processor(tokenizer: Any, image: int, patch: int) -> LlavaProcessor:
    """A processor that needs no files: images brought to one size, and the characters of a tokenizer."""
    tokenizer.add_special_tokens({"additional_special_tokens": [ANSWER, MARK]})
    size = {"height": image, "width": image}
    shades = [0.5, 0.5, 0.5]
    images = CLIPImageProcessorPil(
        size=size, do_center_crop=False, crop_size=size, image_mean=shades, image_std=shades, default_to_square=True
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_TEMPLATE,
    )
