import copy
import shutil
from typing import ClassVar

import pytest
import torch
from small_recipes import LANGUAGE

import guerdon
from guerdon import batched
from guerdon.monitor.progress import Progress
from guerdon.recipe import load_recipe
from guerdon.rollouts import Rollouts
from guerdon.sampling.sources import Source
from guerdon.tasks.base import Starts
from guerdon.training import checkpoint, collect, loop
from guerdon.training.folder import RunFolder
from guerdon.training.run import Run

QUIET = Progress(quiet=True)


class Again(Source):
    """Samples every prompt that has failed throughout once more, in two rounds; counts the prompts."""

    when = "scoring"
    seen: ClassVar[list] = []

    def __init__(self, *, rounds: int = 2) -> None:
        self.rounds, self.count = rounds, 0

    def draw(self, draw):
        assert draw.reward.shape == (len(draw.rollouts),)
        type(self).seen.append((draw.step, draw.round, draw.seed, draw.reward.clone(), draw.rollouts.group.clone()))
        if draw.round == self.rounds:
            return None
        problems = dict(zip(draw.starts.group.tolist(), draw.starts.problems, strict=True))
        self.count += len(problems)
        starts = Starts(list(problems.values()), torch.tensor(list(problems)), draw.step)
        return draw.policy.sample(starts, draw.sampling, seed=draw.seed)

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def recipe_of(home, **changes):
    recipe = copy.deepcopy(LANGUAGE) | {"rewards": ["task"], "runs_dir": str(home), "objective": "ppo_clip"} | changes
    recipe["sampling"] = LANGUAGE["sampling"] | changes.get("sampling", {})
    return recipe


def run_of(home, **changes):
    return Run.start(load_recipe(recipe_of(home, **changes)), overwrite=True, progress=QUIET)


def batch_of(run, step=0):
    problems = run.task.train_batch(run.recipe.sampling.prompts, step)
    return Starts.repeat(problems, run.recipe.sampling.group_size, version=step)


@pytest.fixture
def graded(tmp_path):
    """Starts of a run with ``Again`` and a reward that faults, and what became of them."""

    def moody(text, task_id):
        """Fail on half of the problems."""
        if int(task_id) % 2:
            raise ValueError("no")
        return float(len(text))

    Again.seen = []
    rewards = ["task", {"name": moody, "weight": 0.5, "label": "moody"}, {"name": moody, "watch": True, "label": "w"}]
    run = run_of(tmp_path, rewards=rewards, sampling={"sources": [{"name": Again}]})
    starts = batch_of(run)
    with torch.no_grad():
        rollouts = collect.collect(run, starts, 0)
        assert len(rollouts) == 16
        return run, *collect.grade(run, rollouts, starts, 0)


def test_a_source_that_sees_the_scores_is_asked_until_it_is_content(graded):
    run, scored, _ = graded
    assert len(scored) == 16 + 4 + 4
    assert scored.group.bincount().tolist() == [6, 6, 6, 6]
    assert [(step, turn) for step, turn, *_ in Again.seen] == [(0, 0), (0, 1), (0, 2)]
    assert len({seed for _, _, seed, *_ in Again.seen}) == 3
    assert [len(reward) for *_, reward, _ in Again.seen] == [16, 20, 24]
    assert run.plan.sources[0].count == 8
    first, second = scored.text[16:20], scored.text[20:]
    assert first != second, "every round draws anew"


def test_the_reward_it_sees_is_the_weighted_sum_and_a_fault_is_nan(graded):
    _, scored, faults = graded
    *_, reward, group = Again.seen[-1]
    odd = scored.task_id % 2 == 1
    assert odd.any()
    assert (~odd).any()
    assert torch.equal(reward.isnan(), odd)
    weighted = scored.rewards["task"] + 0.5 * scored.rewards["moody"]
    assert torch.allclose(reward[~odd], weighted[~odd])
    assert torch.equal(group, scored.group)
    for name in ("moody", "w"):
        assert sorted(f.row for f in faults if f.reward == name) == odd.nonzero().flatten().tolist()


