"""Training in stages: rewards, trainable segments and memories that change, and resuming in the middle."""

import copy

import pytest
import torch
from small_recipes import LANGUAGE

import guerdon
from guerdon.errors import RecipeError, RewardError
from guerdon.monitor.progress import Progress
from guerdon.recipe import load_recipe
from guerdon.rewards.base import Reward, batched, grouped, score
from guerdon.rewards.forms import Calls
from guerdon.training import loop
from guerdon.training.folder import RunFolder
from guerdon.training.plan import make_plan
from guerdon.training.run import Run

QUIET = Progress(quiet=True)


def long(text):
    """Length."""
    return float(len(text))


def half(text, *, scale: float = 0.5):
    """A constant, so that the reward's scale shows in its mean."""
    return scale


class Counted:
    """How many samples it has seen so far."""

    def __init__(self, *, start: int = 0):
        self.seen = start

    def __call__(self, text):
        self.seen += 1
        return float(self.seen)

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


class Remembering:
    """Credit that counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, reward, mask):
        self.calls += 1
        return reward.unsqueeze(1) * mask, {"calls": float(self.calls)}

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state):
        self.calls = state["calls"]


def recipe_of(tmp_path, **changes):
    base = copy.deepcopy(LANGUAGE) | {
        "runs_dir": str(tmp_path),
        "rewards": [long, {"name": half, "weight": 2.0}],
        "objective": "ppo_clip",
        "terms": [],
        "training": {"steps": 6},
        "evaluation": {"problems": 4},
    }
    return base | changes


TWO = [
    {"name": "first", "rewards": {"half": {"weight": 0.0}}, "until": {"steps": 3}},
    {"name": "second", "rewards": {"long": {"weight": 0.0}, "half": {"scale": 4.0}}},
]


def metrics_of(result):
    columns = RunFolder.open(result.run).metrics()
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def test_weights_and_options_follow_the_stage(tmp_path):
    result = guerdon.train(recipe_of(tmp_path, stages=TWO), progress=QUIET)
    rows = metrics_of(result)
    assert [row["stage"] for row in rows] == [0, 0, 0, 1, 1, 1]
    assert [row["reward/half/mean"] for row in rows] == [0.5] * 3 + [4.0] * 3
    assert [row["reward/mean"] == pytest.approx(row["reward/long/mean"]) for row in rows[:3]] == [True] * 3
    assert [row["reward/mean"] for row in rows[3:]] == [8.0] * 3
    # Held-out figures are by the recipe's own rewards throughout.
    for moment in ("before", "after"):
        assert result.eval[moment]["sampled/half"] == 0.5
        assert result.eval[moment]["sampled"] == pytest.approx(result.eval[moment]["sampled/long"] + 1.0)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_a_run_stopped_in_any_stage_goes_on_bit_identically(tmp_path, steps):
    stages = [
        TWO[0] | {"until": {"metric": "length/mean", "above": -1.0, "window": 2}},
        TWO[1] | {"until": {"steps": 2}, "fresh": ["optimizer", "credit"]},
        {"name": "third", "rewards": {"Counted": {"weight": 0.1}}},
    ]
    shared = {
        "rewards": [long, {"name": half, "weight": 2.0}, {"name": Counted, "label": "Counted", "weight": 0.0}],
        "credit": {"name": Remembering},
        "stages": stages,
        "checkpoint": {"every": 1},
    }
    whole = guerdon.train(recipe_of(tmp_path, name="whole", **shared), progress=QUIET)
    stopped = recipe_of(tmp_path, name="stopped", **shared)
    run = Run.start(load_recipe(stopped), progress=QUIET)
    loop._begin(run)
    for _ in range(steps):
        metrics = loop.training_step(run, run.step)
        run.log(run.step, metrics | run.advance(metrics))
        run.step += 1
        run.save()
    run.close()
    result = guerdon.resume(tmp_path / "stopped", recipe=load_recipe(stopped), progress=QUIET)
    assert result.weights_sha256 == whole.weights_sha256
    told = [[row["stage"] for row in metrics_of(r)] for r in (whole, result)]
    assert told[0] == told[1] == [0, 0, 1, 1, 2, 2]
    calls = [[row["credit/Remembering/calls"] for row in metrics_of(r)] for r in (whole, result)]
    assert calls[0] == calls[1] == [1, 2, 1, 2, 3, 4]  # the second stage begins without memory, the third keeps it
    seen = [[row["reward/Counted/mean"] for row in metrics_of(r)] for r in (whole, result)]
    assert seen[0] == seen[1]
    assert seen[0] == sorted(set(seen[0]))  # one memory through all stages, whatever the reward weighs


def started(tmp_path, **changes):
    run = Run.start(load_recipe(recipe_of(tmp_path, **changes)), overwrite=True, progress=QUIET)
    loop._begin(run)
    return run


def test_an_optimiser_begins_a_stage_without_moments_if_it_says_so(tmp_path):
    for fresh in ([], ["optimizer"]):
        stages = [{"name": "a", "until": {"steps": 1}}, {"name": "b", "fresh": fresh}]
        run = started(tmp_path, stages=stages)
        run.advance(loop.training_step(run, 0))
        assert bool(list(run.optimizer.moments())) != bool(fresh)
        run.close()


def test_the_learning_rate_is_multiplied(tmp_path):
    stages = [{"name": "a", "until": {"steps": 1}}, {"name": "b", "lr": 0.25}]
    changes = {"optimizer": {"lr": 1e-3, "schedule": "constant"}, "training": {"steps": 2}}
    rows = metrics_of(guerdon.train(recipe_of(tmp_path, stages=stages, **changes), progress=QUIET))
    assert [row["update/lr"] for row in rows] == pytest.approx([1e-3, 2.5e-4])


SEGMENTS = {"vowels": ["a", "e"]}


@pytest.mark.parametrize("terms", [[], [{"name": "kl", "beta": 0.5}], [{"name": "entropy", "beta": 0.5}]])
def test_actions_outside_the_trained_segments_get_no_gradient(tmp_path, terms, monkeypatch):
    stages = [{"name": "a", "train": ["vowels"]}]
    run = started(tmp_path, stages=stages, segments=SEGMENTS, terms=terms, credit={"name": Remembering})
    seen = []
    evaluate = run.policy.evaluate

    def watched(batch, **options):
        evaluation = evaluate(batch, **options)
        if evaluation.logp.requires_grad:
            evaluation.logp.retain_grad()
            seen.append((batch, evaluation.logp))
        return evaluation

    monkeypatch.setattr(run.policy, "evaluate", watched)
    loop.training_step(run, 0)
    run.close()
    ((batch, logp),) = seen
    inside = batch.marks["vowels"]
    assert 0 < int(inside.sum()) < int(batch.mask.sum())
    assert torch.equal(batch.marks["other"], batch.mask & ~inside)
    assert bool((logp.grad[inside] != 0).all())
    assert bool((logp.grad[~inside] == 0).all())


def test_a_batch_without_an_action_to_train_changes_nothing(tmp_path):
    stages = [{"name": "a", "train": ["never"]}]
    warm = LANGUAGE["warm_start"] | {"carry_over": False}  # momentum would move the weights without any gradient
    run = started(tmp_path, stages=stages, segments={"never": ["\n\n", "\n\n"]}, warm_start=warm)
    before = {name: p.clone() for name, p in run.policy.trainable().items()}
    loop.training_step(run, 0)
    run.close()
    assert all(torch.equal(p, before[name]) for name, p in run.policy.trainable().items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": [{"name": "a", "rewards": {"lung": {}}}]}, "stage 'a' changes no known reward 'lung'.*'long'"),
        ({"stages": [{"name": "a", "rewards": {"half": {"scal": 1.0}}}]}, "'half' has no option 'scal'.*'scale'"),
        ({"rewards": ["task"], "stages": [{"name": "a", "rewards": {"task": {"x": 1}}}]}, "'task' has no option 'x'"),
        ({"stages": [{"name": "a", "train": ["thought"]}]}, "stage 'a' trains no known segment 'thought'"),
        ({"segments": {"other": ["a", "b"]}}, "'other' stands for what lies in no segment"),
        ({"stages": [{"name": "a"}, {"name": "b"}]}, "stage 'a' has no 'until'"),
        ({"stages": [{"name": "a", "untl": {"steps": 1}}]}, "untl"),
        ({"stages": [{"name": "a", "until": {"steps": 0}}]}, "steps"),
        ({"stages": [{"name": "a", "fresh": ["task"]}]}, "fresh"),
    ],
)
def test_stages_that_cannot_work_are_refused_before_anything_runs(tmp_path, changes, message):
    with pytest.raises(RecipeError, match=message):
        make_plan(load_recipe(recipe_of(tmp_path, **changes)))


# Rewards for some samples only ----------------------------------------------------------------------------------------


def batch_of(kinds):
    from guerdon.rollouts import make_rollouts

    n = len(kinds)
    return make_rollouts(
        torch.arange(n) // 2,
        torch.arange(n) // 2,
        torch.ones(n, 3, dtype=torch.bool),
        torch.zeros(n, 3),
        done=torch.ones(n, dtype=torch.bool),
        truncated=torch.zeros(n, dtype=torch.bool),
        payload={},
        text=[f"text {i}" for i in range(n)],
        metadata=[{"kind": kind} if kind else {} for kind in kinds],
    )


def asked(function, when, kinds, calls=None):
    from guerdon.registry import get

    spec = Reward("r", get("reward", function), {}, when=when, calls=calls or Calls())
    try:
        scored, faults = score(batch_of(kinds), [spec])
    finally:
        spec.close()
    assert not faults
    return scored.rewards["r"]


def number(text):
    """The text's number."""
    return float(text.split()[1])


