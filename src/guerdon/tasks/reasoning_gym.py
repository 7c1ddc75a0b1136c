"""Procedurally generated problems with their own verifiers, from the reasoning-gym library."""

from __future__ import annotations

import ast
import dataclasses
import functools
import os
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np

from guerdon.errors import RecipeError, TaskError, nearest
from guerdon.registry import register
from guerdon.seeding import derive, numpy_generator
from guerdon.tasks.base import Problem, Task

Extract = Literal["whole", "last_line", "tag"]

# Facts about the library that its interface does not tell; tests/tasks/test_reasoning_gym.py derives each again.
HASH_ORDERED = frozenset(
    {"isomorphic_strings", "knight_swap", "polynomial_multiplication", "ransom_note", "word_ladder"}
)
GLOBAL_RANDOM = frozenset({"list_functions", "pool_matrix"})
EVALUATES_LITERALS = frozenset({"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"})
EVALUATES_ALGEBRA = frozenset(
    {"countdown", "intermediate_integration", "polynomial_multiplication", "puzzle24", "simple_integration"}
)
IRREPRODUCIBLE = {"codeio": "runs programs that read the clock and the system's source of randomness"}
UNSOUND = {
    "coin_flip": "gives 1 to the answer '0' on most problems",
    "game_of_life_halting": "gives 1 to any answer that is not empty",
    "puzzle24": "does not check that the given numbers are used: '6*4*1*1' always scores 1",
}
_CACHED = 8192  # problems kept; a batch is drawn again when a run resumes, a small train_size is met every epoch


