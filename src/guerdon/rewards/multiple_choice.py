"""The verifier of multiple choice: which option did a text choose, if it chose one?"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from guerdon.errors import RewardError
from guerdon.rewards.extract import marked_answer
from guerdon.rewards.forms import Score, reward
from guerdon.rewards.verifiable import _normal

_READ = 4000  # characters at the end of a text that are read


def _distinct(labels: str) -> str:
    if len(set(labels.casefold())) < len(labels):
        raise ValueError("labels must differ by more than case")
    return labels


Labels = Annotated[str, Field(pattern="^[A-Za-z0-9]{2,36}$"), AfterValidator(_distinct)]


@reward()
def choice(
    text: str,
    answer: Any,
    metadata: Any = None,
    *,
    labels: Labels = "ABCDEFGHIJ",
    choices: str = "choices",
    answer_is: Literal["label", "index"] = "label",
) -> Score:
    """Give 1 where the text chooses the right option of a multiple-choice question.

    What counts is the last of: a statement (``the answer is B``, ``Answer: (b)``, ``\\boxed{B}``, ``I choose B``,
    ``B is correct``), else a label alone on the last or first line (``**B**``, ``(B)``), else a line that begins with
    the only label that begins any line (``B) Paris``), else the text of one option, all of the last line. Inside
    ``<answer>...</answer>``, if that is there, nothing outside of it counts. A statement that names several options
    (``A or B``, ``A, C``) chooses none, and neither does a negated one. In running text ``A`` and ``I`` are words.

    Args:
        text: what the policy wrote; its last 4000 characters are read.
        answer: the label, with or without brackets; or the text of an option that the metadata lists.
        metadata: what the task knows of the problem.
        labels: labels of the options, one character each, in order; upper and lower case are the same.
        choices: key in the metadata of the options' texts, where the task tells them: a list in the order of the
            labels, a mapping from label to text, or a mapping of two lists, ``label`` and ``text``.
        answer_is: whether a reference that is a number is a label or the index of an option, counted from 0.

    Returns:
        1.0 or 0.0; the detail holds the label ``chosen`` (None for none), the one ``wanted``, and if need be ``why``.

    Raises:
        RewardError: when the reference names none of the options, or the metadata's options cannot be used.
    """
    options = _options(metadata.get(choices) if isinstance(metadata, Mapping) else None, labels)
    wanted = _wanted(answer, options, answer_is)
    marked = marked_answer(text[-_READ:])
    chosen = _Reader(options).read(text[-_READ:] if marked is None else marked)
    detail = {"chosen": chosen.label, "wanted": wanted} | ({"why": chosen.why} if chosen.why else {})
    return Score(float(chosen.label == wanted), detail=detail)


def _options(given: Any, labels: str) -> dict[str, str]:
    """Text of each option by its label; empty where it is not known."""
    if given is None:
        return dict.fromkeys(labels, "")
    if isinstance(given, Mapping) and {"label", "text"} <= given.keys():
        given = dict(zip(given["label"], given["text"], strict=False))
    if isinstance(given, Mapping):
        options = {str(label): str(text) for label, text in given.items()}
    elif isinstance(given, Sequence) and not isinstance(given, str) and len(given) <= len(labels):
        options = {label: str(text) for label, text in zip(labels, given, strict=False)}
    else:
        options = {}
    if len(options) < 2 or any(re.fullmatch("[A-Za-z0-9]", label) is None for label in options):
        raise RewardError(
            f"reward 'choice': the options are {given!r:.80}, want 2 to {len(labels)} texts, or a mapping from labels "
            "of one letter or digit; fix the task's metadata, or give more 'labels'"
        )
    return options


def _wanted(answer: Any, options: Mapping[str, str], answer_is: str) -> str:
    """The label that a reference names."""
    given = str(answer).strip() if isinstance(answer, str | int) else ""
    if answer_is == "index":
        if re.fullmatch("[0-9]{1,2}", given) and int(given) < len(options):
            return list(options)[int(given)]
    else:
        bare = re.fullmatch(r"[(\[]?(\w)[)\].:]*", given)
        named = [label for label in options if bare and label.casefold() == bare[1].casefold()]
        named = named or [label for label, text in options.items() if text and _normal(text) == _normal(given)]
        if len(named) == 1:
            return named[0]
    raise RewardError(
        f"reward 'choice': the reference answer is {answer!r:.60}, want "
        f"{'an index below ' + str(len(options)) if answer_is == 'index' else 'one of ' + ', '.join(options)}; fix the "
        "task's answers, or set 'labels' or 'answer_is'"
    )


@dataclass(frozen=True)
class _Choice:
    label: str | None = None
    why: str = ""


_SEVERAL = "names several options"
_CUE = (
    r"(?:(?i:\b(?:answer|option|choice|letter)\b[*_]*(?:\s+to\s+[^.:\n]{0,80}?)?\s*"
    r"(?:(?:\b(?:is|would\s+be|should\s+be|must\s+be)\b|:|=|→)[\s*_]*)++"
    r"|\b(?:choose|chose|select|pick|go\s+with|it['’]s|it\s+is)\b)|####|(?=\\boxed\{))"
)
_LEAD = r"(?:[\s*_`\"'“‘$(\[{:]|\\(?:boxed|text|textbf|mathrm|mathbf)(?=\{)|(?i:(?:the|option|choice|letter)\b))*+"
_NEGATION = re.compile(r"(?i)(?:not|n['’]t|never|neither|nor)\s*$")
_CLOSING = re.compile(r"[)\]}*_`\"'”’$]*+")
_JOIN = re.compile(r"[.\s]*(?:[,/&+;|]|(?:and|or)\b)\s*(?:(?:and|or)\b)?", re.IGNORECASE)
_AFTER_A_LABEL = re.compile(r"\s*(?:because|since|as|for|due|and|or|which|is|with|given|so)\b|\s*[^\w\s]|\s*\n|\s*$")
_CONTINUES = re.compile(r" +\w")


class _Reader:
    """Reads which of some options a text chooses."""

    def __init__(self, options: Mapping[str, str]) -> None:
        self._options = options
        self._label = {label.casefold(): label for label in options}
        either = "".join(sorted(set(self._label) | {label.upper() for label in self._label}))
        self._at = re.compile(rf"{_LEAD}(?P<label>[{either}])(?![\w'’]|[.,]\d)")
        self._cue = re.compile(
            rf"{_CUE}|(?<!\w)(?P<named>[{either}])[)\]*]*\s+is\s+(?:the\s+)?(?:correct|right|best)\b"
        )
        self._line = re.compile(rf"[*_\s]*[(\[]?(?P<label>[{either}])[*_]*[)\].:][*_]*\s+\S")

    def read(self, text: str) -> _Choice:
        for find in (self._stated, self._alone, self._beginning, self._spelt):
            found = find(text)
            if found is not None:
                return found
        return _Choice(why="chooses no option" if text.strip() else "the text is empty")

    def _stated(self, text: str) -> _Choice | None:
        """The choice of the last statement."""
        for cue in reversed(list(self._cue.finditer(text))):
            if _NEGATION.search(text, max(0, cue.start() - 12), cue.start()):
                continue
            if cue["named"]:
                if cue["named"] in self._options:
                    return _Choice(cue["named"])
                continue
            found = self._named(text, cue.end()) or self._spelt(text[cue.end() :].lstrip().partition("\n")[0])
            if found is not None:
                return found
        return None

    def _named(self, text: str, start: int) -> _Choice | None:
        """The label at a place of running text, unless others are joined to it."""
        first = self._label_at(text, start)
        if first is None:
            return None
        label, end = first
        joined = _JOIN.match(text, end)
        while joined is not None:
            other = self._label_at(text, joined.end())
            if other is None:
                break
            if other[0] != label:
                return _Choice(why=_SEVERAL)
            joined = _JOIN.match(text, other[1])
        return _Choice(label)

    def _label_at(self, text: str, start: int) -> tuple[str, int] | None:
        """A label at a place, and where it ends; a word that looks like one is none."""
        match = self._at.match(text, start)
        if match is None:
            return None
        label = self._label[match["label"].casefold()]
        end = _CLOSING.match(text, match.end()).end()  # type: ignore[union-attr]  # matches nothing at worst
        bare = end == match.end()
        if bare and match["label"].isalpha():
            word = match["label"] in "AI" and _AFTER_A_LABEL.match(text, end) is None
            lower = match["label"] not in self._options and _CONTINUES.match(text, end) is not None
            if word or lower:
                return None
        return label, end

    def _alone(self, text: str) -> _Choice | None:
        """A label that is all of the last line, or of the first."""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        for line in (*lines[-1:], *lines[:1]):
            found = self._at.match(line)
            if found is None:
                continue
            words = {word.casefold() for word in re.findall(r"[^\W_]+", line[found.start("label") :])}
            if len(words) == 1:
                return _Choice(self._label[found["label"].casefold()])
            if words <= {*self._label, "and", "or"}:
                return _Choice(why=_SEVERAL)
        return None

    def _beginning(self, text: str) -> _Choice | None:
        """The label with which the first or last line begins, if no line begins with another one."""
        lines = [line for line in text.splitlines() if line.strip()]
        labels = [self._line.match(line) for line in lines]
        seen = {self._label[match["label"].casefold()] for match in labels if match}
        if len(seen) > 1:
            return _Choice(why=_SEVERAL)
        return _Choice(seen.pop()) if seen and (labels[0] or labels[-1]) else None

    def _spelt(self, text: str) -> _Choice | None:
        """The option whose text is all of the last line."""
        last = next((line for line in reversed(text.splitlines()) if line.strip()), "")
        wanted = _normal(last.strip().strip("*"))
        same = [label for label, option in self._options.items() if option and _normal(option) == wanted]
        return _Choice(same[0]) if len(same) == 1 else None
