"""Questions put in many ways: a pool of templates, of which one is drawn every time a question is."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from guerdon import registry
from guerdon.errors import RecipeError, nearest
from guerdon.registry import register
from guerdon.rewards.extract import marked_answer
from guerdon.rewards.forms import form_of
from guerdon.rewards.template_format import MARKS, share_once
from guerdon.seeding import torch_generator
from guerdon.tasks.base import Problem, Task
from guerdon.tasks.environments import EnvironmentTask

Where = Literal["whole", "last_line", "boxed", "tag", "phrase"]

PHRASE = "The final answer is:"


@dataclass(frozen=True)
class Template:
    """One way to put a question: what stands around it, what form it asks for, and where the answer stands then.

    Attributes:
        name: identifies it, in the metadata of problems and in recipes.
        text: with ``{question}``.
        marks: what must stand in the completion exactly once, each.
        opened: what the prompt ends with as if the policy had begun with it; it is no part of the completion.
        answer: where the answer stands: ``whole`` of it, its ``last_line``, the last ``\\boxed{...}``, the last
            ``<answer>`` (``tag``), or after the last of the marks (``phrase``).
    """

    name: str
    text: str
    marks: tuple[str, ...] = ()
    opened: str = ""
    answer: Where = "whole"

    def __post_init__(self) -> None:
        if "{question}" not in self.text:
            raise RecipeError(f"template '{self.name}': {self.text!r:.60} lacks the place '{{question}}'; add it")
        if self.answer not in get_args(Where):
            raise RecipeError(
                f"template '{self.name}': answer is {self.answer!r}{nearest(self.answer, get_args(Where))}"
            )
        if self.answer == "phrase" and not self.marks:
            raise RecipeError(f"template '{self.name}' has its answer after a phrase; give the phrase under 'marks'")

    def render(self, question: str) -> str:
        """The prompt."""
        return self.text.replace("{question}", question) + self.opened

    def format_reward(self, text: str) -> float:
        """Share of the marks that stand in a completion exactly once; 1 where none is asked for.

        What the prompt opened already is not among the marks, and is not counted.

        Source: Lu et al. 2026, arXiv 2602.03190, and its code.
        """
        return share_once(text, self.marks)

    def extract(self, text: str) -> str:
        """The answer in a completion, after what the prompt opened; empty where it is not in its place."""
        whole = self.opened + text
        if self.answer == "tag":
            found = marked_answer(whole)
        elif self.answer == "boxed":
            found = _boxed(whole)
        elif self.answer == "phrase":
            found = whole.rpartition(self.marks[-1])[2] if self.marks[-1] in whole else None
        else:
            found = whole if self.answer == "whole" else whole.strip().rpartition("\n")[2]
        return (found or "").strip()

    def demonstrate(self, answer: str) -> str:
        """A completion in the form that is asked for, with nothing in it but the answer."""
        if self.answer == "tag" and self.marks:
            before = "".join(mark for mark in self.marks if "answer" not in mark)
            return f"{before}<answer>{answer}</answer>"
        parts = "".join(self.marks)
        return parts + (f"\\boxed{{{answer}}}" if self.answer == "boxed" else answer)


def _boxed(text: str) -> str | None:
    r"""What stands in the last ``\boxed{...}``, braces inside of it in pairs."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for match in re.compile(r"[{}]").finditer(text, start):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return text[start + len("\\boxed{") : match.start()]
    return None


def _tagged(name: str, before: str, tags: Sequence[str], gap: str, **more: Any) -> list[Template]:
    """A template that asks for tags, and the same with the first of them opened."""
    marks = tuple(mark for tag in tags for mark in (f"<{tag}>", f"</{tag}>"))
    form = gap.join(f"<{tag}>{gap}...{gap}</{tag}>" for tag in tags)
    text = f"{before.format(form=form)}\n\nQuestion: {{question}}\n"
    first = marks[0] + gap
    return [
        Template(name, text, marks, **more),
        Template(f"{name}_opened", text, marks[1:], opened=first, **more),
    ]


_THINK = "Reason inside of think tags, then give the answer inside of answer tags, in this form: {form}"
_CHECK = "Solve the problem, check the solution, and put the answer in \\boxed{{}} at the end, in this form: {form}"
_STEPS = " Put the answer in \\boxed{}."

# The styles are those of the source's thirteen templates; the words are ours.
TEMPLATES: tuple[Template, ...] = (
    Template("steps", "{question}\nThink step by step." + _STEPS + "\n", answer="boxed"),
    Template("steps_first", "Work through the following step by step." + _STEPS + "\n\n{question}\n", answer="boxed"),
    Template("steps_dialogue", "User: {question} Show each step." + _STEPS + "\nAssistant:", answer="boxed"),
    *_tagged("think", _THINK, ("think", "answer"), "", answer="tag"),
    *_tagged("think_lines", _THINK, ("think", "answer"), "\n", answer="tag"),
    Template(
        "formal",
        "Derive the answer formally: state what is given, justify each conclusion by the ones before it."
        + _STEPS
        + "\n\nProblem: {question}\nDerivation:",
        answer="boxed",
    ),
    Template("harness", "Problem:\n{question}\n\nSolution:" + _STEPS + "\n", answer="boxed"),
    Template(
        "harness_ending",
        f'Problem:\n{{question}}\n\nEnd the solution with "{PHRASE}" and the answer.\n\nSolution:\n',
        (PHRASE,),
        answer="phrase",
    ),
    Template(
        "harness_question",
        f'Q: {{question}}\nClose with the words "{PHRASE}", and after them the answer alone.\nA:',
        (PHRASE,),
        answer="phrase",
    ),
    *_tagged("check", _CHECK, ("solve", "check"), "", answer="boxed"),
)


def draw_templates(templates: Sequence[Template], n: int, seed: int) -> list[Template]:
    """One template for each of ``n`` drawn questions, uniformly; a pure function of the seed."""
    chosen = torch.randint(len(templates), (n,), generator=torch_generator(seed, "templates"))
    return [templates[i] for i in chosen.tolist()]


@register("task", "prompt_augmentation", paper="Lu et al. 2026, arXiv 2602.03190")
class PromptAugmentation(Task):
    """Another task's questions, each put in a way of its own every time it is drawn.

    All members of a group share the template of their draw, so that what templates pay for form cancels where they pay
    it to everyone. The other task's scorer sees the answer that ``Template.extract`` finds; reward ``template_format``
    scores the form. Problems are evaluated with one fixed template.

    Source: Lu et al. 2026, arXiv 2602.03190, and its code.
    """

    kind = "language"
    supplies = frozenset({"answer"})

    def __init__(
        self,
        *,
        task: str | dict[str, Any],
        templates: list[str | dict[str, Any]] | None = None,
        evaluate_with: str | None = None,
    ) -> None:
        """Build the other task.

        Args:
            task: the other task as a recipe names it: its name, or a mapping with its name and options.
            templates: names from ``TEMPLATES``, or mappings with the fields of ``Template``; all thirteen by default.
            evaluate_with: name of the template for held-out problems; the first by default.

        Raises:
            RecipeError: when the other task has several turns, no scorer of its own, or no answers, or a template is
                unknown or wrong.
        """
        spec = {"name": task} if isinstance(task, str) else dict(task)
        method = registry.get("task", spec.pop("name"))
        known = {template.name: template for template in TEMPLATES}
        self.templates = [_template(given, known) for given in templates] if templates else list(TEMPLATES)
        names = [template.name for template in self.templates]
        if len(set(names)) < len(names):
            raise RecipeError(f"task 'prompt_augmentation': templates {names} must have different names")
        if evaluate_with is not None and evaluate_with not in names:
            raise RecipeError(
                f"task 'prompt_augmentation': evaluate_with is '{evaluate_with}'{nearest(evaluate_with, names)}"
            )
        self.fixed = self.templates[names.index(evaluate_with)] if evaluate_with else self.templates[0]
        self._by_name = dict(zip(names, self.templates, strict=True))
        target: Any = method.target
        if target.kind != "language" or issubclass(target, EnvironmentTask) or "answer" not in target.supplies:
            raise RecipeError(
                f"task 'prompt_augmentation' puts questions of one turn with an answer, and task '{method.name}' has "
                "none; use a task such as 'reasoning_gym' or 'dataset'"
            )
        self.inner: Task = target(**method.validate(spec))
        self.scorer = self._scorer(self.inner.scorer, method.name)

    def train_batch(self, n: int, seed: int) -> list[Problem]:
        """The other task's batch, each question in a template drawn for it; a pure function of ``seed``."""
        problems = self.inner.train_batch(n, seed)
        return [put(p, t) for p, t in zip(problems, draw_templates(self.templates, n, seed), strict=True)]

    def eval_problems(self, n: int) -> list[Problem]:
        """The other task's held-out problems in the fixed template."""
        return [put(problem, self.fixed) for problem in self.inner.eval_problems(n)]

    def corpus(self) -> Iterable[str]:
        """The templates' texts and completions, and the other task's corpus."""
        for template in self.templates:
            yield template.render("")
            yield template.demonstrate("")
        yield from self.inner.corpus()

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state)

    def _scorer(self, inner: Callable[..., Any] | None, name: str) -> Callable[..., Any]:
        """The other task's scorer on the answers that templates find, with the fields that it names."""
        if inner is None or form_of(inner) != "sample":
            raise RecipeError(
                f"task 'prompt_augmentation' scores one answer at a time, and task '{name}' does not; use another task"
            )
        kept = list(inspect.signature(inner).parameters.values())
        named = {parameter.name for parameter in kept}
        by_name = self._by_name

        def score(**fields: Any) -> Any:
            template = by_name[fields["metadata"]["template"]]
            found = fields | {"text": template.extract(fields["text"])}
            return inner(**{key: value for key, value in found.items() if key in named})

        wanted = [inspect.Parameter(x, inspect.Parameter.POSITIONAL_OR_KEYWORD) for x in ("text", "metadata")]
        extra = [parameter for parameter in wanted if parameter.name not in named]
        plain = [p.replace(annotation=inspect.Parameter.empty) for p in kept]
        score.__signature__ = inspect.Signature([*extra, *plain])  # type: ignore[attr-defined]
        return score


def put(problem: Problem, template: Template) -> Problem:
    """A problem whose question is put in a template, with the template's name and marks in its metadata."""
    metadata = {**problem.metadata, "template": template.name, MARKS: list(template.marks)}
    shown = problem.demonstration
    if not shown and problem.answer is not None and template.answer != "whole":
        shown = (template.demonstrate(str(problem.answer)),)
    return dataclasses.replace(problem, prompt=template.render(problem.prompt), metadata=metadata, demonstration=shown)


def _template(given: str | Mapping[str, Any], known: Mapping[str, Template]) -> Template:
    if isinstance(given, str):
        if given not in known:
            raise RecipeError(f"task 'prompt_augmentation': no template '{given}'{nearest(given, known)}")
        return known[given]
    fields = {field.name for field in dataclasses.fields(Template)}
    wrong = next((key for key in given if key not in fields), None)
    if wrong is not None or not {"name", "text"} <= given.keys():
        problem = f"has no field '{wrong}'{nearest(wrong, fields)}" if wrong else "needs 'name' and 'text'"
        raise RecipeError(f"task 'prompt_augmentation': a template {problem}")
    return Template(**{**given, "marks": tuple(given.get("marks", ()))})