@register("task", "reasoning_gym", paper="Stojanovski et al. 2025, arXiv 2505.24760")
class ReasoningGym(Task):
    """Problems of one reasoning-gym dataset, scored by the dataset's own verifier.

    Problem i of the training pool is a pure function of ``seed`` and i. Held-out problems come from a seed of their
    own, and a training problem with the question of a held-out one is passed over, so the splits share no question.
    A problem's ``task_id`` is a hash of its question.

    Source: Stojanovski et al. 2025, arXiv 2505.24760.
    """

    kind = "language"
    supplies = frozenset({"answer"})

    def __init__(
        self,
        *,
        dataset: str,
        config: dict[str, Any] | None = None,
        seed: int = 0,
        train_size: int = 100_000,
        eval_size: int = 512,
        prompt: str = "{question}",
        strip: str | list[str] | None = None,
        extract: Extract = "whole",
        strict: bool = True,
    ) -> None:
        """Choose the dataset; problems are generated when first asked for.

        Args:
            dataset: name of a reasoning-gym dataset.
            config: the dataset's own options, except ``seed`` and ``size``.
            seed: which problems exist.
            train_size: problems in the training pool.
            eval_size: problems held out.
            prompt: template around ``{question}``.
            strip: boilerplate to take out of every question, after which white space around it goes too.
            extract: where the answer stands in what the policy wrote: the ``whole`` of it, the ``last_line`` that is
                not empty, or the last ``<answer>...</answer>`` (``tag``), without which the score is 0.
            strict: score 1 where the verifier gives full marks and 0 elsewhere; if false, the verifier's raw value,
                which may be partial credit for a wrong answer. Some verifiers (``spell_backward``, ``time_intervals``)
                give full marks to a right answer with more text behind it; the reward ``exact`` does not.

        Raises:
            RecipeError: unknown dataset or option, option out of range, template without ``{question}``.
            TaskError: the dataset's problems cannot be reproduced, or its verifier is unsound and ``strict`` is set.
        """
        config = dict(config or {})
        _check_names(dataset, config)
        if "{question}" not in prompt:
            raise RecipeError(f"task 'reasoning_gym': prompt {prompt!r} lacks '{{question}}'; add it")
        if train_size < 1 or eval_size < 0:
            raise RecipeError(
                f"task 'reasoning_gym': train_size is {train_size} and eval_size {eval_size}; "
                "want at least 1 and at least 0"
            )
        self._members = _members(dataset, config)
        self._refuse_unfit(strict)
        self._dataset, self._config, self._seed = dataset, config, seed
        self._train_size, self._eval_size = train_size, eval_size
        self._prompt, self._strict = prompt, strict
        self._extract: Extract = extract
        self._strip = [strip] if isinstance(strip, str) else list(strip or ())
        self._train = self._build("train", train_size)
        self._train_problem = functools.lru_cache(_CACHED)(functools.partial(self._problem, self._train))
        self._check_strip()
        self.scorer = self.score

    def train_batch(self, n: int, seed: int) -> list[Problem]:
        """Draw ``n`` training problems with different questions; a pure function of ``seed``.

        Raises:
            TaskError: when the pool holds fewer than ``n`` questions that are not held out.
        """
        limit = 10_000 + 100 * n
        indices = numpy_generator(seed, "reasoning_gym").integers(self._train_size, size=limit).tolist()
        batch: dict[int, Problem] = {}
        withheld: set[int] = set()
        for index in indices:
            if len(batch) == n:
                break
            problem = self._train_problem(index)
            if problem.task_id in self._held_out:
                withheld.add(problem.task_id)
            else:
                batch.setdefault(problem.task_id, problem)
        if len(batch) < n:
            raise TaskError(
                f"reasoning_gym '{self._dataset}': {limit} draws from {self._train_size} training problems gave "
                f"{len(batch)} different questions that are not held out (and {len(withheld)} that are), want {n}; "
                f"lower the batch, lower eval_size ({self._eval_size}), raise train_size, or widen 'config'"
            )
        return list(batch.values())

    def eval_problems(self, n: int) -> list[Problem]:
        """The first ``n`` held-out problems, always the same; no training problem has their questions.

        Raises:
            TaskError: when fewer than ``n`` are held out.
        """
        if n > self._eval_size:
            raise TaskError(
                f"reasoning_gym '{self._dataset}' holds out {self._eval_size} problems, want {n}; raise eval_size"
            )
        return list(self._held_out.values())[:n]

    def corpus(self) -> Iterable[str]:
        """Prompts and answers of training problems until as many again bring no further character.

        Of the held-out problems only the set of characters is given.
        """
        held_out = [text for problem in self._held_out.values() for text in _texts(problem)]
        seen = set().union(*held_out)
        yield "".join(sorted(seen))
        start, stop = 0, min(256, self._train_size)
        while start < stop:
            before = len(seen)
            for index in range(start, stop):
                problem = self._train_problem(index)
                if problem.task_id not in self._held_out:
                    yield from _texts(problem)
                    seen.update(*_texts(problem))
            done = start > 0 and len(seen) == before
            start, stop = stop, stop if done else min(2 * stop, self._train_size)

    def __getstate__(self) -> dict[str, Any]:
        """What a worker needs to score: all but the problems that were made so far."""
        return {key: value for key, value in self.__dict__.items() if key not in ("_train_problem", "_held_out")}

    def score(self, text: str, metadata: Mapping[str, Any]) -> float:
        """Score what the policy wrote by the dataset's verifier.

        An answer at which the verifier breaks is wrong, provided that it can score the reference answer.

        Args:
            text: what the policy wrote.
            metadata: the problem's entry, as the dataset generated it.

        Raises:
            Exception: whatever the verifier raises when it cannot score the reference answer either.
        """
        answer = _extract(text, self._extract)
        if answer is None or not self._harmless(answer, metadata):
            return 0.0
        entry = dict(metadata)
        try:
            value = float(self._train.score_answer(answer, entry))
        except Exception:
            self._train.score_answer(entry["answer"] or "", entry)
            return 0.0
        return float(value >= 1.0) if self._strict else value

    @functools.cached_property
    def _held_out(self) -> dict[int, Problem]:
        """Held-out problems by task_id, in the order of their generation."""
        limit = 1000 + 4 * self._eval_size
        source = self._build("eval", limit) if self._eval_size else None
        found: dict[int, Problem] = {}
        for index in range(limit):
            if len(found) == self._eval_size:
                break
            problem = self._problem(source, index)
            found.setdefault(problem.task_id, problem)
        if len(found) < self._eval_size:
            raise TaskError(
                f"reasoning_gym '{self._dataset}': {limit} draws gave {len(found)} different questions, too few to "
                f"hold out {self._eval_size} and train on others; lower eval_size (to {len(found) // 4}, say), or "
                "widen 'config'"
            )
        return found

    def _problem(self, source: Any, index: int) -> Problem:
        try:
            if self._members & GLOBAL_RANDOM:
                with _own_random_state(derive(source.seed, index)):
                    entry = source[index]
            else:
                entry = source[index]
        except Exception as error:
            raise TaskError(
                f"reasoning_gym '{self._dataset}' failed to generate problem {index}: {type(error).__name__}: {error}"
            ) from error
        question = entry["question"]
        for boilerplate in self._strip:
            question = question.replace(boilerplate, "")
        question = question.strip() if self._strip else question
        return Problem(
            task_id=derive(0, question),
            prompt=self._prompt.replace("{question}", question),
            answer=entry["answer"],
            metadata=entry,
        )

    def _build(self, split: str, size: int) -> Any:
        """Construct the library's dataset for one split."""
        import reasoning_gym
        from reasoning_gym.composite import DatasetSpec

        settings = dict(self._config)
        try:
            if self._dataset == "composite":
                settings["datasets"] = [DatasetSpec(**spec) for spec in settings["datasets"]]
            # Items are seeded by seed + index, and numpy's generator takes 32 bits.
            seed = derive(self._seed, "reasoning_gym", split) % 2**31
            return reasoning_gym.create_dataset(self._dataset, **settings, seed=seed, size=size)
        except Exception as error:
            raise RecipeError(
                f"reasoning_gym '{self._dataset}' refuses config {self._config} with {size} problems ({split}): "
                f"{type(error).__name__}: {error}; correct 'config', or lower train_size or eval_size"
            ) from error

    def _refuse_unfit(self, strict: bool) -> None:
        for name in sorted(self._members & IRREPRODUCIBLE.keys()):
            raise TaskError(
                f"reasoning_gym '{name}' {IRREPRODUCIBLE[name]} to make its problems, so no run could be resumed or "
                "repeated; choose another dataset"
            )
        ordered = sorted(self._members & HASH_ORDERED)
        if ordered and os.environ.get("PYTHONHASHSEED", "random") in ("", "random"):
            raise TaskError(
                f"reasoning_gym '{ordered[0]}' orders its problems by Python's string hash, which differs from process "
                "to process, so a resumed run would meet other problems; set PYTHONHASHSEED=0 in the environment"
            )
        unsound = sorted(self._members & UNSOUND.keys())
        if unsound and strict:
            raise TaskError(
                f"the verifier of reasoning_gym '{unsound[0]}' {UNSOUND[unsound[0]]}; choose another dataset, or set "
                "'strict: false' and name a reward of your own under 'rewards'"
            )

    def _check_strip(self) -> None:
        if not self._strip:
            return
        questions = [self._train_problem(index).metadata["question"] for index in range(min(8, self._train_size))]
        for boilerplate in self._strip:
            if not any(boilerplate in question for question in questions):
                raise TaskError(
                    f"reasoning_gym '{self._dataset}': strip {boilerplate!r} is in none of the first questions, such "
                    f"as {questions[0]!r:.200}; correct 'strip'"
                )

    def _harmless(self, answer: str, entry: Mapping[str, Any]) -> bool:
        """Whether an answer may be shown to a verifier that evaluates answers as Python expressions."""
        if answer == entry["answer"]:
            return True
        member = entry["metadata"]["source_dataset"] if self._dataset == "composite" else self._dataset
        if member in EVALUATES_LITERALS:
            return _is_literal(answer)
        return member not in EVALUATES_ALGEBRA or _is_algebra(answer)


