"""Any Hugging Face image-text-to-text model, fully or through LoRA: a language policy that is asked with images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, cast

import torch
import transformers
from tensordict import NonTensorStack, TensorDict
from torch import Tensor

from guerdon.errors import RecipeError
from guerdon.policies.gallery import Gallery, Sight
from guerdon.policies.language import LanguagePolicy
from guerdon.policies.language_sampling import LanguageSampling
from guerdon.policies.pretrained import observation_in_chat, with_lora
from guerdon.policies.vision_model import VisionLanguageModel
from guerdon.registry import register
from guerdon.rollouts import Rollouts
from guerdon.tasks.base import Problem, Starts, Task
from guerdon.tasks.pictures import MARK, Picture, illustrated, pictures_of

# What a language policy can say of texts of its own only while it sees their images, which these are asked without.
_WITHOUT_SIGHT = frozenset({"prompt_logp", "answer_logp"})


class VisionLanguagePolicy(LanguagePolicy):
    """A language policy whose prompts and observations may hold images.

    Images come with the text: an ``Illustrated`` prompt or observation, or a prompt whose problem has ``images`` in its
    metadata. In ``Rollouts`` they ride in ``payload["images"]``, as a tuple of ``Picture`` for each trajectory; there
    the tokens are the processor's own, with its image token as often as an image takes.
    """

    def __init__(
        self,
        network: Any,
        processor: Any,
        *,
        chat: bool | None = None,
        system: str = "",
        value_head: bool | Literal["soft_min"] = False,
    ) -> None:
        self.network, self.processor = network, processor
        self._sight = Sight(processor, _image_token(network, processor))
        model = VisionLanguageModel(network, self._sight)
        width = network.config.get_text_config().hidden_size
        super().__init__(model, processor.tokenizer, width, value_head=value_head)
        self._blind = model
        template = getattr(processor, "chat_template", None)
        self.chat, self.system = template is not None if chat is None else chat, system
        if self.chat and template is None:
            raise RecipeError(
                f"the processor '{type(processor).__name__}' has no chat template; set policy.chat: false"
            )

    @classmethod
    def supplied_fields(cls, options: Mapping[str, Any]) -> frozenset[str]:
        """Those of a language policy, but for what it would have to say of given texts without their images."""
        return super().supplied_fields(options) - _WITHOUT_SIGHT

    @contextmanager
    def seeing(self, rollouts: Rollouts | None = None) -> Iterator[Rollouts | None]:
        """See images inside the block: those of rollouts, and those that are encoded there.

        Args:
            rollouts: earlier trajectories.

        Yields:
            The rollouts with numbers of images in place of image tokens, as ``self.model`` reads them inside the block.
        """
        before, gallery = self.model, Gallery(self._sight, self._blind.words)
        lifted = None if rollouts is None else _lifted(gallery, rollouts)
        self.model = self._blind.seeing(gallery)
        try:
            yield lifted
        finally:
            self.model = before

    @property
    def _view(self) -> VisionLanguageModel:
        """The model, as it sees now."""
        return cast(VisionLanguageModel, self.model)

    # What a language policy does, with open eyes -----------------------------------------------------------

    def sample(
        self,
        starts: Starts,
        options: LanguageSampling,
        *,
        seed: int,
        greedy: bool = False,
        ended: Callable[[Rollouts, list[int]], None] | None = None,
    ) -> Rollouts:
        """Write one completion per start, or play one episode in tasks of several turns."""
        with self.seeing():
            return super().sample(_with_images(starts), options, seed=seed, greedy=greedy, ended=ended)

    def replay(
        self,
        starts: Starts,
        actions: Sequence[Sequence[int]],
        options: LanguageSampling,
        *,
        logp: Sequence[Sequence[float]] | None = None,
    ) -> Rollouts:
        """Rollouts of given tokens, marked ``external``."""
        with self.seeing():
            return super().replay(_with_images(starts), actions, options, logp=logp)

    def branch(
        self, rollouts: Rollouts, rows: Sequence[int], at: Sequence[int], options: LanguageSampling, *, seed: int
    ) -> Rollouts:
        """Write completions that leave earlier ones, see ``branch_completions``."""
        with self.seeing(rollouts) as lifted:
            assert lifted is not None
            return super().branch(lifted, rows, at, options, seed=seed)

    def score(self, prefix: str, continuations: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Log-probability of each token of several continuations of one prefix, which is read once."""
        with self.seeing():
            return super().score(prefix, continuations)

    def states(self, rollouts: Rollouts) -> Tensor:
        """Last hidden states (M,D) from which the actions were chosen, row by row; differentiable."""
        with self.seeing(rollouts) as lifted:
            assert lifted is not None
            self._view.look()  # before anything is read in parts, which are read again for the gradient
            return super().states(lifted)

    def features(self, rollouts: Rollouts) -> Tensor:
        """Last hidden state (N,T,D) of the model once it has read each action, 0 off the mask."""
        with self.seeing(rollouts) as lifted:
            assert lifted is not None
            return super().features(lifted)

    def supervised_loss(self, problems: list[Problem], seed: int) -> Tensor:
        """Mean cross-entropy of the tokens of reference answers or demonstrations, end token included."""
        with self.seeing():
            return super().supervised_loss([replace(p, prompt=illustrated(p)) for p in problems], seed)

    # Texts and tokens --------------------------------------------------------------------------------------

    def encode_prompt(self, prompt: str) -> list[int]:
        """Token ids of the prompt, in a chat by its template; of one with images only inside ``seeing``."""
        pictures = pictures_of(prompt)
        if not self.chat:
            return self._numbers(_marked(prompt, self._sight.mark, pictures), pictures, special=True)
        said = [_message("system", self.system)] if self.system else []
        return self._numbers(self._templated([*said, _message("user", prompt)]), pictures)

    def encode_observation(self, text: str, ended: bool) -> list[int]:
        """Token ids of an observation, in a chat as the user's next message, with all that the template puts around."""
        pictures = pictures_of(text)
        if not self.chat:
            return self._numbers(_marked(text, self._sight.mark, pictures), pictures)
        end: Any = self.tokenizer.eos_token
        heard = observation_in_chat(text, ended, template=self._templated, message=_message, end=end)
        return self._numbers(heard, pictures)

    def _templated(self, messages: list[dict[str, Any]]) -> str:
        return self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def _numbers(self, text: str, pictures: Sequence[Picture], *, special: bool = False) -> list[int]:
        """Tokens of a text with the processor's marks, with the numbers of its images."""
        ids = self._sight.ids(text, pictures, special=special)
        if not pictures:
            return ids
        gallery = self._view.gallery
        if gallery is None:
            raise RecipeError(
                "a text with images is encoded where nothing sees them; do it inside 'with policy.seeing():'"
            )
        row = torch.tensor([ids])
        return gallery.hang(row, torch.ones_like(row, dtype=torch.bool), [pictures])[0].tolist()

    def as_rollouts(
        self,
        starts: Starts,
        prompts: Sequence[Sequence[int]],
        tokens: Tensor,
        mask: Tensor,
        logp: Tensor,
        options: LanguageSampling,
        *,
        payload: Mapping[str, Tensor] | None = None,
        **fields: Any,
    ) -> Rollouts:
        """A batch of completions, however they came about, with the images that they were given."""
        gallery = self._view.gallery
        assert gallery is not None
        rows = [[*prompt, *row] for prompt, row in zip(prompts, tokens.tolist(), strict=True)]
        pictures = [tuple(gallery.pictures[place] for place in gallery.seen(row)) for row in rows]
        plain = [[gallery.sight.image_token if x >= gallery.first else x for x in prompt] for prompt in prompts]
        more: dict[str, Any] = {**(payload or {}), "images": NonTensorStack(*pictures)} if pictures else {}
        return super().as_rollouts(
            starts, plain, gallery.taken_down(tokens), mask, logp, options, payload=more, **fields
        )

    def join_payloads(self, parts: Sequence[Rollouts]) -> TensorDict:
        """Prompts left-padded to the longest, what is attended to in them and in the completions, and the images."""
        joined = super().join_payloads(parts)
        if len(joined):
            joined["images"] = NonTensorStack(*[row for part in parts for row in _images(part)])
        return joined

    def save_pretrained(self, path: str) -> bool:
        """Write weights (or adapters) and processor in the Hugging Face format."""
        self.network.save_pretrained(path)
        self.processor.save_pretrained(path)
        return True


