"""Problems from a file or a Hugging Face dataset, scored by any registered reward."""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from guerdon.errors import RecipeError, TaskError, nearest
from guerdon.registry import get, register
from guerdon.seeding import derive, numpy_generator
from guerdon.tasks.base import Problem, Task

Row = dict[str, Any]


@register("task", "dataset")
class Dataset(Task):
    """Prompts and reference answers from a table, split by the content of the prompt.

    Which prompts are held out depends on the prompts and ``seed`` only, not on the order of the rows, and no held-out
    prompt is trained on, however often it occurs. A problem's ``task_id`` is a hash of its prompt; the columns that
    are neither prompt nor answer are its metadata. Answers that are numbers become text.
    """

    kind = "language"
    supplies = frozenset({"answer"})

    def __init__(
        self,
        *,
        path: str,
        prompt: str = "prompt",
        answer: str | None = "answer",
        template: str = "{prompt}",
        subset: str | None = None,
        split: str | None = None,
        eval_path: str | None = None,
        eval_split: str | None = None,
        eval_fraction: float = 0.1,
        seed: int = 0,
        verifier: str = "exact",
        verifier_options: dict[str, Any] | None = None,
    ) -> None:
        """Read and split the table.

        Args:
            path: a ``.jsonl``, ``.json`` (list of objects), ``.parquet``, ``.csv`` or ``.tsv`` file, a folder written
                by ``datasets``' ``save_to_disk``, or the id of a dataset on the Hugging Face hub.
            prompt, answer: names of columns; answer null for a verifier that needs none.
            template: text around ``{prompt}``.
            subset, split: configuration and split of a Hugging Face dataset; split ``train`` by default.
            eval_path, eval_split: table of the held-out problems; ``path`` where only ``eval_split`` is given.
            eval_fraction: share of the different prompts that is held out where neither is given.
            seed: which prompts are held out.
            verifier: the registered reward that scores the task.
            verifier_options: its options.

        Raises:
            TaskError: file, column or rows missing or unusable.
            RecipeError: an option out of range, an unknown verifier or verifier option.
        """
        if "{prompt}" not in template:
            raise RecipeError(f"task 'dataset': template {template!r} lacks the place '{{prompt}}'; add it")
        if not 0 <= eval_fraction < 1:
            raise RecipeError(f"task 'dataset': eval_fraction is {eval_fraction}, want 0 or more and less than 1")
        self.scorer = _scorer(verifier, verifier_options or {}, answer)
        self._path, self._template = path, template
        self._prompt, self._answer = prompt, answer
        rows = self._problems(path, _read(path, subset, split))
        if eval_path is None and eval_split is None:
            held_out = _share(rows, eval_fraction, seed)
        else:
            source = eval_path or path
            held_out = self._problems(source, _read(source, subset, eval_split))
            shared = {p.task_id for p in rows} & {p.task_id for p in held_out}
            if shared:
                warnings.warn(
                    f"{len(shared)} prompts of dataset '{path}' are also in the held-out '{source}'; "
                    "they are left out of training",
                    stacklevel=2,
                )
        self._held_out = _different(held_out)
        self._train = [p for p in rows if p.task_id not in self._held_out]
        if not self._train:
            raise TaskError(
                f"dataset '{path}': the prompts of all {len(rows)} rows are held out, so none is left to train "
                "on; lower eval_fraction, or choose another eval_path"
            )

    def train_batch(self, n: int, seed: int) -> list[Problem]:
        """Draw ``n`` rows without replacement; a pure function of ``seed``.

        Raises:
            TaskError: when there are fewer than ``n``.
        """
        if n > len(self._train):
            raise TaskError(
                f"dataset '{self._path}' has {len(self._train)} training rows, want a batch of {n}; "
                "lower the batch or eval_fraction"
            )
        chosen = numpy_generator(seed, "dataset").choice(len(self._train), size=n, replace=False)
        return [self._train[i] for i in chosen]

    def eval_problems(self, n: int) -> list[Problem]:
        """The first ``n`` held-out problems, each prompt once, always the same.

        Raises:
            TaskError: when fewer than ``n`` are held out.
        """
        if n > len(self._held_out):
            raise TaskError(
                f"dataset '{self._path}' holds out {len(self._held_out)} prompts, want {n}; "
                "raise eval_fraction, or evaluate on fewer problems"
            )
        return list(self._held_out.values())[:n]

    def corpus(self) -> Iterable[str]:
        """All training prompts and answers; of the held-out ones only the set of characters."""
        yield "".join(sorted(set().union(*(text for problem in self._held_out.values() for text in _texts(problem)))))
        for problem in self._train:
            yield from _texts(problem)

    def _problems(self, source: str, rows: list[Row]) -> list[Problem]:
        """Check the rows of a table and turn them into problems."""
        if not rows:
            raise TaskError(f"dataset '{source}' has no rows; check the file or the split")
        wanted = [name for name in (self._prompt, self._answer) if name is not None]
        columns = dict.fromkeys(key for row in rows for key in row)
        for option, name in (("prompt", self._prompt), ("answer", self._answer)):
            if name is not None and name not in columns:
                raise TaskError(f"dataset '{source}' has no column '{name}' ({option}){nearest(name, columns)}")
        problems = []
        for number, row in enumerate(rows, start=1):
            for name in wanted:
                if row.get(name) is None or not str(row[name]).strip():
                    raise TaskError(f"dataset '{source}', row {number}: column '{name}' is empty; fill or drop the row")
            prompt = row[self._prompt]
            if not isinstance(prompt, str):
                raise TaskError(
                    f"dataset '{source}', row {number}: prompt column '{self._prompt}' is "
                    f"{type(prompt).__name__} {prompt!r:.80}, want text"
                )
            problems.append(
                Problem(
                    task_id=derive(0, prompt),
                    prompt=self._template.replace("{prompt}", prompt),
                    answer=None if self._answer is None else _plain(row[self._answer]),
                    metadata={key: value for key, value in row.items() if key not in wanted},
                )
            )
        return problems