@batched
def numbers(text):
    """The texts' numbers."""
    return torch.tensor([number(t) for t in text])


@batched
def per_action(text, mask):
    """The texts' numbers at every action."""
    return torch.tensor([number(t) for t in text]).unsqueeze(1) * mask


@grouped
def ranks(text):
    """How many a group has, and which one this is."""
    return [10 * len(text) + i for i, _ in enumerate(text)]


KINDS = ["chart", "box", "chart", "chart", None, "box"]


@pytest.mark.parametrize("function", [number, numbers])
@pytest.mark.parametrize("calls", [Calls(), Calls(workers=1)])
def test_only_samples_of_the_kind_are_scored(function, calls):
    seen = asked(function, {"kind": ("chart",)}, KINDS, calls)
    assert seen.nan_to_num(-1).tolist() == [0, -1, 2, 3, -1, -1]
    assert asked(function, {"kind": ("chart", "box")}, KINDS).nan_to_num(-1).tolist() == [0, 1, 2, 3, -1, 5]


def test_groups_and_actions_of_the_kind_are_scored():
    assert asked(ranks, {"kind": ("chart",)}, KINDS).nan_to_num(-1).tolist() == [10, -1, 20, 21, -1, -1]
    seen = asked(per_action, {"kind": ("box",)}, KINDS)
    assert seen.nan_to_num(-1).tolist() == [[x] * 3 for x in (-1, 1, -1, -1, -1, 5)]
    assert asked(numbers, {"kind": ("none such",)}, KINDS).isnan().all()


