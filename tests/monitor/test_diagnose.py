"""Every code is found in a log that has it, alone, and not in one that is like it and has it not."""

import json
import math
from pathlib import Path

import pytest
from logs import changed, healthy, write

from guerdon.monitor.columns import Choices
from guerdon.monitor.diagnose import Diagnosis, diagnose
from guerdon.monitor.pathologies import CODES
from guerdon.training.folder import RunFolder

# Rows of a log by code: one that has the pathology, one that is close to it and has it not, and what must be said of
# the columns.


def share(p):
    """The reward of a success of this chance."""
    return lambda row, rng: row | {"reward": float(rng.random() < p)}


def always(value):
    return lambda row, rng: row | {"reward": value}


def grouped_reward(row, rng):
    """Nearly all groups tied, one in five steps not."""
    if int(row["prompt"].split()[1]) % 13 == 0:
        return row
    return row | {"reward": 0.5}


def two_scales(small, large):
    def change(row, rng):
        return row | {"task": small * float(rng.random() < 0.4), "reward_style": large * rng.random()}

    return change


def opposed(sign):
    def change(row, rng):
        quality = rng.random()
        return row | {"reward_a": quality, "reward_b": sign * quality + 0.3 * rng.random()}

    return change


def outlying(value):
    def change(row, rng):
        odd = rng.random() < 0.004
        return row | {"reward": value * (1 + rng.random()) if odd else rng.random()}

    return change