def test_a_reward_that_compares_a_group_is_computed_over_all_of_its_rows(tmp_path):
    sizes = []

    @batched
    def crowd(text, group):
        """Size of the group that a trajectory is in."""
        sizes.append(len(text))
        return group.bincount()[group].float()

    run = run_of(tmp_path, rewards=["task", {"name": crowd, "label": "crowd"}], sampling={"sources": [{"name": Again}]})
    starts = batch_of(run)
    with torch.no_grad():
        scored, faults = collect.grade(run, collect.collect(run, starts, 0), starts, 0)
    assert sizes == [16, 20, 24]
    assert scored.rewards["crowd"].tolist() == [6.0] * 24
    assert not scored.rewards["task"].isnan().any()
    assert faults == []


def test_a_grouped_reward_is_computed_over_all_rows_of_a_group(tmp_path):
    @guerdon.grouped
    def size(text):
        """Size of the group that a trajectory is in."""
        return [float(len(text))] * len(text)

    run = run_of(tmp_path, rewards=["task", {"name": size, "label": "size"}], sampling={"sources": [{"name": Again}]})
    starts = batch_of(run)
    with torch.no_grad():
        scored, _ = collect.grade(run, collect.collect(run, starts, 0), starts, 0)
    assert scored.rewards["size"].tolist() == [6.0] * 24


def test_faults_of_all_rounds_are_in_the_folder(graded):
    run, scored, faults = graded
    told = run.folder.faults()
    assert [(f["reward"], f["row"], f["kind"], f["message"]) for f in told] == [
        (f.reward, f.row, f.kind, f.message) for f in faults
    ]
    assert max(f["row"] for f in told) > 16, "rows of further rounds count on"
    assert all(f["text"] == scored.text[f["row"]] for f in told)
    assert all(f["task_id"] == int(scored.task_id[f["row"]]) for f in told)


def test_faults_of_a_comparison_are_not_counted_twice(tmp_path):
    @batched
    def broken(text, group):
        """Never a number."""
        return torch.full((len(text),), float("nan"))

    run = run_of(tmp_path, rewards=["task", {"name": broken, "label": "b"}], sampling={"sources": [{"name": Again}]})
    starts = batch_of(run)
    with torch.no_grad():
        _, faults = collect.grade(run, collect.collect(run, starts, 0), starts, 0)
    assert [fault.row for fault in faults] == list(range(24))


def test_demonstrations_are_scored_and_credited_and_rehearsed_rows_are_neither(tmp_path):
    batches = []

    def remember(logp, mask, advantage, external, group):
        """Keep what the update sees."""
        batches.append((advantage.clone(), external.clone(), group.clone(), mask.clone()))
        return logp.sum() * 0

    sources = [{"name": "rehearsal", "threshold": 0.05, "correct": 0.0, "rows": 3, "problems": 8}, "demonstrations"]
    changes = {"objective": "rl_plus", "terms": [remember], "credit": "rloo", "sampling": {"sources": sources}}
    changes |= {"training": {"steps": 1}, "evaluation": {"problems": 4}, "warm_start": None}
    recipe = recipe_of(tmp_path, **changes)
    result = guerdon.train(recipe, progress=QUIET)
    ((advantage, external, group, mask),) = batches
    foreign = external.any(dim=1)
    assert foreign.tolist() == [False] * 16 + [True] * 7
    assert torch.equal(external[foreign], mask[foreign])
    assert group[16:20].tolist() == [0, 1, 2, 3], "a demonstration is a member of its group"
    assert (advantage[16:20][mask[16:20]] > 0).all(), "an untrained policy fails where the demonstration is right"
    assert (advantage[20:] == 0).all()
    assert not set(group[20:].tolist()) & set(group[:20].tolist())
    folder = RunFolder.open(result.run)
    rows = folder.rollouts(0).to_pylist()
    assert len(rows) == 20, "rehearsed rows are not part of the batch that was rewarded"
    assert [row["reward"] for row in rows[16:]] == [1.0] * 4
    metrics = folder.metrics()
    assert metrics["trajectories"] == [16]
    assert metrics["reward/mean"][0] < 0.5, "demonstrations are not what the policy achieves"


