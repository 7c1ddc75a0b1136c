"""Modules that solve a mathematical problem together: each reads one shared text and extends it."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from guerdon.errors import RecipeError, nearest
from guerdon.rewards.code import python_code
from guerdon.sandbox import Limits, Outcome, run_python
from guerdon.tasks.agents import Passage, bm25
from guerdon.tasks.symbolic import solve_by_sympy
from guerdon.tasks.tools import Tool

MODULES = ("KR", "BS", "WA", "PG", "SG")
SETTINGS = (
    *("SG", "PG+SG", "KR+SG", "WA+SG", "BS+SG"),
    *("KR+PG+SG", "KR+WA+SG", "WA+PG+SG", "PG+WA+SG", "BS+PG+SG", "PG+BS+SG", "BS+WA+SG", "WA+BS+SG"),
    "BS+PG+WA+SG",
)

_TOKEN = re.compile(r"\w+|[^\w\s]")
_ANSWER = re.compile(r"\\boxed\{|<answer>.*</answer>|\banswer is\b", re.IGNORECASE | re.DOTALL)
_LIST = re.compile(r"\[([^\[\]]*)\]")


class Write(Protocol):
    """Who writes for the modules: a language model, or a script that stands in for one."""

    def __call__(self, prompt: str, /, *, max_tokens: int, temperature: float) -> str:
        """Continue a prompt."""
        ...


@dataclass
class SharedText:
    """The text that modules read and extend, and what it has cost.

    Attributes:
        question: the problem.
        subject, level: what it is about and how hard, which the text begins with.
        added: names of modules and what they gave, in order.
        calls: how often each module asked for a text; a retry is one more.
        runs: how often each module used its tool: a program, a search, a solver.
        failures: names of modules and why they gave nothing.
    """

    question: str
    subject: str = ""
    level: str = ""
    added: list[tuple[str, str]] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    runs: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, str]] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Subject and level, the problem, and ``NAME: OUTPUT`` of each module."""
        head = [f"{name}: {value}" for name, value in (("Subject", self.subject), ("Level", self.level)) if value]
        return "\n".join([*head, f"Problem: {self.question}", *(f"{name}: {said}" for name, said in self.added)])

    @property
    def solution(self) -> str:
        """What the answer writer gave last; empty before."""
        return next((said for name, said in reversed(self.added) if name == "SG"), "")

    def add(self, name: str, said: str, max_tokens: int) -> bool:
        """Extend the text by what a module gave, cut to its budget; False, and no change, where it gave nothing."""
        kept = first_tokens(said.strip(), max_tokens)
        if kept:
            self.added.append((name, kept))
        return bool(kept)

    def ask(self, name: str, write: Write, prompt: str, *, max_tokens: int, temperature: float) -> str:
        """Have a module's text written and count it; a failure is noted and gives an empty text."""
        self.calls[name] += 1
        try:
            said = write(f"{prompt}\n\n{self.text}\n{name}:", max_tokens=max_tokens, temperature=temperature)
        except Exception as error:
            return self.failed(name, f"{type(error).__name__}: {error}")
        return first_tokens(said.strip(), max_tokens)

    def failed(self, name: str, why: str) -> str:
        """Note why a module gave nothing; gives the empty text."""
        self.failures.append((name, why))
        return ""


def first_tokens(text: str, count: int) -> str:
    """The beginning of a text that has at most ``count`` tokens: words, numbers and single signs.

    The writer counts in tokens of its own and is told the budget; this holds it to the budget whatever it counts in.
    """
    for number, match in enumerate(_TOKEN.finditer(text)):
        if number == count:
            return text[: match.start()].rstrip()
    return text


class Module(Protocol):
    """A step of a setting: reads the shared text and extends it, or leaves it as it is."""

    name: ClassVar[str]

    def __call__(self, context: SharedText) -> None:
        """Do the step; never raises."""
        ...


@dataclass(frozen=True)
class KnowledgeRetrieval:
    """KR: recalls what helps with the problem, in one text.

    Args:
        write: who recalls: a model, or ``recall_by_bm25``.
        max_tokens, temperature: of the text.
    """

    name: ClassVar[str] = "KR"
    write: Write
    max_tokens: int = 512
    temperature: float = 0.5

    def __call__(self, context: SharedText) -> None:
        """Append what is recalled."""
        prompt = "Recall the theorems, formulas and facts that the problem needs."
        said = context.ask(self.name, self.write, prompt, max_tokens=self.max_tokens, temperature=self.temperature)
        context.add(self.name, said, self.max_tokens)


