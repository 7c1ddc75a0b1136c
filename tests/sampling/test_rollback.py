from difflib import SequenceMatcher
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import guerdon
from guerdon.errors import RecipeError
from guerdon.monitor.progress import Progress
from guerdon.policies.language_sampling import LanguageSampling
from guerdon.recipe import load_recipe
from guerdon.sampling.rollback import SaarRollback, splice_turn, tool_failed
from guerdon.tasks.base import Problem, Starts
from guerdon.tasks.environments import EnvironmentTask, Step
from guerdon.training import collect
from guerdon.training.run import Run

QUIET = Progress(quiet=True)
CODE = "<code>{}</code>"


def test_a_typo_changes_the_call_alone():
    old, new = "I add them. <code>print(17+25</code>", "The bracket was missing. <code>print(17+25)</code> So."
    text, kind, similarity = splice_turn(old, new)
    assert (text, kind) == ("I add them. <code>print(17+25)</code> So.", "call")
    assert similarity == pytest.approx(2 * 11 / (11 + 12))


def test_another_call_changes_the_whole_turn():
    old, new = "I add. <code>print(17+25</code>", "Better a loop. <code>for i in range(9): total = i * i</code>"
    assert splice_turn(old, new, sim_threshold=0.7)[:2] == (new, "turn")


@pytest.mark.parametrize(("old", "new"), [("no call", "<code>1</code>"), ("<code>1</code>", "no call"), ("", "")])
def test_without_two_calls_the_whole_turn_is_new(old, new):
    assert splice_turn(old, new) == (new, "turn", 0.0)


def test_the_threshold_itself_keeps_the_reasoning():
    old, new = "a```abcd```", "b```abxy```"
    sim = SequenceMatcher(None, "abcd", "abxy").ratio()
    assert splice_turn(old, new, sim_threshold=sim).text == "a```abxy```"
    assert splice_turn(old, new, sim_threshold=sim + 1e-9).text == new


def test_a_tool_call_and_a_pattern_of_ones_own():
    old, new = "x <tool_call>{1}</tool_call>", "y <tool_call>{2}</tool_call>"
    assert splice_turn(old, new).text == "x <tool_call>{2}</tool_call>"
    assert splice_turn("run 1+", "run 1+1", call="(?s).+").kind == "call"


@settings(max_examples=30, deadline=None)
@given(
    st.text("ab \n", max_size=8),
    st.text("ab+1(", max_size=12),
    st.text("cd \n", max_size=8),
    st.text("ab+1(", max_size=12),
)
def test_nothing_of_the_failed_call_remains(reason, failed, again, works):
    out = splice_turn(reason + CODE.format(failed), again + CODE.format(works))
    assert out.text in {reason + CODE.format(works), again + CODE.format(works)}
    assert (out.kind == "call") == (out.similarity >= 0.5)


def test_errors_are_told_by_their_words():
    assert tool_failed("Traceback ... NameError: name 'prnt' is not defined")
    assert tool_failed("error: no tool 'x'")
    assert not tool_failed("42")
    assert tool_failed("42", errors=("4",))


class Picky:
    """Breaks at turns with an even number of letters; remembers the others."""

    def __init__(self, even):
        self.even = even

    def reset(self, problem, seed):
        self.done = []
        return problem.prompt

    def step(self, action):
        if self.even and len(action) % 2 == 0:
            return Step("ValueError", -1.0)
        self.done.append(action)
        return Step(f"{len(self.done)}", float(len(self.done)), terminated=len(self.done) == 2)


class PickyTask(EnvironmentTask):
    """Episodes of two turns that work."""

    def __init__(self, *, even: bool = True, max_turns: int = 9) -> None:
        super().__init__(max_turns=max_turns)
        self.even = even

    def environment(self):
        return partial(Picky, self.even)

    def train_batch(self, n, seed):
        return [Problem(seed + i, f"{i}") for i in range(n)]

    def eval_problems(self, n):
        return self.train_batch(n, 1000)

    def corpus(self):
        yield "0123456789 ValueError abcdefgh"


