import copy
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from small_recipes import CONTROL
from typer.testing import CliRunner

from guerdon import __version__
from guerdon.cli.main import app
from guerdon.cli.starters import STARTERS
from guerdon.recipe import load_recipe
from guerdon.training.plan import make_plan

RUNNER = CliRunner()


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "control.yaml").write_text(yaml.safe_dump(copy.deepcopy(CONTROL)))
    return tmp_path


def call(*arguments):
    result = RUNNER.invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


def test_train_ends_with_one_json_line_and_nothing_else_on_standard_output(home):
    code, out, err = call("train", "control.yaml", "--json", "--set", "training.steps=2")
    assert code == 0
    assert len(out.splitlines()) == 1
    result = json.loads(out)
    assert result["steps"] == 2
    assert {"run", "steps", "seconds", "eval", "alarms", "weights_sha256"} <= result.keys()
    assert result["eval"]["before"].keys() == result["eval"]["after"].keys() == {"sampled", "greedy"}
    assert "held-out" in err
    assert (home / result["run"] / "report.html").exists()


def test_train_again_resume_eval_and_report(home):
    assert call("train", "control.yaml", "--quiet", "--set", "training.steps=2")[0] == 0
    code, _, err = call("train", "control.yaml")
    assert code == 1
    assert "already holds a run" in err
    assert call("train", "control.yaml", "--quiet", "--overwrite", "--set", "training.steps=2")[0] == 0
    code, out, _ = call("train", "--resume", "runs/control", "--json", "--quiet")
    assert code == 0
    after = json.loads(out)["eval"]["after"]
    code, out, _ = call("eval", "runs/control", "--json")
    assert json.loads(out) == {"run": "runs/control", "steps": 2, "eval": after}
    assert call("eval", "runs/control", "--problems", "3")[0] == 0
    code, out, _ = call("report", "runs/control")
    assert (code, out.strip()) == (0, "runs/control/report.html")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nothing.yaml"], "no recipe file 'nothing.yaml'"),
        (["train"], "give a recipe to train"),
        (["train", "control.yaml", "--set", "credit=gpro"], "did you mean 'grpo'"),
        (["train", "control.yaml", "--set", "task.env=CartPol-v1"], "CartPole-v1"),
        (["train", "--resume", "nowhere"], "'nowhere' is not a run"),
        (["train", "--resume", "nowhere", "--set", "seed=1"], "--set cannot change a run that is resumed"),
        (["eval", "nowhere"], "'nowhere' is not a run"),
        (["report", "nowhere"], "'nowhere' is not a run"),
        (["methods", "credits"], "did you mean 'credit'"),
        (["init", "flows"], "did you mean 'flow'"),
        (["systems", "--family", "controll"], "did you mean 'control'"),
        (["claims", "run"], "give the names of claims"),
        (["claims", "run", "gdpoo"], "did you mean 'gdpo'"),
        (["claims", "list", "--family", "control"], "no claim matches"),
        (["methods", "--for", "entropy"], "no symptom 'entropy'"),
        (["methods", "credit", "--for", "entropy collapse"], "give a stage or --for"),
    ],
)
def test_mistakes_are_one_line_without_traceback(home, arguments, message):
    code, _, err = call(*arguments)
    assert code == 1
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in err


def test_methods_tell_what_each_needs():
    code, out, _ = call("methods", "--json")
    rows = {(row["stage"], row["name"]): row for row in json.loads(out)}
    assert code == 0
    assert rows["credit", "gae"]["needs"] == ["dense", "values", "mask", "bootstrap", "done"]
    assert rows["credit", "gae"]["produces"] == ["advantage", "returns"]
    assert "2402.03300" in rows["credit", "grpo"]["paper"]
    assert rows["credit", "grpo"]["options"]["eps"] == "0.0001"
    code, out, _ = call("methods", "credit")
    assert "grpo" in out
    assert "ppo_clip" not in out


def test_a_claim_runs_and_leaves_its_result(home):
    code, out, _ = call("claims", "run", "dispo", "--seeds", "5")
    assert code == 0
    assert "works" in out
    written = json.loads((home / "runs" / "claims" / "policy_optimization" / "dispo.json").read_text())
    assert written["verdict"] == "works"
    assert {"claim", "system", "checks", "seeds", "seconds", "version", "stamp"} <= written.keys()
    code, out, _ = call("claims", "run", "dispo", "--break", "--json", "--out", "elsewhere")
    assert code == 1
    assert json.loads(out)[0]["verdict"] == "fails"
    assert json.loads((home / "elsewhere" / "policy_optimization" / "dispo.broken.json").read_text())["broken"]


def test_claims_and_systems_are_listed():
    code, out, _ = call("claims", "list", "--json", "--family", "policy_optimization")
    assert code == 0
    rows = {row["name"]: row for row in json.loads(out)}
    assert rows["gdpo"].keys() == {"name", "family", "system", "description", "mutation", "seeds", "quick"}
    assert call("claims", "list", "--quick")[0] == 0
    code, out, _ = call("systems", "--json", "--family", "policy_optimization")
    assert code == 0
    assert len(json.loads(out)) == 28


def test_a_symptom_is_answered_with_evidence():
    code, out, _ = call("methods", "--for", "drowned component", "--json")
    assert code == 0
    rows = {row["name"]: row for row in json.loads(out)}
    assert "gdpo" in rows
    assert rows["gdpo"]["evidence"]
    code, out, _ = call("methods", "--for", "drowned component")
    assert code == 0
    assert "guerdon.credit.group:gdpo" in out


def test_schema_is_json():
    code, out, _ = call("schema")
    assert code == 0
    assert "credit" in json.loads(out)["properties"]


@pytest.mark.parametrize("kind", list(STARTERS))
def test_starters_are_recipes_that_plan(home, kind):
    code, out, _ = call("init", kind, "mine.yaml")
    assert code == 0
    assert "mine.yaml" in out
    make_plan(load_recipe("mine.yaml"))
    assert "#" in (home / "mine.yaml").read_text()
    assert call("init", kind, "mine.yaml")[0] == 1


def test_version():
    assert call("--version")[1].strip() == __version__


def test_the_installed_command_trains_is_killed_and_resumes(home):
    """The real program in processes of its own: kill -9 after a checkpoint, resume, compare with a whole run."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "guerdon", "train"]
    settings = ["--set", "training.steps=12", "--set", "checkpoint.every=1", "--json", "--quiet"]
    _, whole, _ = call("train", "control.yaml", "--set", "name=whole", *settings)
    cut = subprocess.Popen([*command, "control.yaml", "--set", "name=cut", *settings], env=environment)
    while not list((home / "runs" / "cut" / "checkpoints").glob("step-0000000[2-9]")):
        assert cut.poll() is None
        time.sleep(0.01)
    os.kill(cut.pid, signal.SIGKILL)
    assert cut.wait() == -signal.SIGKILL
    resumed = subprocess.run(
        [*command, "--resume", "runs/cut", "--json", "--quiet"], capture_output=True, env=environment, check=True
    )
    first, second = json.loads(whole), json.loads(resumed.stdout)
    assert second["weights_sha256"] == first["weights_sha256"]
    assert second["eval"] == first["eval"]
