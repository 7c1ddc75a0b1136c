import json

import pytest
import torch

import guerdon
from guerdon.errors import RecipeError
from guerdon.monitor.progress import Progress
from guerdon.recipe import load_recipe
from guerdon.registry import get
from guerdon.sampling.rounds import SeedWithSolved
from guerdon.tasks.base import Starts
from guerdon.training import collect
from guerdon.training.folder import RunFolder
from guerdon.training.run import Run

QUIET = Progress(quiet=True)
WORDS = {"min_word_len": 3, "max_word_len": 4}


def early(answer):
    """Give 1 where the answer begins with a letter of the first half: a prompt always succeeds or always fails."""
    return float(answer < "n")


def odd(text):
    """Give 1 to texts of odd length."""
    return float(len(text) % 2)


def recipe_of(home, source, reward, **changes):
    return {
        "runs_dir": str(home),
        "task": {
            "name": "reasoning_gym",
            "dataset": "spell_backward",
            "config": {"min_word_len": 3, "max_word_len": 4},
        },
        "policy": {"name": "tiny_lm", "width": 16, "layers": 1, "heads": 2},
        "sampling": {"prompts": 6, "group_size": 4, "max_new_tokens": 4, "sources": [source]},
        "rewards": [reward],
        "training": {"steps": 2},
        "evaluation": {"problems": 4},
        "logging": {"rollouts_every": 1},
    } | changes


def graded(home, source, reward, step=0):
    """A run, its starts and its batch after all rounds."""
    run = Run.start(load_recipe(recipe_of(home, source, reward)), overwrite=True, progress=QUIET)
    problems = run.task.train_batch(6, step)
    starts = Starts.repeat(problems, 4, version=step)
    with torch.no_grad():
        scored, _ = collect.grade(run, collect.collect(run, starts, step), starts, step)
    return run, problems, scored


def test_confidence_spends_the_budget_where_rewards_differ(tmp_path):
    _, _, scored = graded(tmp_path, {"name": "confidence_allocator", "budget": 8, "bonus": 0.0}, odd)
    sizes = scored.group.bincount()
    assert sizes.sum() == 48
    assert sizes.min() >= 4
    first = scored.rewards["odd"][:24].reshape(6, 4)
    varied = (first.amax(dim=1) > first.amin(dim=1)).tolist()
    assert any(varied)
    assert not all(varied), "the seed must give prompts of both kinds"
    for size, differs in zip(sizes.tolist(), varied, strict=True):
        assert size > 4 if differs else size == 4


def test_confidence_ignores_faulted_rewards(tmp_path):
    def moody(text):
        """Fail on texts of odd length."""
        if len(text) % 2:
            raise ValueError("no")
        return 1.0

    _, _, scored = graded(tmp_path, {"name": "confidence_allocator", "budget": 6, "phases": 2}, moody)
    assert len(scored) == 36


def test_the_budget_follows_the_conflict_with_the_prior(tmp_path):
    source = {"name": "one_step_budget", "prior": 0.9, "rate": 0.5}
    run, problems, scored = graded(tmp_path, source, early)
    # Mean 1 is within a standard error (.15) of .9. At mean 0 a fifth, sixth and seventh rollout pay.
    wanted = [4 if early(problem.answer) else 7 for problem in problems]
    assert set(wanted) == {4, 7}
    assert scored.group.bincount().tolist() == wanted
    estimates = run.plan.sources[0].state_dict()["estimates"]
    assert estimates == {str(p.task_id): pytest.approx(0.95 if early(p.answer) else 0.45) for p in problems}


def test_failed_prompts_are_tried_again_after_solved_ones(tmp_path):
    source = {"name": "seed_with_solved", "rollouts": 2, "k": 1, "form": "{prompt}{solution};"}
    run, problems, scored = graded(tmp_path, source, early)
    failed = [not early(problem.answer) for problem in problems]
    assert any(failed)
    assert not all(failed)
    assert scored.group.bincount().tolist() == [6 if fails else 4 for fails in failed]
    solved = {p.prompt for p, fails in zip(problems, failed, strict=True) if not fails}
    store = run.plan.sources[0].store
    assert set(store.solutions) == solved
    for row in range(24, len(scored)):
        problem = problems[scored.group[row]]
        (example, solution), *rest = store.nearest(problem.prompt, k=1)
        assert not rest
        assert scored.prompt[row] == f"{example}{solution};{problem.prompt}"
        assert scored.answer[row] == problem.answer
    evaluation = {p.prompt for p in run.task.eval_problems(4)}
    assert not evaluation & set(store.solutions)


def test_seeded_rollouts_are_evaluated_in_their_own_context(tmp_path):
    run, _, scored = graded(tmp_path, {"name": "seed_with_solved", "rollouts": 2}, early)
    with torch.no_grad():
        now = run.policy.evaluate(scored).logp
    torch.testing.assert_close(now, scored.old_logp, atol=1e-4, rtol=1e-4)


def test_right_answers_of_the_second_try_enter_the_store(tmp_path):
    def late(prompt):
        """Give 1 to whatever follows an example."""
        return float(";" in prompt)

    run, problems, scored = graded(tmp_path, {"name": "seed_with_solved", "rollouts": 1, "form": "{prompt};"}, late)
    assert len(run.plan.sources[0].store) == 0, "nothing is solved, so nobody gets an example"
    assert list(scored.prompt[24:]) == [p.prompt for p in problems]
    source = SeedWithSolved(rollouts=1, form="{solution};")
    source.store.add(["Spell this word backward: abc"], ["cba"])
    run.plan.sources[0] = source
    starts = Starts.repeat(problems, 4)
    with torch.no_grad():
        scored, _ = collect.grade(run, collect.collect(run, starts, 1), starts, 1)
    assert {p.prompt for p in problems} <= set(source.store.solutions)
    assert [source.store.solutions[p.prompt] for p in problems] == list(scored.text[24:])
    resumed = SeedWithSolved()
    resumed.load_state_dict(json.loads(json.dumps(source.state_dict())))
    assert resumed.store.solutions == source.store.solutions


@pytest.mark.parametrize(
    ("source", "credit"),
    [
        ("confidence_allocator", ["grpo", "novelty_sharpen"]),
        ({"name": "one_step_budget", "prior": 0.9}, "shrinkage_baseline"),
        ({"name": "seed_with_solved", "rollouts": 3}, "grpo"),
    ],
)
def test_a_run_trains_with_groups_of_unequal_size(tmp_path, source, credit):
    reward = odd if source == "confidence_allocator" else early
    recipe = recipe_of(tmp_path, source, reward, credit=credit)
    folder = RunFolder.open(guerdon.train(recipe, progress=QUIET).run)
    metrics = folder.metrics()
    assert all(n > 24 for n in metrics["trajectories"])
    assert all(x == pytest.approx(1, abs=1e-3) for x in metrics["update/ppo_clip/ratio"])
    sizes = torch.tensor([row["group"] for row in folder.rollouts(1).to_pylist()]).bincount()
    assert sizes.min() < sizes.max()


def test_options_are_checked():
    with pytest.raises(RecipeError, match="phases"):
        get("source", "confidence_allocator").validate({"phases": 1})
    with pytest.raises(RecipeError, match="most"):
        get("source", "one_step_budget").validate({"most": 0})