def rescored(flip):
    """Every text twice in its group, and the score of a copy may differ."""

    def change(row, rng):
        *words, member = row["completion"].split()
        words = [w for w in words if w.isdigit()]
        right = int(member) // 2 % 2 == 0
        return row | {
            "completion": " ".join(["answer", *words, str(int(member) // 2)]),
            "reward": float(right != (rng.random() < flip)),
        }

    return change


def lengths(end, reward):
    """Texts that become longer or shorter over the steps, with a reward by place in time and length."""

    def change(row, rng):
        now = row["step"] / 40
        n = max(1, int((20 + (end - 20) * now) * (0.8 + 0.4 * rng.random())))
        text = "".join(rng.choices("abcdefgh", k=n))
        return row | {"completion": text, "reward": reward(now, n, rng)}

    return change


def copies(kinds):
    """Failures write one of so many texts; successes are right in one way."""

    def change(row, rng):
        text = "right" if row["reward"] else f"wrong {rng.randrange(kinds)}"
        return row | {"completion": f"{text} {row['prompt']}"}

    return change


def answers(constant):
    """Long texts that end in an answer, mostly the same one."""

    def change(row, rng):
        answer = "7" if rng.random() < constant else str(rng.randrange(100))
        return row | {"completion": f"{row['completion']} so <answer>{answer}</answer>"}

    return change


def proxy(gold):
    def change(row, rng):
        now = row["step"] / 40
        return row | {"reward": 0.3 + 0.5 * now + 0.1 * rng.random(), "gold": gold(now) + 0.1 * rng.random()}

    return change


def form(task):
    def change(row, rng):
        now = row["step"] / 40
        del row["reward"]
        return row | {
            "reward_format": float(rng.random() < min(1.0, 0.2 + 2 * now)),
            "reward_task": float(rng.random() < task(now)),
        }

    return change


def judged(slope):
    def change(row, rng):
        score = slope * len(row["completion"]) / 80 + rng.random()
        return row | {"reward_judge": score, "gold": row["reward"]}

    return change


def placed(bias):
    def change(row, rng):
        place = rng.choice("AB")
        return row | {"place": place, "reward": rng.random() + (bias if place == "A" else 0.0)}

    return change


def faulty(p):
    return lambda row, rng: row | {"reward": None if rng.random() < p else row["reward"]}


def credited(leak):
    def change(row, rng):
        credit = row["reward"] - 0.5
        return row | {"advantages": [leak, credit, credit], "response_mask": [0, 1, 1]}

    return change


TASKS = Choices(reward=("task", "reward_style"))
BOTH = Choices(reward=("reward_a", "reward_b"))
GOLD = Choices(reward=("reward",), gold=("gold",))

LOGS = {
    "unsolvable-tasks": (always(0.0), share(0.1), "critical", None),
    "saturated-tasks": (always(1.0), share(0.9), "critical", None),
    "zero-variance-groups": (grouped_reward, share(0.5), "warning", None),
    "drowned-component": (two_scales(1, 100), two_scales(1, 2), "warning", TASKS),
    "constant-component": (two_scales(1, 0), two_scales(1, 1), "warning", TASKS),
    "conflicting-components": (opposed(-1), opposed(1), "warning", BOTH),
    "reward-outliers": (outlying(50), outlying(1), "warning", None),
    "noisy-reward": (rescored(0.1), rescored(0.0), "warning", None),
    "length-collapse": (
        lengths(2, lambda now, n, rng: float(rng.random() < 0.6 - 0.5 * now)),
        lengths(10, lambda now, n, rng: float(rng.random() < 0.6 - 0.5 * now)),
        "warning",
        None,
    ),
    "length-explosion": (
        lengths(100, lambda now, n, rng: n / 150 + 0.1 * rng.random()),
        lengths(30, lambda now, n, rng: n / 150 + 0.1 * rng.random()),
        "warning",
        None,
    ),
    "truncation": (lambda row, rng: row | {"truncated": rng.random() < 0.7}, None, "warning", None),
    "duplicate-rollouts": (copies(2), copies(1000), "warning", None),
    "answer-concentration": (answers(0.95), answers(0.5), "warning", None),
    "proxy-gold-divergence": (proxy(lambda now: 0.6 - 0.5 * now), proxy(lambda now: 0.3 + 0.5 * now), "warning", GOLD),
    "reward-faults": (faulty(0.2), faulty(0.0), "warning", None),
    "judge-bias": (judged(30), judged(0.1), "warning", Choices(reward=("reward_judge",), gold=("gold",))),
    "format-only-learning": (form(lambda now: 0.2), form(lambda now: 0.2 + 0.5 * now), "warning", None),
    "advantage-leak": (credited(0.3), credited(0.0), "critical", None),
}


def above_info(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    return [(f.code, f.severity) for f in diagnosis.findings if f.severity != "info"]


@pytest.mark.parametrize("code", LOGS)
def test_a_log_that_has_it_and_one_that_has_not(code, tmp_path):
    ill, well, severity, choices = LOGS[code]
    found = diagnose(write(tmp_path / "ill.parquet", changed(ill)), choices)
    assert above_info(found) == [(code, severity)]
    assert code not in found.healthy
    assert code not in found.unchecked
    finding = found.findings[0]
    assert finding.steps[0] <= finding.steps[1] <= 39
    assert 0 < finding.share <= 1
    if well is not None:
        clean = diagnose(write(tmp_path / "well.parquet", changed(well)), choices)
        assert above_info(clean) == []
        assert code in clean.healthy


def test_a_healthy_log_shows_nothing_and_says_what_it_could_not_tell(tmp_path):
    found = diagnose(write(tmp_path / "log.parquet", healthy()))
    assert found.findings == []
    assert {"zero-variance-groups", "duplicate-rollouts", "answer-concentration"} <= {*found.healthy}
    assert "more than once" in found.unchecked["noisy-reward"]
    assert "trainer_state.json" in found.unchecked["entropy-collapse"]
    assert "--gold" in found.unchecked["proxy-gold-divergence"]
    assert {*found.healthy, *found.unchecked} == {*CODES}


# Numbers of the trainer ---------------------------------------------------------------------------------------


def run_folder(path: Path, steps: int = 40, **changes) -> Path:
    """A guerdon run without rollouts; metrics by name, '/' written '__', numbers or functions of the step."""
    folder = RunFolder.create(path, "name: run\n")
    metrics = {
        **{"reward/mean": 0.5, "reward/min": 0.0, "reward/max": 1.0, "trajectories": 64.0, "entropy/mean": 1.0},
        **{"update/loss": 0.1, "update/ppo_clip/ratio": 1.0, "update/ppo_clip/clip_fraction": 0.1},
        **{"update/ppo_clip/approx_kl": 0.01, "staleness": 1.0, "advantage/off_mask": 0.0, "advantage/abs_mean": 0.5},
        **{name.replace("__", "/"): value for name, value in changes.items()},
    }
    for step in range(steps):
        folder.log(step, {name: value(step) if callable(value) else value for name, value in metrics.items()})
    folder.flush()
    return path


@pytest.mark.parametrize(
    ("code", "severity", "changes"),
    [
        ("entropy-collapse", "warning", {"entropy__mean": lambda step: 1.0 if step < 10 else 0.01}),
        ("kl-blowup", "warning", {"update__kl__kl": 3.0}),
        ("ratio-bias", "warning", {"update__ppo_clip__ratio": 0.8}),
        ("clip-saturation", "warning", {"update__ppo_clip__clip_fraction": 0.6}),
        ("stale-policy", "warning", {"staleness": 6.0}),
        ("advantage-leak", "critical", {"advantage__off_mask": 0.2}),
        ("not-finite", "critical", {"update__loss": lambda step: math.nan if step > 20 else 0.1}),
        ("truncation", "warning", {"truncated": lambda step: 0.8 if step > 20 else 0.1}),
    ],
)
def test_what_the_trainer_wrote_down_tells_the_rest(code, severity, changes, tmp_path):
    assert above_info(diagnose(run_folder(tmp_path / "ill", **changes))) == [(code, severity)]
    clean = diagnose(run_folder(tmp_path / "well", truncated=0.1, update__kl__kl=0.1))
    assert clean.findings == []
    assert code in clean.healthy


def test_a_policy_that_has_converged_may_be_certain(tmp_path):
    certain = {"entropy__mean": lambda step: 1.0 if step < 10 else 0.01}
    risen = {"reward__mean": lambda step: 0.2 if step < 10 else 0.97}
    assert diagnose(run_folder(tmp_path / "run", **certain, **risen)).findings == []


def test_what_is_of_language_only_is_not_looked_for_in_a_control_run(tmp_path):
    run = run_folder(tmp_path / "run", truncated=1.0, length__mean=lambda step: 10.0 + 10 * step)
    RunFolder.open(run).write_summary({"kind": "control"})
    found = diagnose(run)
    assert found.findings == []
    assert found.unchecked["truncation"] == "is told of language policies only, and this is of kind control"


# What is close to a pathology and none ------------------------------------------------------------------------


def test_rare_successes_and_levels_of_the_reward_are_no_outliers(tmp_path):
    rare = changed(lambda row, rng: row | {"reward": rng.choice([0.0, 0.1]) if rng.random() > 0.01 else 1.0})
    assert above_info(diagnose(write(tmp_path / "rare.parquet", rare))) == []
    levels = changed(lambda row, rng: row | {"reward": 100.0 * (rng.random() > 0.02) + rng.choice([0, 1])})
    assert above_info(diagnose(write(tmp_path / "levels.parquet", levels))) == []


def test_right_answers_may_repeat(tmp_path):
    right = changed(lambda row, rng: row | {"completion": "yes" if row["reward"] else row["completion"]})
    assert above_info(diagnose(write(tmp_path / "log.parquet", right))) == []


def test_a_task_of_two_answers_concentrates(tmp_path):
    def change(row, rng):
        truth = int(row["prompt"].split()[1]) % 3 > 0  # one of the answers is right twice as often
        said = truth if rng.random() < 0.3 + 0.6 * row["step"] / 40 else rng.random() < 0.5
        return row | {"completion": f"{'yes' if said else 'no'}", "reward": float(said == truth)}

    found = diagnose(write(tmp_path / "log.parquet", changed(change)))
    assert "answer-concentration" in found.healthy


def test_credit_of_each_component_on_its_own_scale_drowns_none(tmp_path):
    def change(row, rng):
        task, style = float(rng.random() < 0.4), rng.random()
        return row | {"reward_task": task, "reward_style": 100 * style, "advantage": task - 0.5 + 2 * (style - 0.5)}

    names = Choices(reward=("reward_task", "reward_style"))
    rows = changed(change)
    assert above_info(diagnose(write(tmp_path / "gdpo.parquet", rows), names)) == []
    for row in rows:
        row["advantage"] = row["reward_task"] + row["reward_style"]
    assert above_info(diagnose(write(tmp_path / "grpo.parquet", rows), names)) == [("drowned-component", "warning")]


def test_answers_that_grow_with_what_they_earn_are_only_good_to_know(tmp_path):
    grown = lengths(80, lambda now, n, rng: float(rng.random() < 0.2 + 0.7 * now))
    found = diagnose(write(tmp_path / "log.parquet", changed(grown)))
    assert [(f.code, f.severity) for f in found.findings] == [("length-explosion", "info")]


def test_a_judge_that_sees_one_place_better(tmp_path):
    choices = Choices(judge=("reward",), position="place")
    (found,) = diagnose(write(tmp_path / "ill.parquet", changed(placed(0.3))), choices).findings
    assert (found.code, found.severity, found.figures["bias"]) == ("judge-bias", "warning", "position")
    assert "place 'A'" in found.message
    assert "judge-bias" in diagnose(write(tmp_path / "well.parquet", changed(placed(0.0))), choices).healthy


def test_equal_texts_of_different_steps_are_compared_too(tmp_path):
    rows = [
        {"step": step, "prompt": f"q{q}", "completion": f"answer {q}", "reward": float((step + q) % 2)}
        for step in range(30)
        for q in range(16)
    ]
    found = diagnose(write(tmp_path / "log.parquet", rows))
    assert ("noisy-reward", "critical") in above_info(found)
    scores = next(f for f in found.findings if f.code == "noisy-reward").examples[0]["scores"]
    assert scores == [0.0, 1.0]


def test_problems_that_come_again_and_are_never_solved(tmp_path):
    def change(row, rng):
        task = int(row["prompt"].split()[1]) % 10
        if task >= 7:  # solved at times, and longer than what is to be shown
            return row | {"prompt": f"q{task}", "completion": f"{row['completion']} and more of the same"}
        return row | {"prompt": f"q{task}", "reward": 0.0}

    found = diagnose(write(tmp_path / "log.parquet", changed(change)))
    assert above_info(found) == [("unsolvable-tasks", "warning")]
    (finding,) = [f for f in found.findings if f.code == "unsolvable-tasks"]
    assert finding.figures["tasks"] == 7
    assert finding.share == pytest.approx(0.7, abs=0.01)
    assert all(row["prompt"] in {f"q{k}" for k in range(7)} for row in finding.examples)


# Form ---------------------------------------------------------------------------------------------------------


def test_the_json_has_exactly_what_is_promised(tmp_path):
    found = diagnose(write(tmp_path / "log.parquet", changed(always(0.0)))).to_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found.keys() == {"source", "findings", "healthy", "unchecked"}
    (finding,) = found["findings"]
    assert finding.keys() == {"code", "severity", "share", "steps", "evidence", "remedies"}
    assert finding["steps"] == [0, 39]
    assert finding["evidence"]["figures"] == {"reward": 0.0, "trajectories": 2560, "steps": 40}
    assert finding["evidence"]["examples"][0].keys() == {"step", "reward", "prompt", "text"}
    assert "warm_start" in finding["remedies"][0]["change"]
    assert finding["remedies"][1]["claim"].startswith("guerdon claims run ")
    assert found["source"]["columns"] == {"prompt": "prompt", "text": "completion", "step": "step"}
    assert found["source"]["rewards"] == ["reward"]


def test_the_worst_comes_first(tmp_path):
    def change(row, rng):
        return copies(1)(row | {"truncated": row["step"] > 30}, rng) | {
            "advantages": [0.2 * (row["step"] > 20), 0.5],
            "mask": [0, 1],
        }

    found = diagnose(write(tmp_path / "log.parquet", changed(change))).findings
    assert [f.code for f in found] == ["advantage-leak", "duplicate-rollouts", "truncation"]
    assert found[1].share > found[2].share


def test_few_steps_make_the_windows_shorter_and_few_rollouts_say_nothing(tmp_path):
    one = [row | {"step": 0} for row in changed(copies(1), steps=4)]
    assert above_info(diagnose(write(tmp_path / "one.parquet", one))) == [("duplicate-rollouts", "warning")]
    found = diagnose(write(tmp_path / "few.parquet", one[:8]))
    assert found.findings == []
    assert found.unchecked["duplicate-rollouts"] == "8 rollouts are fewer than 30"