def test_a_batch_without_external_rows_still_says_so(tmp_path):
    class Silent(Source):
        """Nothing to add."""

        when = "sampling"
        external = True

        def draw(self, draw):
            return None

    recipe = recipe_of(tmp_path, objective="rl_plus", sampling={"sources": [{"name": Silent}]}, training={"steps": 1})
    result = guerdon.train(recipe, progress=QUIET)
    assert RunFolder.open(result.run).metrics()["update/rl_plus/external_ratio"] == [0.0]


SOURCES = {
    "demonstrations": ({"objective": "rl_plus", "credit": "rloo"}, [{"name": "demonstrations", "share": 0.5}]),
    "rehearsal": (
        {"terms": ["f_divergence", "jensen_shannon"]},
        [{"name": "rehearsal", "threshold": 0.05, "correct": 0.0, "rows": 5, "problems": 8}],
    ),
    "again": ({}, [{"name": Again}]),
}


@pytest.mark.parametrize("name", list(SOURCES))
def test_a_run_with_sources_resumes_bit_by_bit(tmp_path, name):
    changes, sources = SOURCES[name]
    recipe = recipe_of(tmp_path, **changes, sampling={"sources": sources}, training={"steps": 4, "minibatches": 2})
    recipe |= {"checkpoint": {"every": 1, "keep": 9}, "evaluation": {"problems": 4}}
    whole = guerdon.train(recipe, progress=QUIET)
    without = recipe | {"name": "plain", "sampling": {}, "objective": "ppo_clip", "terms": []}
    plain = guerdon.train(recipe_of(tmp_path, **without), progress=QUIET)
    assert plain.weights_sha256 != whole.weights_sha256
    saved = checkpoint.list_checkpoints(RunFolder(whole.run).checkpoints_path)
    for folder in saved[2:]:
        shutil.rmtree(folder)
    run = Run.resume(whole.run, recipe=load_recipe(recipe), progress=QUIET)
    assert run.step == 1
    if name == "again":
        assert run.plan.sources[0].count == 8
    again = loop.resume(whole.run, recipe=load_recipe(recipe), progress=QUIET)
    assert again.weights_sha256 == whole.weights_sha256
    assert again.eval == whole.eval


def test_preparing_is_shown_once_it_takes_a_moment(tmp_path, monkeypatch):
    shown = []

    class Screen(Progress):
        """Remembers what it is told."""

        def start(self, total, description, *, done=0):
            shown.append((description, total))

        def step(self, step, metrics):
            shown.append(step)

    class Slow(Source):
        """Looks at three things."""

        when = "credit"

        def prepare(self, draw):
            assert (draw.step, draw.starts, draw.rollouts, draw.reward) == (-1, None, None, None)
            assert list(draw.track([5, 6, 7])) == [5, 6, 7]

        def draw(self, draw):
            return None

    run = Run.start(
        load_recipe(recipe_of(tmp_path, sampling={"sources": [{"name": Slow}]})), progress=Screen(quiet=True)
    )
    collect.prepare(run)
    assert shown == []
    monkeypatch.setattr(collect, "PATIENCE", -1.0)
    collect.prepare(run)
    assert shown == [("Slow prepares", 3), 0, 1, 2]


def test_own_rows_leave_out_what_is_external_in_part(tmp_path):
    run = run_of(tmp_path)
    with torch.no_grad():
        rollouts: Rollouts = collect.collect(run, batch_of(run), 0)
    assert len(collect.own_rows(rollouts)) == 16
    rollouts.external = torch.zeros_like(rollouts.mask)
    rollouts.external[3, 0] = True
    assert len(collect.own_rows(rollouts)) == 15
    rollouts.external[:, 0] = True
    assert len(collect.own_rows(rollouts)) == 16, "where there are none, all"
