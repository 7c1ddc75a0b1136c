from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_recipes import WORDS

from guerdon.errors import RecipeError
from guerdon.monitor.progress import Progress
from guerdon.recipe import load_recipe
from guerdon.registry import get
from guerdon.sampling.hint_rejection import HintRejection, all_zero, first_letters, hinted, rows_to_replace
from guerdon.tasks.base import Problem, Starts
from guerdon.training import collect
from guerdon.training.run import Run

quick = settings(derandomize=True, deadline=None, max_examples=25)
NAN = float("nan")


def test_a_group_fails_when_none_of_it_earned_anything():
    group = torch.tensor([5, 5, 9, 9, 1, 1, 2])
    reward = torch.tensor([0.0, NAN, 0.0, 0.5, -1.0, 0.0, NAN])
    assert all_zero(reward, group).tolist() == [True, True, False, False, True, True, False]
    assert all_zero(reward, group, most=0.5).tolist() == [True] * 6 + [False]


@quick
@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 2**16))
def test_rows_that_give_way_differ_and_lie_in_chosen_groups(n, count, seed):
    generator = torch.Generator().manual_seed(seed)
    group = torch.randint(-2, 3, (n,), generator=generator)
    chosen = group % 2 == 0
    draws = torch.rand(n, generator=generator)
    rows = rows_to_replace(group, chosen, count, draws)
    for key in group.unique():
        members = group == key
        wanted = min(count, int(members.sum())) if key % 2 == 0 else 0
        assert int(rows[members].sum()) == wanted
        kept = rows & members
        if kept.any() and (members & ~rows).any():
            assert draws[kept].max() <= draws[members & ~rows].min()
    order = torch.randperm(n, generator=generator)
    assert torch.equal(rows_to_replace(group[order], chosen[order], count, draws[order]), rows[order])
    assert rows_to_replace(group[:0], chosen[:0], 1, draws[:0]).shape == (0,)


def test_every_row_is_as_likely_to_give_way():
    draws = torch.rand(8000, generator=torch.Generator().manual_seed(3))
    rows = rows_to_replace(torch.arange(1000).repeat_interleave(8), torch.ones(8000, dtype=torch.bool), 2, draws)
    assert (rows.view(1000, 8).float().mean(0) - 0.25).abs().max() < 0.05


def test_hints_stand_in_the_prompt():
    problem = Problem(1, "dog", answer="god", metadata={"hint": "think"})
    assert hinted(problem, lambda p: p.metadata["hint"]).prompt == "think\ndog"
    assert hinted(problem, first_letters, "{prompt} {hint}").prompt == "dog go"
    assert hinted(problem, lambda p: None) is None


def helped(text, prompt):
    """Give 1 to some texts."""
    return float(text > "m")


def graded(home, reward, **options):
    recipe = {
        **WORDS,
        "runs_dir": str(home),
        "sampling": {
            "prompts": 6,
            "group_size": 2,
            "max_new_tokens": 4,
            "sources": [{"name": "hint_rejection", "hint": first_letters, **options}],
        },
        "rewards": [reward],
        "training": {"steps": 1},
    }
    run = Run.start(load_recipe(recipe), overwrite=True, progress=Progress(quiet=True))
    problems = run.task.train_batch(6, 0)
    starts = Starts.repeat(problems, 2)
    with torch.no_grad():
        scored, _ = collect.grade(run, collect.collect(run, starts, 0), starts, 0)
    return run, problems, scored


def test_failed_prompts_get_right_answers_without_the_hint(tmp_path):
    run, problems, scored = graded(tmp_path, helped, accepted=2, tries=8)
    first = scored.rewards["helped"][:12].view(6, 2)
    more = scored[12:]
    failed = (first.amax(dim=1) == 0).nonzero().flatten().tolist()
    assert failed, "the seed must give prompts that fail"
    assert len(more), "the seed must give answers that are right with a hint"
    assert set(more.group.tolist()) <= set(failed)
    assert (more.group.bincount()[more.group.unique()] == 2).all()
    assert (more.rewards["helped"] == 1).all()
    assert list(more.prompt) == [problems[key].prompt for key in more.group.tolist()]
    assert scored.external is None
    with torch.no_grad():
        torch.testing.assert_close(more.old_logp, run.policy.evaluate(more).logp)


def test_nothing_joins_where_all_succeed_or_hints_do_not_help(tmp_path):
    def good(text):
        return 1.0

    def never(text):
        return 0.0

    assert len(graded(tmp_path, good)[2]) == 12
    assert len(graded(tmp_path, never, tries=2)[2]) == 12
    assert len(graded(tmp_path, good, always=True, accepted=1)[2]) == 18


def test_a_task_without_hints_is_refused():
    draw = SimpleNamespace(
        starts=Starts([Problem(1, "a")], torch.tensor([0])),
        rollouts=SimpleNamespace(group=torch.tensor([0])),
        reward=torch.zeros(1),
        round=0,
    )
    with pytest.raises(RecipeError, match="no problem of this batch has a hint"):
        HintRejection().draw(draw)
    draw.round = 1
    assert HintRejection().draw(draw) is None
    assert get("source", "hint_rejection").target is HintRejection
