"""guerdon diagnose, on a run, on what TRL really writes, and as a gate; and alarms that stop a run."""

import copy
import io
import json
import random

import letters_lm
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console
from small_recipes import LANGUAGE
from typer.testing import CliRunner

from guerdon.cli.main import app
from guerdon.cli.show_diagnosis import show_diagnosis
from guerdon.monitor.columns import Choices
from guerdon.monitor.diagnose import diagnose
from guerdon.training.folder import RunFolder

RUNNER = CliRunner()


def call(*arguments):
    result = RUNNER.invoke(app, [str(a) for a in arguments])
    return result.exit_code, result.stdout, result.stderr


def table(path, reward, text=lambda i: f"text {i}", n=256):
    rows = [
        {"step": i // 64, "prompt": f"question {i // 8}", "completion": text(i), "points": reward(i)} for i in range(n)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_a_table_with_the_guess_the_finding_and_what_is_unchecked(tmp_path):
    path = table(tmp_path / "log.parquet", lambda i: 0.0)
    code, out, _ = call("diagnose", path, "--reward", "points")
    assert code == 0
    assert "256 rollouts, 4 steps from 0 to 3" in " ".join(out.split())
    assert "prompt is 'prompt', text is 'completion', step is 'step', reward is points" in out
    assert "unsolvable-tasks" in out
    assert "critical" in out
    assert "Without a single" in out
    assert "(works)" in out
    assert "unchecked: proxy-gold-divergence (the log lacks a reward that is watched" in out
    assert "unsolvable-tasks: rollouts" not in out


def test_a_narrow_terminal_gets_paragraphs_and_loses_nothing(tmp_path):
    found = diagnose(table(tmp_path / "log.parquet", lambda i: 0.0), Choices(reward=("points",)))
    for width in (60, 130):
        screen = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
        show_diagnosis(found, console=screen)
        shown = screen.file.getvalue()
        assert ("┃" in shown) == (width > 100)
        assert "…" not in shown
        assert max(map(len, shown.splitlines())) <= width
        assert "unsolvable-tasks" in shown
        assert "v-star (works)" in shown


def test_examples_show_rollouts_and_no_character_reaches_the_terminal_raw(tmp_path):
    path = table(tmp_path / "log.parquet", lambda i: 0.0, text=lambda i: f"\x1b[31mred{i}\x07[bold]\u202e")
    code, out, _ = call("diagnose", path, "--reward", "points", "--examples")
    assert code == 0
    assert "unsolvable-tasks: rollouts" in out
    assert "␛[31mred" in out
    assert "[bold]" in out
    assert not {"\x1b", "\x07", "\u202e"} & {*out}


def test_json_is_one_value_on_standard_output_and_nothing_else(tmp_path):
    code, out, err = call("diagnose", table(tmp_path / "log.parquet", lambda i: 0.0), "--reward", "points", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert [f["code"] for f in found["findings"]] == ["unsolvable-tasks"]
    assert found["source"]["rollouts"] == 256


@pytest.mark.parametrize(("severity", "expected"), [("critical", 0), ("warning", 1), ("info", 1)])
def test_fail_on_is_a_gate(severity, expected, tmp_path):
    path = table(tmp_path / "log.parquet", lambda i: float(i % 3 == 0), text=lambda i: f"{i // 8} {i % 3 == 0}")
    code, out, _ = call("diagnose", path, "--reward", "points", "--fail-on", severity)
    assert "duplicate-rollouts" in out
    assert code == expected


def test_wrong_options_are_refused_in_a_sentence(tmp_path):
    path = table(tmp_path / "log.parquet", lambda i: 0.0)
    for arguments, words in (
        (["--reward", "point"], "has no column 'point' for --reward; it has step, prompt, completion, points"),
        ([], "has no column that is plainly a reward; name one or several with --reward"),
        (["--reward", "points", "--fail-on", "bad"], "--fail-on 'bad' is none of info, warning, critical"),
    ):
        code, out, err = call("diagnose", path, *arguments)
        assert (code, out) == (1, "")
        assert words in err


# Real runs ----------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = copy.deepcopy(LANGUAGE)
    recipe["rewards"] = ["never.py:never"]
    recipe["sampling"]["prompts"] = 8
    recipe["training"] = {"steps": 9}
    recipe["evaluation"]["every"] = 0
    recipe["logging"] = {"stop_on": ["unsolvable-tasks"], "rollouts_every": 1}
    (tmp_path / "never.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "never.py").write_text("def never(text):\n    return 0.0\n")
    return tmp_path


def test_an_alarm_stops_a_run_which_is_saved_and_goes_on_when_asked(home):
    code, out, err = call("train", "never.yaml", "--json")
    assert code == 3
    result = json.loads(out)
    assert (result["status"], result["steps"]) == ("stopped", 5)
    assert "after" not in result["eval"]
    assert "'unsolvable-tasks' stops the run" in err
    assert "stopped and saved; continue with" in err
    folder = RunFolder(result["run"])
    assert [path.name for path in sorted(folder.checkpoints_path.iterdir())][-1] == "step-00000005"
    assert folder.summary()["status"] == "stopped"

    code, out, _ = call("train", "--resume", result["run"], "--json", "--quiet")
    assert code == 0
    result = json.loads(out)
    assert (result["status"], result["steps"]) == ("finished", 9)
    assert [(a["code"], a["step"]) for a in result["alarms"]] == [("unsolvable-tasks", 4)]

    whole = ["--quiet", "--json", "--set", "name=whole", "--set", "logging.stop_on=[]"]
    unstopped = json.loads(call("train", "never.yaml", *whole)[1])
    assert unstopped["weights_sha256"] == result["weights_sha256"]
    assert unstopped["alarms"] == result["alarms"]

    code, out, _ = call("diagnose", result["run"], "--json")
    found = json.loads(out)["findings"][0]
    assert (found["code"], found["severity"], found["steps"]) == ("unsolvable-tasks", "critical", [0, 8])


def test_a_code_that_does_not_exist_is_refused_with_the_nearest(home):
    code, _, err = call("train", "never.yaml", "--set", "logging.stop_on=[unsolvable-task]")
    assert code == 1
    assert "no alarm has the code 'unsolvable-task'; did you mean 'unsolvable-tasks'?" in err


@pytest.fixture(scope="module")
def trl_runs(tmp_path_factory):
    """Folders that TRL's GRPOTrainer wrote: with a reward that can be learned, and one that is always 0."""
    pytest.importorskip("trl")
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    folder = tmp_path_factory.mktemp("trl")
    model, tokenizer = letters_lm.make()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    draw = random.Random(0)
    data = Dataset.from_list([{"prompt": "".join(draw.choices("abcdefgh", k=4)) + "?"} for _ in range(16)])

    def vowels(completions, **rest):
        return [sum(c in "ae" for c in text) / 6 for text in completions]

    def never(completions, **rest):
        return [0.0 for _ in completions]

    for reward in (vowels, never):
        options = GRPOConfig(
            output_dir=str(folder / reward.__name__),
            per_device_train_batch_size=32,
            num_generations=8,
            max_completion_length=6,
            max_steps=6,
            logging_steps=1,
            save_steps=6,
            log_completions=True,
            num_completions_to_print=0,
            report_to=[],
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            model_init_kwargs={"dtype": "float32"},
        )
        GRPOTrainer(str(folder / "model"), reward, options, data, processing_class=tokenizer).train()
    return folder


def test_what_trl_writes_is_read_as_it_is(trl_runs):
    code, out, _ = call("diagnose", trl_runs / "vowels", "--json")
    assert code == 0
    found = json.loads(out)
    source = found["source"]
    assert (source["format"], source["rollouts"], source["steps"]["count"]) == ("trl", 192, 6)
    assert source["rewards"] == ["vowels"]
    assert source["columns"] == {"prompt": "prompt", "text": "completion", "step": "step", "credit": "advantage"}
    assert {f["code"] for f in found["findings"] if f["severity"] != "info"} <= {"truncation"}  # of a random policy
    assert {"entropy-collapse", "clip-saturation", "zero-variance-groups", "duplicate-rollouts"} <= {*found["healthy"]}


def test_a_verifier_that_never_says_yes_is_seen_in_what_trl_writes(trl_runs):
    found = json.loads(call("diagnose", trl_runs / "never", "--json")[1])["findings"]
    assert (found[0]["code"], found[0]["severity"]) == ("unsolvable-tasks", "critical")
    assert {f["code"] for f in found if f["severity"] != "info"} <= {"unsolvable-tasks", "truncation"}
