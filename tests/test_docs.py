"""What the documentation shows must work as it is written."""

import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import duckdb
import pytest
import typer.main
import yaml

from guerdon import registry
from guerdon.cli.main import app
from guerdon.monitor.progress import Progress
from guerdon.recipe import load_recipe
from guerdon.training.loop import train, training_step
from guerdon.training.plan import make_plan
from guerdon.training.run import Run

ROOT = Path(__file__).parent.parent
QUICKSTART = ROOT / "recipes" / "quickstart.yaml"
TINY = [
    *("policy.width=16", "policy.layers=1", "policy.heads=2", "warm_start.steps=1", "sampling.prompts=4"),
    *("training.steps=2", "evaluation.every=1", "evaluation.problems=8", "logging.rollouts_every=1"),
]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


class Fence(NamedTuple):
    """A block of code: its language, the file it stands for, its text and its first line in the page."""

    language: str
    title: str | None
    text: str
    line: int


def fences(page: Path, language: str) -> list[Fence]:
    text = page.read_text()
    found = []
    for match in re.finditer(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', text, re.DOTALL | re.MULTILINE):
        if match[1] == language:
            found.append(Fence(match[1], match[2], match[3], text.count("\n", 0, match.start(3)) + 1))
    return found


def write_files(page: Path, folder: Path) -> None:
    for language in ("python", "json", "yaml"):
        for fence in fences(page, language):
            if fence.title:
                (folder / fence.title).write_text(fence.text)


def with_fences(language: str) -> pytest.MarkDecorator:
    chosen = [(page, name) for page, name in zip(PAGES, NAMES, strict=True) if fences(page, language)]
    return pytest.mark.parametrize("page", [page for page, _ in chosen], ids=[name for _, name in chosen])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory whose modules can be imported, and a registry that forgets what is added."""
    for stage in registry.HOMES:
        registry.load_home(stage)
    monkeypatch.setattr(registry, "_methods", {stage: dict(known) for stage, known in registry._methods.items()})
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a finished run called quickstart."""
    folder = tmp_path_factory.mktemp("docs")
    train(QUICKSTART, [*TINY, f"runs_dir={folder / 'runs'}"], progress=Progress(quiet=True))
    return folder


@with_fences("python")
def test_python_runs_and_prints_what_its_last_comment_says(page, folder, capsys):
    write_files(page, folder)
    for fence in fences(page, "python"):
        namespace = {"__name__": "__main__"}
        exec(compile("\n" * (fence.line - 1) + fence.text, str(page), "exec"), namespace)
        for name, function in list(namespace.items()):
            if name.startswith("test_"):
                function()
        printed = capsys.readouterr().out
        comment = re.search(r"\n((?:# .*\n)+)\Z", fence.text)
        if comment:
            assert printed == re.sub("^# ", "", comment[1], flags=re.MULTILINE)


@with_fences("yaml")
def test_recipes_and_their_fragments_plan(page, folder):
    """A block with a title is a recipe; one without changes a few keys of the quickstart."""
    write_files(page, folder)
    for fence in fences(page, "yaml"):
        shown = yaml.safe_load(fence.text) or {}
        make_plan(load_recipe(shown if fence.title else yaml.safe_load(QUICKSTART.read_text()) | shown))
        if fence.title:
            assert {"name", "task", "policy"} <= set(shown)
            assert shown["name"] == Path(fence.title).stem


@pytest.mark.parametrize("fence", fences(ROOT / "docs" / "runs.md", "sql"), ids=lambda fence: f"line-{fence.line}")
def test_queries_run(fence, runs, monkeypatch):
    monkeypatch.chdir(runs)
    result = duckdb.sql(fence.text)
    assert result.columns
    if "having" not in fence.text and "fault is not null" not in fence.text:
        assert result.fetchall()


def test_columns_of_a_run_are_documented(runs):
    page = (ROOT / "docs" / "runs.md").read_text()
    metrics = duckdb.sql(f"select * from '{runs}/runs/quickstart/metrics.parquet'").columns
    named = {
        "components/NAME/KEY": r"components/\S+/\w+",
        "reward": r"reward/\w+/(mean|std)",
        "eval": r"eval/\w+",
        "update/METHOD/KEY": r"update/\w+/\w+",
        "credit/METHOD/KEY": r"credit/\w+/\w+",
        "shaping/METHOD/KEY": r"shaping/\w+/\w+",
    }
    for column in metrics:
        head, _, tail = column.rpartition("/")
        if any(re.fullmatch(pattern, column) for pattern in named.values()):
            continue
        assert f"`{column}`" in page or (f"`{head}/" in page and f"`/{tail}`" in page), column
    for column in duckdb.sql(f"select * from '{runs}/runs/quickstart/rollouts/*.parquet'").columns:
        assert f"`{re.sub('/.*', '/NAME', column)}`" in page, column


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_parse(page):
    commands = typer.main.get_command(app).commands
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for fence in fences(page, "bash"):
        for line in fence.text.splitlines():
            program, *words = shlex.split(line)
            if program == "make":
                assert words[0] in targets, line
            elif program == "guerdon":
                command, *arguments = words[: words.index(">")] if ">" in words else words
                commands[command].make_context(command, arguments)
                for word in arguments:
                    assert not word.startswith("recipes/") or (ROOT / word).is_file(), line


def test_command_line_page_names_every_command_and_option():
    page = (ROOT / "docs" / "cli.md").read_text()
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE))
    for name, command in typer.main.get_command(app).commands.items():
        for parameter in [
            *command.params,
            *(p for sub in getattr(command, "commands", {}).values() for p in sub.params),
        ]:
            for option in parameter.opts:
                assert not option.startswith("--") or option == "--help" or option in sections[name], (name, option)


