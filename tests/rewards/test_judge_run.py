"""Judges at work in the reward stage and in a run."""

import json
import random

import duckdb
import pytest
import torch
import yaml

from guerdon.monitor.progress import Progress
from guerdon.registry import get
from guerdon.rewards.base import Reward, drop_faulted, score
from guerdon.rollouts import make_rollouts
from guerdon.training.loop import train

KEY = "sk-Sentinel0123456789abcdef"


def rollouts(texts, group=None):
    n = len(texts)
    return make_rollouts(
        torch.tensor(group or [0] * n),
        torch.zeros(n).long(),
        torch.ones(n, 1).bool(),
        torch.zeros(n, 1),
        done=torch.ones(n).bool(),
        truncated=torch.zeros(n).bool(),
        payload={},
        prompt=["say how good you are"] * n,
        text=texts,
        answer=["5"] * n,
        metadata=[{"rubric": ["is a number", {"text": "is right", "weight": 3}]}] * n,
    )


def reward(name, server, **options):
    settings = {"base_url": server.url, "api_key_env": None, "cache": False, "backoff": 0.01, "timeout": 0.5}
    method = get("reward", name)
    judge = {"backend": "openai", "model": "m", "concurrency": 1, "retries": 1, "reread": 0, **settings}
    return Reward(name, method, method.validate({"judge": judge, **options}))


def told(body):
    """What the answer says of itself, which stands on a line of its own."""
    return next(line for line in body["messages"][1]["content"].splitlines() if line.isdigit())


def test_faults_of_the_server_are_faults_of_samples(server):
    server.answer = lambda body: json.dumps({"score": int(told(body))})
    server.faults.extend(["disconnect", "disconnect", "none", "malformed", "stall", "none", ("status", 401)])
    batch, faults = score(rollouts(list("12345")), [reward("judge_score", server)])
    # 1 is disconnected twice; 2 is answered; 3 gets a broken body and a stall; 4 is answered; 5 is not let in.
    assert [fault.row for fault in faults] == [0, 2, 4]
    assert batch.rewards["judge_score"].isnan().tolist() == [True, False, True, False, True]
    assert batch.rewards["judge_score"][[1, 3]].tolist() == pytest.approx([1 / 9, 3 / 9])
    kept = drop_faulted(batch, [reward("judge_score", server)], faults)
    assert list(kept.text or []) == ["2", "4"]


@pytest.mark.parametrize(
    ("name", "options", "said", "values"),
    [
        ("judge_rubric", {"rubric": "rubric"}, lambda n: {"item_1": "yes", "item_2": "yes" if n == 5 else "no"}, None),
        ("judge_steps", {"kind": "fraction"}, lambda n: {"step_1": n / 10}, [0.2, 0.5, 0.7]),
        ("judge_pairwise", {"against": "reference"}, lambda n: {"better": "A"}, [0.5, 0.5, 0.5]),
        ("judge_ranking", {}, lambda n: {"ranking": ["B", "A", "C"]}, [0.25, 1.0, 0.25]),
    ],
)
def test_every_form_crosses_the_wire_and_becomes_a_component(server, name, options, said, values):
    server.answer = lambda body: json.dumps({"reason": "because", **said(int(told(body)))})
    spec = reward(name, server, **options)
    batch, faults = score(rollouts(list("257")), [spec])
    assert faults == []
    assert batch.rewards[name].tolist() == pytest.approx(values or [0.25, 1.0, 0.25])


RECIPE = {
    "name": "judged",
    "task": {"name": "dataset", "path": "problems.jsonl"},
    "policy": {"name": "tiny_lm", "width": 16, "layers": 1, "heads": 2},
    "sampling": {"prompts": 4, "group_size": 4, "max_new_tokens": 4},
    "training": {"steps": 2},
    "evaluation": {"problems": 1},
    "logging": {"rollouts_every": 1},
}


def test_a_run_with_a_judge_leaves_its_verdicts_and_no_key(server, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JUDGE_KEY", KEY)
    problems = [{"prompt": f"say {word}", "answer": word} for word in ("ab", "ba", "aab", "bba", "abab", "bb")]
    (tmp_path / "problems.jsonl").write_text("\n".join(map(json.dumps, problems)))
    chance = random.Random(0)
    server.answer = lambda body: json.dumps({"reason": "seen", "score": chance.randint(1, 10)})
    server.faults.extend([("echo", 401), ("echo", 500), "echo_verdict", "malformed"])
    judge = {"backend": "openai", "model": "m", "base_url": server.url, "api_key_env": "JUDGE_KEY", "backoff": 0.01}
    judge |= {"price_in": 1.0, "price_out": 2.0, "cache": "cache.sqlite"}
    recipe = RECIPE | {"rewards": [{"name": "judge_score", "judge": judge}, {"name": "task", "watch": True}]}
    train({**recipe, "runs_dir": "runs"}, progress=Progress(quiet=False))
    assert any(headers["authorization"] == f"Bearer {KEY}" for headers, _, _ in server.requests)
    metrics = duckdb.sql("select * from 'runs/judged/metrics.parquet' order by step").df().iloc[0]
    assert metrics["reward/judge_score/calls"] >= 1
    assert metrics["reward/judge_score/cost"] == pytest.approx(
        (metrics["reward/judge_score/tokens_in"] + 2 * metrics["reward/judge_score/tokens_out"]) / 1e6
    )
    written = yaml.safe_load((tmp_path / "runs" / "judged" / "recipe.yaml").read_text())
    assert written["rewards"][0]["judge"] == judge
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"recipe.yaml", "metrics.parquet", "report.html", "cache.sqlite"} <= {path.name for path in files}
    for path in files:
        assert b"Sentinel" not in path.read_bytes(), path
    printed = capfd.readouterr()
    assert "Sentinel" not in printed.out + printed.err