def recipe_of(home, **options):
    source = {"name": "saar_rollback", "call": "(?s).+", **options}
    return {
        "runs_dir": str(home),
        "task": {"name": PickyTask},
        "policy": {"name": "tiny_lm", "width": 16, "layers": 1, "heads": 2},
        "sampling": {"prompts": 6, "group_size": 4, "max_new_tokens": 4, "sources": [source]},
        "rewards": ["task"],
        "training": {"steps": 2},
        "evaluation": {"problems": 4},
    }


def drawn(home, **options):
    run = Run.start(load_recipe(recipe_of(home, **options)), overwrite=True, progress=QUIET)
    starts = Starts.repeat(run.task.train_batch(6, 0), 4)
    with torch.no_grad():
        return run, starts, collect.collect(run, starts, 0)


def played(run, rollouts):
    """The turns of each row, and what an environment says to them if they are made again."""
    for row in rollouts:
        count = int(row.turn.max()) + 1
        turns = run.policy.decode([row.tokens[row.turn == turn].tolist() for turn in range(count)])
        world = Picky(True)
        world.reset(Problem(0), 0)
        yield row, turns, [world.step(turn) for turn in turns]


def test_errors_that_were_put_right_are_gone(tmp_path):
    run, _, rollouts = drawn(tmp_path)
    plain = run.policy.sample(Starts.repeat(run.task.train_batch(6, 0), 4), run.sampling, seed=3)
    repaired = 0
    for row, turns, heard in played(run, rollouts):
        assert [step.reward for step in heard] == row.rewards["task"][: len(turns)].tolist()
        failed = [tool_failed(step.observation) for step in heard]
        assert bool(row.done) == heard[-1].terminated
        first = next((i for i, bad in enumerate(failed) if bad), None)
        if first is None:
            repaired += 1
            continue
        run_of = next((i for i, bad in enumerate(failed[first:]) if not bad), len(failed) - first)
        assert run_of > 3 or first + run_of == len(failed), "an error that was followed by success within 3 retries"
    before = [not any(tool_failed(s.observation) for s in heard) for _, _, heard in played(run, plain)]
    assert repaired > sum(before)


def test_log_probabilities_belong_to_the_text_as_it_stands(tmp_path):
    run, _, rollouts = drawn(tmp_path)
    assert torch.allclose(run.policy.evaluate(rollouts).logp, rollouts.old_logp, atol=1e-5)
    assert rollouts.mask.equal(rollouts.turn >= 0)
    assert rollouts.external is None


@pytest.mark.parametrize("options", [{"probability": 0.0}, {"most_calls": 0}])
def test_without_rollback_the_samples_are_the_plain_ones(tmp_path, options):
    run, starts, rollouts = drawn(tmp_path, **options)
    plain = run.policy.sample(starts, run.sampling, seed=collect._draw(run, None, starts, 0, 0, 0).seed)
    lengths = [len(turns) for _, turns, _ in played(run, rollouts)]
    assert lengths == [len(turns) for _, turns, _ in played(run, plain)]
    assert rollouts.rewards["task"].sum(dim=1).tolist() == plain.rewards["task"].sum(dim=1).tolist()


def test_a_share_of_trajectories_keeps_its_errors(tmp_path):
    clean = {}
    for probability in (0.0, 0.5, 1.0):
        run, _, rollouts = drawn(tmp_path, probability=probability)
        clean[probability] = sum(not any(tool_failed(s.observation) for s in h) for _, _, h in played(run, rollouts))
    assert clean[0.0] < clean[0.5] < clean[1.0]


def test_a_recipe_trains_with_it(tmp_path):
    assert guerdon.train(recipe_of(tmp_path), progress=QUIET).steps == 2


def test_a_task_without_turns_is_refused(tmp_path):
    run, starts, _ = drawn(tmp_path)
    draw = collect._draw(run, None, starts, 0, 0, 0)
    with pytest.raises(RecipeError, match="python_agent"):
        SaarRollback().draw(collect.replace(draw, sampling=LanguageSampling()))