@dataclass(frozen=True)
class WebSearch:
    """BS: two searches, for the problem itself and for its concepts; what is useful of each is appended.

    Args:
        write: writes the query about concepts and extracts what is useful.
        search: texts that a query finds, best first, given how many; ``search_by_bm25`` is one.
        top: texts of a search.
        max_tokens, temperature: of each text.
    """

    name: ClassVar[str] = "BS"
    write: Write
    search: Callable[[str, int], Sequence[str]]
    top: int = 5
    max_tokens: int = 512
    temperature: float = 0.5

    def __call__(self, context: SharedText) -> None:
        """Append the facts of both searches."""
        terms = {"max_tokens": self.max_tokens, "temperature": self.temperature}
        query = "Write a search query for the concepts that the problem needs."
        concepts = context.ask(self.name, self.write, query, **terms)
        facts = []
        for asked in (context.question, concepts):
            found = self._found(context, asked)
            if found:
                prompt = f"Extract the facts that help with the problem.\nResults:\n{found}"
                facts.append(context.ask(self.name, self.write, prompt, **terms))
        context.add(self.name, "\n".join(filter(None, facts)), 2 * self.max_tokens)

    def _found(self, context: SharedText, query: str) -> str:
        if not query:
            return ""
        context.runs[self.name] += 1
        try:
            return "\n".join(self.search(query, self.top))
        except Exception as error:
            return context.failed(self.name, f"{type(error).__name__}: {error}")


@dataclass(frozen=True)
class SymbolicSolver:
    """WA: a query is written, and what a symbolic solver says to it is appended.

    Args:
        write: writes the query.
        solve: text to a query; ``solve_by_sympy`` by default.
        max_tokens, temperature: of the query, and of what is appended.
    """

    name: ClassVar[str] = "WA"
    write: Write
    solve: Callable[[str], str] | None = None
    max_tokens: int = 600
    temperature: float = 0.5

    def __call__(self, context: SharedText) -> None:
        """Append what the solver says."""
        prompt = "Write an expression or equation for a symbolic solver; separate several by semicolons."
        query = context.ask(self.name, self.write, prompt, max_tokens=self.max_tokens, temperature=self.temperature)
        if not query:
            return
        context.runs[self.name] += 1
        try:
            said = (self.solve or solve_by_sympy)(query)
        except Exception as error:
            said = context.failed(self.name, f"{type(error).__name__}: {error}")
        context.add(self.name, said, self.max_tokens)


@dataclass(frozen=True)
class ProgramGeneration:
    """PG: a Python program is written and run in the sandbox; it is appended with what it printed.

    A program that fails or prints nothing adds nothing. With ``tries`` above 1 a fixer sees it with its error first,
    and writes it anew. (The release runs programs in a namespace that they share, after decoding escapes in their
    source, so that variables leak from one problem to the next and backslashes change. Here each has a process.)

    Args:
        write: writes the program.
        fix: writes it anew; ``write`` by default.
        run: runs one; in the strongest sandbox that works here by default.
        tries: most runs; 3 is the refining variant of the release.
        max_tokens, temperature: of the program.
        fix_tokens, fix_temperature: of one that is written anew.
        wall_time: seconds of a run.
    """

    name: ClassVar[str] = "PG"
    write: Write
    fix: Write | None = None
    run: Callable[[str], Outcome] | None = None
    tries: int = 1
    max_tokens: int = 256
    temperature: float = 0.5
    fix_tokens: int = 500
    fix_temperature: float = 0.7
    wall_time: float = 10.0

    def __call__(self, context: SharedText) -> None:
        """Append program and output."""
        prompt, write = "Write a Python program that prints the answer.", self.write
        budget, temperature = self.max_tokens, self.temperature
        for _ in range(self.tries):
            said = context.ask(self.name, write, prompt, max_tokens=budget, temperature=temperature)
            code, why = python_code(said), "nothing was written"
            if code.strip():
                context.runs[self.name] += 1
                output, why = self._output(code)
                if output:
                    said = first_tokens(output, self.max_tokens)
                    context.add(self.name, f"{code.strip()}\nOutput: {said}", budget + self.max_tokens + 2)
                    return
            context.failed(self.name, why)
            prompt = f"The program failed. Write it anew, corrected.\nProgram:\n{code}\nError: {why}"
            write, budget, temperature = self.fix or self.write, self.fix_tokens, self.fix_temperature

    def _output(self, code: str) -> tuple[str, str]:
        """What a program printed, or nothing and why."""
        try:
            run = self.run or functools.partial(run_python, limits=Limits(wall_time=self.wall_time))
            outcome = run(code)
        except Exception as error:
            return "", f"{type(error).__name__}: {error}"
        if not outcome.ok:
            return "", f"{outcome.status}: {outcome.stderr.strip()[-500:]}"
        return outcome.stdout.strip(), "the program printed nothing"


