from types import SimpleNamespace

import pytest
import torch

from guerdon.errors import TaskError
from guerdon.registry import get
from guerdon.sampling.paraphrase import Paraphrase, in_a_story
from guerdon.sampling.sources import Draw
from guerdon.tasks.base import Problem, Starts


def drawn(source, problems, size=2, seed=3):
    """The starts that a source asks the policy for."""
    policy = SimpleNamespace(sample=lambda starts, options, seed: starts)
    starts = Starts.repeat(problems, size, version=7)
    return starts, source.draw(Draw(policy, None, [], None, starts, None, None, 0, 0, seed))


def test_each_problem_gets_a_second_phrasing_in_a_group_of_its_own():
    problems = [
        Problem(4, "1 + 1?", "2", metadata={"other": "one and one"}),
        Problem(5, "2?", metadata={"other": "two"}),
    ]
    starts, more = drawn(Paraphrase(key="other"), problems)
    assert [problem.prompt for problem in more.problems] == ["one and one"] * 2 + ["two"] * 2
    assert torch.equal(more.task_id, starts.task_id)
    assert more.problems[0].answer == "2"
    assert not set(more.group.tolist()) & set(starts.group.tolist())
    assert (more.group.unique(return_inverse=True)[1] == starts.group).all()
    assert more.version == 7


def test_a_story_is_a_pure_function_of_the_seed():
    problems = [Problem(1, "What is 2 + 2?"), Problem(2, "Spell cat backward.")]
    prompts = [[p.prompt for p in drawn(Paraphrase(), problems, seed=seed)[1].problems] for seed in (3, 3, 4)]
    assert prompts[0] == prompts[1]
    assert all(p.endswith("What is 2 + 2?") and p != "What is 2 + 2?" for p in prompts[2][:2])
    assert in_a_story("x", 1).endswith(" x")


def test_a_phrasing_that_is_missing_is_named():
    with pytest.raises(TaskError, match="metadata of problem 'q' have no 'other'"):
        drawn(Paraphrase(key="other"), [Problem(1, "q", metadata={"other": " "})])


def test_recipes_find_it():
    assert get("source", "paraphrase").target is Paraphrase