def _scorer(verifier: str, options: dict[str, Any], answer: str | None) -> Callable[..., Any]:
    """The verifier with its options fixed."""
    method = get("reward", verifier)
    if answer is None and "answer" in method.requires:
        raise RecipeError(f"verifier '{verifier}' needs 'answer', but task 'dataset' has answer: null; name the column")
    return method.bind(options).call


def _plain(answer: Any) -> Any:
    """Numbers as text: 0.1 would lose digits where a batch of numbers becomes a tensor."""
    return str(answer) if isinstance(answer, int | float) else answer


def _texts(problem: Problem) -> list[str]:
    return [problem.prompt] if problem.answer is None else [problem.prompt, str(problem.answer)]


def _different(problems: Iterable[Problem]) -> dict[int, Problem]:
    """The first problem of each prompt, by task_id, in order."""
    first: dict[int, Problem] = {}
    for problem in problems:
        first.setdefault(problem.task_id, problem)
    return first


def _share(problems: list[Problem], fraction: float, seed: int) -> list[Problem]:
    """A share of the different prompts, in the order of a hash."""
    different = _different(problems).values()
    size = max(1, round(fraction * len(different))) if fraction else 0
    return sorted(different, key=lambda problem: derive(seed, "held out", problem.task_id))[:size]


def _read(path: str, subset: str | None, split: str | None) -> list[Row]:
    """Rows of a file, a saved dataset or a dataset on the hub."""
    file = Path(path).expanduser()
    reader = _READERS.get(file.suffix.lower())
    if file.is_dir() or (reader is None and not file.exists() and _is_hub_id(path)):
        return _read_hugging_face(path, file, subset, split)
    if not file.is_file():
        raise TaskError(f"dataset '{path}': no such file (looked in {file.absolute().parent})")
    if reader is None:
        raise TaskError(f"dataset '{path}': no reader for '{file.suffix}' files; use {', '.join(_READERS)}")
    if subset is not None or split is not None:
        raise TaskError(f"dataset '{path}' is a file, which has no subset or split; remove them, or use eval_path")
    try:
        return reader(file)
    except (OSError, ValueError) as error:
        raise TaskError(f"dataset '{path}' cannot be read: {error}") from error


def _is_hub_id(path: str) -> bool:
    return path.count("/") <= 1 and path[:1] not in "./~" and "\\" not in path


def _read_hugging_face(path: str, folder: Path, subset: str | None, split: str | None) -> list[Row]:
    try:
        import datasets
    except ImportError:
        raise TaskError(
            f"dataset '{path}' is a Hugging Face dataset, which needs the package 'datasets': "
            "pip install 'guerdon[datasets]'"
        ) from None
    try:
        if folder.is_dir():
            found = datasets.load_from_disk(str(folder))
        else:
            found = datasets.load_dataset(path, subset)
    except Exception as error:
        raise TaskError(f"dataset '{path}' cannot be loaded: {type(error).__name__}: {error}") from error
    if isinstance(found, dict):
        name = split or "train"
        if name not in found:
            raise TaskError(f"dataset '{path}' has no split '{name}'{nearest(name, map(str, found))}")
        found = found[name]
    elif split is not None:
        raise TaskError(f"dataset '{path}' was saved as one split; remove split '{split}'")
    return [dict(row) for row in found]


def _read_jsonl(file: Path) -> list[Row]:
    rows = []
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number} is not JSON: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is {type(row).__name__} {row!r:.60}, want an object")
            rows.append(row)
    return rows


def _read_json(file: Path) -> list[Row]:
    rows = json.loads(file.read_text(encoding="utf-8-sig"))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("it does not hold a list of objects; write one object per line to a .jsonl file instead")
    return rows


def _read_parquet(file: Path) -> list[Row]:
    from pyarrow import parquet

    return parquet.read_table(file).to_pylist()


def _read_table(file: Path, delimiter: str) -> list[Row]:
    """Rows of delimited text; every value stays text, so that ``007`` keeps its zeros."""
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, delimiter=delimiter, strict=True)
        try:
            rows = list(reader)
        except csv.Error as error:
            raise ValueError(f"line {reader.line_num}: {error}") from None
    for number, row in enumerate(rows, start=1):
        if None in row:
            raise ValueError(f"row {number} has more fields than the header names ({len(row) - 1})")
    return rows


def _read_csv(file: Path) -> list[Row]:
    return _read_table(file, ",")


def _read_tsv(file: Path) -> list[Row]:
    return _read_table(file, "\t")


_READERS: dict[str, Callable[[Path], list[Row]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
}