@dataclass(frozen=True)
class SolutionGeneration:
    """SG: the answer is written from all that stands in the text, anew until it has the form of an answer.

    Args:
        write: writes it.
        tries: most texts; the last stays if none has the form.
        pattern: what an answer looks like: boxed, tagged, or ``the answer is`` by default.
        max_tokens, temperature: of the answer.
    """

    name: ClassVar[str] = "SG"
    write: Write
    tries: int = 4
    pattern: re.Pattern[str] = _ANSWER
    max_tokens: int = 600
    temperature: float = 0.5

    def __call__(self, context: SharedText) -> None:
        """Append the answer."""
        prompt, said = "Solve the problem with what is known. End with \\boxed{ANSWER}.", ""
        for _ in range(self.tries):
            new = context.ask(self.name, self.write, prompt, max_tokens=self.max_tokens, temperature=self.temperature)
            said = new or said
            if self.pattern.search(new):
                break
        context.add(self.name, said, self.max_tokens)


def parse_setting(setting: str, known: Sequence[str] = MODULES) -> list[str]:
    """The modules of a setting such as ``KR+PG+SG``.

    Raises:
        RecipeError: when one is not known, or the last is not SG, which writes the answer.
    """
    names = setting.split("+")
    for name in names:
        if name not in known:
            raise RecipeError(f"setting '{setting}' has no module '{name}'{nearest(name, known)}")
    if names[-1] != "SG":
        raise RecipeError(f"setting '{setting}' ends in '{names[-1]}', want 'SG', which writes the answer")
    return names


def run_modules(context: SharedText, names: Sequence[str], modules: Mapping[str, Module]) -> None:
    """Run modules one after the other over one text, so that the later ones read what the earlier ones gave."""
    for name in names:
        modules[name](context)


def plan_modules(
    context: SharedText,
    write: Write,
    known: Sequence[str] = MODULES,
    *,
    examples: Sequence[tuple[str, Sequence[str]]] = (),
    max_tokens: int = 128,
) -> list[str]:
    """Have the modules chosen before solving, by few examples and at temperature 0.

    Args:
        context: the problem; the plan counts as a call of ``plan``.
        write: who plans.
        known: names of the modules.
        examples: problems with their lists.
        max_tokens: of the plan.

    Returns:
        The first list ``[NAME, ..., SG]`` in the plan; ``[SG]`` where there is none, or it names an unknown module,
        or does not end in SG.

    Source: Das et al. 2024, arXiv 2402.17231 (MathSensei).
    """
    shown = "\n".join(f"Problem: {question}\nplan: [{', '.join(names)}]" for question, names in examples)
    prompt = f"List the modules that solve the problem, of {', '.join(known)}; the last is SG.\n{shown}".strip()
    found = _LIST.search(context.ask("plan", write, prompt, max_tokens=max_tokens, temperature=0.0))
    names = [name.strip(" \"'") for name in found[1].split(",")] if found else []
    return names if names and names[-1] == "SG" and set(names) <= set(known) else ["SG"]


def react(
    context: SharedText,
    modules: Mapping[str, Module],
    write: Write,
    *,
    most: int = 6,
    max_tokens: int = 128,
    temperature: float = 0.0,
) -> list[str]:
    """Choose the next module from the text at each step, until SG has written the answer.

    Args:
        context: the problem; each choice counts as a call of ``react``.
        modules: by name.
        write: who chooses: the first name in its text counts, and SG where there is none.
        most: modules, of which the last is SG.
        max_tokens, temperature: of a choice.

    Returns:
        The names in the order in which they ran.

    Source: Das et al. 2024 (MathSensei), after Yao et al. 2023, arXiv 2210.03629 (ReAct).
    """
    named = re.compile(rf"\b({'|'.join(map(re.escape, modules))})\b")
    done: list[str] = []
    while not done or done[-1] != "SG":
        chosen = "SG"
        if len(done) + 1 < most:
            prompt = f"Choose the next module, one of {', '.join(modules)}; SG writes the answer and ends."
            found = named.search(context.ask("react", write, prompt, max_tokens=max_tokens, temperature=temperature))
            chosen = found[1] if found else "SG"
        modules[chosen](context)
        done.append(chosen)
    return done


def module_tools(modules: Mapping[str, Module], context: SharedText) -> list[Tool]:
    """Modules over one text as functions without arguments, for a ``Toolbox``: each says what it has appended."""

    def as_tool(name: str, module: Module) -> Tool:
        def run() -> str:
            before = len(context.added)
            module(context)
            return "\n".join(said for _, said in context.added[before:]) or "no output"

        run.__name__ = name
        run.__doc__ = (type(module).__doc__ or name).partition("\n")[0]
        return run

    return [as_tool(name, module) for name, module in modules.items()]


def recall_by_bm25(passages: Sequence[Passage], top: int = 3) -> Write:
    """A writer for KR that recalls the passages nearest to the problem by BM25."""

    def write(prompt: str, /, *, max_tokens: int, temperature: float) -> str:
        _, _, text = prompt.partition("Problem: ")
        return " ".join(bm25(passages, text, top))

    return write


def search_by_bm25(passages: Sequence[Passage]) -> Callable[[str, int], list[str]]:
    """A search for BS over passages at hand."""
    return lambda query, top: bm25(passages, query, top)
