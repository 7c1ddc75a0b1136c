import copy
import json
import multiprocessing
import os
import random
import shutil
import signal
import time

import pytest
import torch
from small_recipes import KINDS, REWARDS

import guerdon
from guerdon import registry
from guerdon.errors import CheckpointError, GuerdonError, MissingField, RewardError
from guerdon.monitor.progress import Progress
from guerdon.recipe import load_recipe
from guerdon.training import checkpoint, loop
from guerdon.training.folder import RunFolder

QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the rewards file, that is the working directory."""
    path = tmp_path_factory.mktemp("runs")
    (path / "rewards.py").write_text(REWARDS)
    before = os.getcwd()
    os.chdir(path)
    yield path
    os.chdir(before)


def recipe_of(kind, **changes):
    """A small recipe whose own rewards come from the rewards file."""
    recipe = copy.deepcopy(KINDS[kind]) | changes
    for index, reward in enumerate(recipe.get("rewards", [])):
        spec = dict(reward) if isinstance(reward, dict) else {"name": reward}
        if spec["name"] in ("letters", "brightness", "darkness"):
            spec["name"] = f"rewards.py:{spec['name']}"
        recipe["rewards"][index] = spec
    return recipe


def train(recipe, **settings):
    return guerdon.train(recipe, progress=QUIET, overwrite=True, **settings)


@pytest.fixture(scope="module")
def finished(home):
    """One uninterrupted run of each kind."""
    return {kind: train(recipe_of(kind)) for kind in KINDS}


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_run_leaves_what_it_promises(finished, kind):
    result = finished[kind]
    folder = RunFolder.open(result.run)
    assert result.status == "finished"
    assert result.steps == 8
    assert result.eval["before"].keys() == result.eval["after"].keys()
    assert folder.metrics()["step"] == list(range(8))
    assert folder.rollout_steps() == [0, 3, 6, 7]
    assert folder.summary()["weights_sha256"] == result.weights_sha256
    assert (folder.path / "report.html").stat().st_size > 1000
    assert load_recipe(folder.recipe_path).name == kind
    rows = folder.rollouts(7).to_pylist()
    assert all(abs(row["reward"]) < 100 for row in rows)
    assert any(c for row in rows for c in row["credit"])


def test_evaluation_names_what_is_measured(finished):
    assert {"sampled", "greedy", "sampled/task", "greedy/letters"} <= finished["language"].eval["after"].keys()
    assert finished["flow"].eval["after"].keys() == {"brightness", "darkness"}
    assert finished["control"].eval["after"].keys() == {"sampled", "greedy"}


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_same_recipe_gives_the_same_weights_and_another_seed_others(finished, kind):
    assert train(recipe_of(kind, name="again")).weights_sha256 == finished[kind].weights_sha256
    assert train(recipe_of(kind, name="again", seed=1)).weights_sha256 != finished[kind].weights_sha256


def _in_child(action):
    """Run ``action`` in a forked process that may be killed; report its end."""
    context = multiprocessing.get_context("fork")
    child = context.Process(target=action)
    child.start()
    return child


@pytest.mark.parametrize("kind", list(KINDS))
def test_killed_at_random_instants_it_ends_with_the_same_weights(finished, kind):
    """SIGKILL a training process again and again, resume it, and compare the final weights bit for bit."""
    recipe = recipe_of(kind, name=f"killed-{kind}")
    began = time.monotonic()
    child = _in_child(lambda: train(recipe))
    child.join()
    whole = time.monotonic() - began
    for trial in range(2):
        chance = random.Random(trial)
        child = _in_child(lambda: train(recipe))
        kills = 0
        while True:
            child.join(timeout=chance.uniform(0.05, 0.8) * whole)
            if child.exitcode is not None:
                break
            os.kill(child.pid, signal.SIGKILL)
            child.join()
            kills += 1
            if not (RunFolder(f"runs/{recipe['name']}").recipe_path).is_file():
                child = _in_child(lambda: train(recipe))
                continue
            child = _in_child(lambda: loop.resume(f"runs/{recipe['name']}", progress=QUIET))
            if kills >= 3:
                child.join()
        assert child.exitcode == 0
        folder = RunFolder.open(f"runs/{recipe['name']}")
        assert folder.summary()["weights_sha256"] == finished[kind].weights_sha256
        assert folder.summary()["eval"] == finished[kind].eval
        assert folder.metrics()["step"] == list(range(8))
        mine, theirs = folder.metrics(), RunFolder.open(finished[kind].run).metrics()
        for name in theirs:
            if name != "time" and not name.startswith(("seconds/", "actions_per_second", "memory/")):
                assert repr(mine[name]) == repr(theirs[name]), name


def test_a_corrupted_checkpoint_falls_back_and_still_ends_the_same(finished):
    recipe = recipe_of("language", name="corrupted")
    train(recipe)
    newest = checkpoint.list_checkpoints(RunFolder("runs/corrupted").checkpoints_path)[-1]
    (newest / "policy.safetensors").write_bytes(b"torn")
    with pytest.warns(UserWarning, match="is damaged"):
        again = loop.resume("runs/corrupted", progress=QUIET)
    assert again.weights_sha256 == finished["language"].weights_sha256


def test_a_full_disk_stops_the_run_and_loses_nothing_before(finished, monkeypatch):
    recipe = recipe_of("language", name="full")
    write, writes = checkpoint._write_synced, []

    def full(path, data):
        writes.append(path)
        if len(writes) > 4 * 3:
            raise OSError(28, "No space left on device")
        write(path, data)

    monkeypatch.setattr(checkpoint, "_write_synced", full)
    with pytest.raises(CheckpointError, match="No space left"):
        train(recipe)
    monkeypatch.undo()
    assert RunFolder.open("runs/full").metrics()["step"][-1] >= 3
    assert loop.resume("runs/full", progress=QUIET).weights_sha256 == finished["language"].weights_sha256


def test_an_interrupt_finishes_the_step_saves_and_resumes(finished):
    recipe = recipe_of("language", name="interrupted")

    class InterruptingProgress(Progress):
        def step(self, step, metrics):
            if "reward/mean" in metrics and step == 4:
                os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    result = guerdon.train(recipe, progress=InterruptingProgress(quiet=True), overwrite=True)
    assert result.status == "interrupted"
    assert result.steps in (5, 6)
    assert signal.getsignal(signal.SIGINT) is before
    resumed = loop.resume("runs/interrupted", progress=QUIET)
    assert resumed.status == "finished"
    assert resumed.weights_sha256 == finished["language"].weights_sha256


def test_a_finished_run_is_not_trained_further(finished):
    again = loop.resume(finished["control"].run, progress=QUIET)
    assert again.weights_sha256 == finished["control"].weights_sha256
    assert again.eval == finished["control"].eval


def test_an_earlier_run_is_not_overwritten_unasked(finished):
    with pytest.raises(GuerdonError, match="already holds a run"):
        guerdon.train(recipe_of("control"), progress=QUIET)


def test_a_reward_that_always_fails_stops_before_training(home):
    def broken(text):
        """Fail."""
        raise ZeroDivisionError("no luck")

    with pytest.raises(RewardError, match="every sample of the first batch faulted.*ZeroDivisionError: no luck"):
        train(recipe_of("language", name="broken", rewards=[broken]))
    saved = checkpoint.list_checkpoints(RunFolder("runs/broken").checkpoints_path)
    assert [path.name for path in saved] == ["step-00000000"]  # the warm start need not be repeated


def test_samples_whose_reward_fails_are_dropped_recorded_and_counted(home):
    def moody(text):
        """Fail on texts of odd length."""
        if len(text) % 2:
            raise ValueError("odd")
        return float(len(text))

    result = train(recipe_of("language", name="moody", rewards=["task", moody]))
    folder = RunFolder.open(result.run)
    rows = folder.rollouts(0).to_pylist()
    assert len(rows) == 16
    odd = [row for row in rows if len(row["text"]) % 2]
    assert odd
    assert all("ValueError: odd" in row["fault"] and row["reward"] is None for row in odd)
    assert all(row["fault"] is None for row in rows if row not in odd)
    assert folder.metrics()["faults"][0] == len(odd)


def test_users_functions_take_part(home):
    def shout(text: str, answer: str) -> float:
        """Reward capitals."""
        return float(text.isupper())

    def halved(reward, mask, *, factor: float = 0.5):
        """Half the reward to every action."""
        return factor * reward.unsqueeze(1) * mask

    result = train(recipe_of("language", name="mine", rewards=["task", shout], credit=halved))
    row = RunFolder.open(result.run).rollouts(0).to_pylist()[0]
    assert set(row["credit"]) == {0.5 * row["reward"]}


@pytest.mark.parametrize("credit", registry.methods("credit"), ids=lambda method: method.name)
def test_every_credit_trains_the_language_policy(home, credit):
    alone = {
        "dynamic_scale": {"coverage": None},  # whose default names a reward that stands beside it
        "prime": {"outcome": "task"},
        "process_filter": {"outcome": "task", "keep": 2},
        "thought_level": {"outcome": "task"},
        "verpo": {"outcome": "task", "local": "task"},
    }
    spec = {"name": credit.name, **alone.get(credit.name, {})}
    named = ["grpo", spec] if "advantage" in credit.requires else spec
    recipe = recipe_of("language", name="credits", credit=named, training={"steps": 2}, evaluation={"problems": 4})
    recipe["logging"] = {"rollouts_every": 0}
    if credit.name == "spae":
        recipe["sampling"] = recipe["sampling"] | {"sources": [{"name": "step_probe", "delimiter": "e", "ask": "="}]}
    if "values" in credit.requires:
        recipe["policy"] = recipe["policy"] | {"value_head": True}
        recipe["terms"] = ["value"]
    if {"state_key", "answer_logp", "marks"} & set(credit.requires):
        recipe["task"] = {"name": "search", "entities": 8, "hops": [2]}
        recipe["policy"] = recipe["policy"] | {"tokenizer": "word"}
    metrics = RunFolder.open(train(recipe).run).metrics()
    assert all(torch.isfinite(torch.tensor(metrics["update/loss"])))
    assert metrics["update/grad_norm"][0] > 0


def test_credits_follow_one_another_and_report_under_their_names(home):
    def doubled(advantage):
        """Twice the credit."""
        return 2 * advantage, {"factor": 2.0}

    recipe = recipe_of("language", name="chain", credit=["grpo", doubled, "difficulty_weights"], training={"steps": 1})
    metrics = RunFolder.open(train(recipe).run).metrics()
    assert metrics["credit/doubled/factor"] == [2.0]
    assert metrics["credit/doubled/abs_mean"][0] == pytest.approx(2 * metrics["credit/grpo/abs_mean"][0])
    assert metrics["credit/difficulty_weights/largest"][0] >= 1
    with pytest.raises(MissingField, match="name a credit that estimates it before those that adjust it"):
        train(recipe | {"credit": ["difficulty_weights", "grpo"], "name": "backwards"})


def test_what_shaping_methods_report_is_in_the_metrics(home):
    def halved(components, component_weights):
        """Half of the sum."""
        return 0.5 * components @ component_weights, {"factor": 0.5}

    recipe = recipe_of("language", name="shaped", shaping=[halved], training={"steps": 2})
    assert RunFolder.open(train(recipe).run).metrics()["shaping/halved/factor"] == [0.5, 0.5]


@pytest.mark.parametrize("kind", list(KINDS))
def test_one_credit_function_trains_every_kind(home, kind):
    recipe = recipe_of(kind, name="one-credit", credit="grpo", training={"steps": 2}, terms=[])
    recipe["sampling"] = {"prompts": 2, "group_size": 4} | ({"max_new_tokens": 5} if kind == "language" else {})
    rows = RunFolder.open(train(recipe).run).rollouts(1).to_pylist()
    reward, group = torch.tensor([r["reward"] for r in rows]), torch.tensor([r["group"] for r in rows])
    by_hand = guerdon_grpo(reward, group, torch.ones(len(rows), 1, dtype=torch.bool))
    for row, expected in zip(rows, by_hand[:, 0].tolist(), strict=True):
        given = [c for c in row["credit"] if c is not None]
        assert given == pytest.approx([expected] * len(given), abs=1e-5)


def guerdon_grpo(reward, group, mask):
    from guerdon.credit import grpo

    return grpo(reward, group, mask)


def test_loggers_see_every_step(home):
    recipe = recipe_of("control", name="logged", logging={"loggers": ["tensorboard"], "rollouts_every": 0})
    result = train(recipe)
    assert list((home / result.run).rglob("events.out.tfevents*"))
    assert RunFolder.open(result.run).rollout_steps() == []


def test_a_logger_that_fails_is_left_out_and_the_run_goes_on(home, monkeypatch):
    from guerdon.monitor.loggers import TensorBoardLogger

    def fail(self, step, metrics):
        raise ConnectionError("no route")

    notes = []
    monkeypatch.setattr(TensorBoardLogger, "log", fail)
    monkeypatch.setattr(QUIET, "note", notes.append)
    result = train(recipe_of("control", name="logged", logging={"loggers": ["tensorboard"]}))
    assert result.status == "finished"
    assert notes == ["TensorBoardLogger failed and is left out from here on: no route"]


def test_a_reward_with_memory_takes_it_through_a_restart(home):
    class Counting:
        """Count the calls."""

        def __init__(self) -> None:
            self.calls = 0

        def __call__(self, text):
            self.calls += 1
            return float(self.calls)

        def state_dict(self):
            return {"calls": self.calls}

        def load_state_dict(self, state):
            self.calls = state["calls"]

    recipe = load_recipe(recipe_of("language", name="counting", rewards=[Counting]))
    whole = train(recipe)
    rewards = RunFolder.open(whole.run).metrics()["reward/mean"]
    shutil.rmtree(checkpoint.list_checkpoints(RunFolder(whole.run).checkpoints_path)[-1])
    resumed = loop.resume(whole.run, recipe=recipe, progress=QUIET)
    assert resumed.weights_sha256 == whole.weights_sha256
    assert RunFolder.open(whole.run).metrics()["reward/mean"] == rewards
    assert rewards[-1] > 100  # 16 calls a step, of which the last is the 128th


def test_an_alarm_is_raised_once_over_restarts(home):
    def nothing(text):
        """Never reward."""
        return 0.0

    recipe = load_recipe(recipe_of("language", name="alarmed", rewards=[nothing], checkpoint={"every": 2, "keep": 9}))
    whole = train(recipe)
    assert [(alarm["code"], alarm["step"]) for alarm in whole.alarms] == [("unsolvable-tasks", 6)]
    for path in checkpoint.list_checkpoints(RunFolder(whole.run).checkpoints_path)[2:]:
        shutil.rmtree(path)
    assert loop.resume(whole.run, recipe=recipe, progress=QUIET).alarms == whole.alarms


def test_divergence_is_measured_from_the_policy_that_rl_began_with(home):
    recipe = recipe_of("language", name="reference", optimizer={"lr": 0.02}, training={"steps": 4})
    kl = RunFolder.open(train(recipe).run).metrics()["update/kl/kl"]
    assert kl[0] == pytest.approx(0, abs=1e-9)
    assert all(step > 1e-6 for step in kl[1:])


def test_the_greedy_reward_is_that_of_one_greedy_trajectory_per_start(home, monkeypatch):
    from guerdon.policies.tiny_lm import TinyLM

    drawn, seen = [], {}
    sample = TinyLM.sample

    def spy(self, starts, options, *, seed, greedy=False):
        rollouts = sample(self, starts, options, seed=seed, greedy=greedy)
        drawn.append((greedy, list(rollouts.prompt), list(rollouts.text)))
        return rollouts

    def length(text):
        """Number of characters."""
        return float(len(text))

    def mine(reward, greedy_reward, group, mask):
        """Remember the baseline."""
        seen.update(greedy=greedy_reward.tolist(), group=group.tolist())
        return (reward - greedy_reward).unsqueeze(1) * mask

    monkeypatch.setattr(TinyLM, "sample", spy)
    recipe = recipe_of("language", name="greedy", rewards=[length], credit=mine, training={"steps": 1})
    train(recipe)
    sampled, greedy = [call for call in drawn if len(call[1]) in (16, 4)][-2:]
    assert (sampled[0], greedy[0]) == (False, True)
    assert greedy[1] == sampled[1][::4]
    assert seen["greedy"] == [float(len(greedy[2][group])) for group in seen["group"]]


def test_a_credit_that_asks_for_it_gets_the_likelihood_of_the_prompt(home):
    seen = []

    def mine(reward, prompt_logp, group, mask):
        """Remember the field."""
        seen.append((prompt_logp, group))
        return reward.unsqueeze(1) * mask

    train(recipe_of("language", name="prompted", rewards=["task"], credit=mine, training={"steps": 1}))
    ((logp, group),) = seen
    assert logp.shape[0] == 16
    assert (logp[~logp.isnan()] < 0).all()
    for key in group.unique():
        assert torch.allclose(logp[group == key], logp[group == key][:1], equal_nan=True)


def test_result_is_json(finished):
    for result in finished.values():
        keys = {"run", "kind", "steps", "seconds", "eval", "alarms", "weights_sha256", "status"}
        assert json.loads(json.dumps(result.to_dict())).keys() == keys