def _check_names(dataset: str, config: Mapping[str, Any]) -> None:
    """Refuse a dataset or an option that the library does not know."""
    from reasoning_gym.factory import DATASETS

    if dataset not in DATASETS:
        raise RecipeError(f"reasoning_gym has no dataset '{dataset}'{nearest(dataset, DATASETS)}")
    known = {field.name for field in dataclasses.fields(DATASETS[dataset][1])} - {"seed", "size"}
    for key in config:
        if key in ("seed", "size"):
            instead = "the task's own 'seed'" if key == "seed" else "'train_size' and 'eval_size'"
            raise RecipeError(f"reasoning_gym '{dataset}': config sets '{key}'; use {instead} instead")
        if key not in known:
            raise RecipeError(f"reasoning_gym '{dataset}' has no option '{key}'{nearest(key, known)}")


def _members(dataset: str, config: Mapping[str, Any]) -> frozenset[str]:
    """Names of the datasets that problems come from: several for a composite."""
    if dataset != "composite":
        return frozenset({dataset})
    specs = config.get("datasets") or ()
    for spec in specs:
        if not isinstance(spec, dict) or spec.keys() != {"name", "weight", "config"}:
            raise RecipeError(f"reasoning_gym 'composite': datasets has {spec!r:.80}, want name, weight and config")
        _check_names(spec["name"], spec["config"])
    return frozenset(spec["name"] for spec in specs)