def test_a_key_that_no_sample_has_is_refused():
    with pytest.raises(RewardError, match="no sample's metadata has 'kin'; did you mean 'kind'"):
        asked(number, {"kin": ("chart",)}, KINDS)


def test_keys_may_be_nested():
    assert asked(number, {"kind.of": ("x",)}, [{"of": "x"}, {"of": "y"}, "x"]).nan_to_num(-1).tolist() == [0, -1, -1]


def test_what_does_not_apply_is_left_out_of_sums_and_means(tmp_path):
    when = {"metadata.word_len": 3}
    rewards = [{"name": half, "weight": 2.0}, {"name": long, "when": when}, {"name": long, "label": "w", "watch": True}]
    rewards[2] |= {"when": {"metadata.word_len": [4, 5]}}
    result = guerdon.train(recipe_of(tmp_path, rewards=rewards, evaluation={"problems": 12}), progress=QUIET)
    run = Run.resume(result.run, recipe=load_recipe(recipe_of(tmp_path, rewards=rewards)), progress=QUIET)
    problems = run.task.eval_problems(12)
    short = [problem.metadata["metadata"]["word_len"] == 3 for problem in problems]
    assert 0 < sum(short) < 12
    from guerdon.tasks.base import Starts

    options = run.policy.evaluation_options(run.sampling)
    written = run.policy.sample(Starts.repeat(problems, 1), options, seed=0, greedy=True)
    lengths = torch.tensor([float(len(text)) for text in written.text])
    after, short = result.eval["after"], torch.tensor(short)
    assert after["greedy/long"] == pytest.approx(float(lengths[short].mean()))
    assert after["greedy/w"] == pytest.approx(float(lengths[~short].mean()))
    assert after["greedy"] == pytest.approx(1.0 + float(lengths[short].sum()) / 12)