@register("policy", "image_text_to_text")
class ImageTextToText(VisionLanguagePolicy):
    """A pretrained Hugging Face image-text-to-text model, by path or id."""

    def __init__(
        self,
        task: Task,
        *,
        model: str,
        lora: int = 0,
        lora_alpha: float | None = None,
        lora_targets: str | list[str] = "all-linear",
        freeze_vision: bool = False,
        chat: bool | None = None,
        system: str = "",
        value_head: bool | Literal["soft_min"] = False,
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        """Load weights and processor.

        Args:
            model: a folder or a hub id.
            lora: rank of the adapters; 0 trains all weights.
            lora_alpha: scale of the adapters; twice the rank by default.
            lora_targets: module names that get adapters.
            freeze_vision: leave the vision tower as it is.
            chat: wrap prompts in the processor's chat template; by default if it has one.
            system: system message of the chat template.
            value_head: add a critic on the last hidden state, linear or ``soft_min`` (``SoftMinCritic``).
            dtype: type of the weights.
        """
        transformers.utils.logging.disable_progress_bar()
        try:
            network: Any = transformers.AutoModelForImageTextToText.from_pretrained(model, dtype=getattr(torch, dtype))
            processor: Any = transformers.AutoProcessor.from_pretrained(model)
        except (OSError, ValueError, ImportError) as error:
            raise RecipeError(f"policy 'image_text_to_text': cannot load model '{model}': {error}") from None
        tower = network.get_encoder(modality="image")
        if lora:
            network = with_lora(network, lora, lora_alpha, lora_targets)
        if freeze_vision:
            tower.requires_grad_(False)
        super().__init__(network, processor, chat=chat, system=system, value_head=value_head)


def _image_token(network: Any, processor: Any) -> int:
    """The token that the processor repeats where an image stands."""
    config = network.config
    known = (getattr(of, name, None) for of in (config, processor) for name in ("image_token_id", "image_token_index"))
    token = next((x for x in known if x is not None), None)
    if token is None:
        raise RecipeError(
            f"neither the configuration of '{type(network).__name__}' nor its processor names an image token "
            "('image_token_id'), so it can't be told where in a text an image stands; use another model"
        )
    return int(token)


def _with_images(starts: Starts) -> Starts:
    problems = [replace(problem, prompt=illustrated(problem)) for problem in starts.problems]
    return Starts(problems, starts.group, starts.version)


def _images(rollouts: Rollouts) -> list[tuple[Picture, ...]]:
    return rollouts.payload.get("images").tolist() if len(rollouts) else []  # type: ignore[union-attr]


def _lifted(gallery: Gallery, rollouts: Rollouts) -> Rollouts:
    """Rollouts with the numbers of their images."""
    assert rollouts.tokens is not None
    prompt, tokens = rollouts.payload["prompt_tokens"], rollouts.tokens
    free = torch.cat([torch.ones_like(prompt, dtype=torch.bool), ~rollouts.mask], dim=1)
    free &= rollouts.payload["attention"]
    ids = gallery.hang(torch.cat([prompt, tokens], dim=1), free, _images(rollouts))
    lifted, payload = rollouts.clone(recurse=False), rollouts.payload.clone(recurse=False)
    payload["prompt_tokens"], lifted.tokens = ids[:, : prompt.shape[1]], ids[:, prompt.shape[1] :]
    lifted.payload = payload
    return lifted


def _message(role: str, text: str) -> dict[str, Any]:
    """A message of a chat, cut at its images."""
    parts = _pieces(text)
    content: list[dict[str, str]] = []
    for place, part in enumerate(parts):
        content += [{"type": "image"}] if place else []
        content += [{"type": "text", "text": part}] if part or len(parts) == 1 else []
    return {"role": role, "content": content}


def _marked(text: str, mark: str, pictures: Sequence[Picture]) -> str:
    return mark.join(_pieces(text)) if pictures else str(text)


def _pieces(text: str) -> list[str]:
    """What stands between the images of a text; a plain text is one piece, whatever it says.

    Raises:
        RecipeError: for a plain text with a mark, whose image got lost.
    """
    if not pictures_of(text) and MARK in text:
        raise RecipeError(
            f"the text {text!r:.60} has the mark {MARK} and no image; a text with images is an Illustrated "
            "(guerdon.tasks.pictures), which stays one only in the trainer's process: set task.workers: 0"
        )
    return str(text).split(MARK)