def _texts(problem: Problem) -> list[str]:
    return [problem.prompt] if problem.answer is None else [problem.prompt, str(problem.answer)]


def _extract(text: str, where: Extract) -> str | None:
    """The answer in what the policy wrote, or None when it is not where it should be."""
    if where == "tag":
        from reasoning_gym.utils import extract_answer

        return extract_answer(text)
    stripped = text.strip()
    return stripped.rpartition("\n")[2].strip() if where == "last_line" else stripped


@contextmanager
def _own_random_state(seed: int) -> Iterator[None]:
    """Seed Python's and numpy's global generators for a dataset that draws from them; restore them afterwards."""
    python, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)  # noqa: NPY002


def _parse(expression: str) -> ast.expr | None:
    try:
        return ast.parse(expression.lstrip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


_LITERAL = (ast.Constant, ast.List, ast.Tuple, ast.Set, ast.Dict, ast.UnaryOp, ast.unaryop, ast.expr_context)


def _is_literal(answer: str) -> bool:
    """Whether evaluating the answer gives a plain value, or is not possible at all."""
    tree = _parse(answer)
    return tree is None or all(isinstance(node, _LITERAL) for node in ast.walk(tree))


_TAME = frozenset("Abs acos acosh acot acsc asec asin asinh atan atanh cos cot csc ln log sec sin sqrt tan".split())
_GROWING = frozenset({"cosh", "exp", "sinh", "tanh"})
_MOST_WORK = 1000


def _is_algebra(answer: str) -> bool:
    """Whether the answer is arithmetic over numbers, names and elementary functions that is quick to evaluate."""
    tree = _parse(answer) if len(answer) <= _MOST_WORK else None
    try:
        return tree is not None and _work(tree) < _MOST_WORK
    except RecursionError:
        return False


def _work(node: ast.expr) -> float:
    """Product of the exponents along the steepest path, an exponential counting 100; infinite for anything else.

    It bounds the digits that a tower of powers can reach.
    """
    work = float("inf")
    match node:
        case ast.Constant(value=int() | float()) | ast.Name():
            work = 1
        case ast.UnaryOp(op=ast.UAdd() | ast.USub(), operand=operand):
            work = _work(operand)
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div(), right=right):
            work = max(_work(left), _work(right))
        case ast.BinOp(left=base, op=ast.Pow(), right=exponent):
            work = _work(base) * max(1.0, _exponent(exponent))
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in _TAME | _GROWING:
            work = _work(argument) * (100 if name in _GROWING else 1)
    return work


def _exponent(node: ast.expr) -> float:
    """Size of a constant exponent: an integer or a quotient of two, with a sign."""
    match node:
        case ast.UnaryOp(op=ast.UAdd() | ast.USub(), operand=operand):
            return _exponent(operand)
        case ast.Constant(value=int() as value):
            return float(min(value, _MOST_WORK))
        case ast.BinOp(left=ast.Constant(value=int() as value), op=ast.Div(), right=ast.Constant(value=int())):
            return float(min(value, _MOST_WORK))
    return float("inf")