def test_readme_counts_the_registered_methods_and_names_some():
    text = (ROOT / "README.md").read_text()
    stages = {
        **{"Policies": "policy", "Tasks": "task", "Curricula": "curriculum", "Sources": "source", "Rewards": "reward"},
        **{"Shaping": "shaping", "Credit": "credit", "Objectives": "objective", "Terms": "term", "Loggers": "logger"},
    }
    assert set(stages.values()) == set(registry.HOMES)
    for label, stage in stages.items():
        row = re.search(rf"^\| {label} \| (\d+) \| (.*) \|$", text, re.MULTILINE)
        assert row, label
        known = {method.name for method in registry.methods(stage)}
        assert int(row[1]) == len(known), label
        assert set(re.findall(r"`([^`]+)`", row[2])) <= known


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_of_the_front_pages_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)#]+)", (ROOT / name).read_text()):
        assert target.startswith("https://") or (ROOT / target).is_file(), target


def test_one_reward_takes_the_documented_way(tmp_path):
    """The functions of the table are called, and in its order, during one training step of the quickstart."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    way = re.findall(r"^\| \d+ \| `([\w.]+)` \| `([\w/.]+)` \|", page, re.MULTILINE)
    assert 5 <= len(way) <= 10
    run = Run.start(load_recipe(QUICKSTART, [*TINY, f"runs_dir={tmp_path}"]), progress=Progress(quiet=True))
    called: list[tuple[str, str]] = []

    def note(frame, event, argument):
        _, found, file = frame.f_code.co_filename.rpartition("/guerdon/")
        if event == "call" and found:
            called.append((frame.f_code.co_qualname, file))

    sys.setprofile(note)
    try:
        training_step(run, 0)
    finally:
        sys.setprofile(None)
    place = [called.index(step) for step in way]
    assert place == sorted(place)


def site_part(name: str) -> ModuleType:
    """A module of what builds the site."""
    spec = importlib.util.spec_from_file_location(f"guerdon_docs_{name}", ROOT / "docs" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_module_is_in_the_reference():
    pages = "\n".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    claims = "/claims/(policy_optimization|task_rewards|credit_and_agents|exploration_and_supervision|quickstart)"
    apart = re.compile(f"__|/cli/|{claims}|worker_process|/inspect|/samples")
    for file in (ROOT / "src" / "guerdon").rglob("*.py"):
        module = ".".join(file.relative_to(ROOT / "src").with_suffix("").parts)
        assert apart.search(str(file)) or f"::: {module}\n" in pages + "\n", module


def test_generated_pages_hold_what_the_code_knows(recipes):
    hooks, catalog_hooks = site_part("hooks"), site_part("catalog_hooks")
    page = hooks.methods_page()
    for stage in registry.HOMES:
        for method in registry.methods(stage):
            assert f"[`{method.name}`][{method.home}]" in page
    assert all(f"### {file.name}\n" in hooks.shipped_recipes() for file in recipes)
    for source in (ROOT / "docs").glob("*.md"):
        page = source.read_text()
        for part in (hooks, catalog_hooks):
            page = part.on_page_markdown(page, None, None, None)
        assert "<!-- generated" not in page, source
