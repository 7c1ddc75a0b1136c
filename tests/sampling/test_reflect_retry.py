import json

import pytest
import torch

import guerdon
from guerdon.errors import RecipeError
from guerdon.monitor.progress import Progress
from guerdon.recipe import load_recipe
from guerdon.sampling.reflect_retry import ReflectRetry, improved, read_report
from guerdon.tasks.base import Starts
from guerdon.training import collect
from guerdon.training.run import Run

QUIET = Progress(quiet=True)
SEEN = []


def report(step=0, guidance="go up", outcome="flawed"):
    return json.dumps({"outcome": outcome, "diagnosis": "d", "retry_from_step": step, "guidance": guidance})


def test_reports_are_read_out_of_whatever_stands_around_them():
    read = read_report(f"Well.\n```json\n{report(2)}\n```", turns=4)
    assert read is not None
    assert (read.perfect, read.retry_from, read.guidance, read.diagnosis) == (False, 2, "go up", "d")
    assert read_report(report(outcome="Perfect"), turns=1).perfect


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "{broken",
        "[1]",
        "{}",
        report(4),
        report(-1),
        report(True),
        report("1"),
        report(1.0),
        report(guidance=" "),
        report(guidance=None),
        "{" * 5000 + "}" * 5000,
    ],
)
def test_what_can_not_be_followed_is_no_report(text):
    assert read_report(text, turns=4) is None


def test_only_retries_that_succeed_where_the_attempt_did_not_are_taught():
    first, second = torch.tensor([0.0, 0.5, 1.0, 0.0, float("nan")]), torch.tensor([1.0, 0.9, 1.0, float("nan"), 1.0])
    assert improved(first, second).tolist() == [True, False, False, False, False]


def early(answer):
    """Give 1 where the answer begins with a letter of the first half: a prompt always succeeds or always fails."""
    return float(answer < "n")


def fixed(prompts, transcripts, rewards):
    """Find fault with every second attempt that failed, and write no JSON about the others."""
    SEEN.append((list(prompts), list(transcripts), list(rewards)))
    return [report() if reward < 1 and place % 2 else "fine" for place, reward in enumerate(rewards)]


def second_turn(prompts, transcripts, rewards):
    """Let every attempt of two turns or more begin anew behind its first."""
    SEEN.append((list(prompts), list(transcripts), list(rewards)))
    return [report(1, "key first") for _ in prompts]


def recipe_of(home, **changes):
    words = {"min_word_len": 3, "max_word_len": 4}
    return {
        "runs_dir": str(home),
        "task": {"name": "reasoning_gym", "dataset": "spell_backward", "config": words},
        "policy": {"name": "tiny_lm", "width": 16, "layers": 1, "heads": 2},
        "sampling": {
            "prompts": 4,
            "group_size": 2,
            "max_new_tokens": 4,
            "sources": [{"name": "reflect_retry", "reflector": fixed}],
        },
        "rewards": [early],
        "credit": ["positive_amplification", "pivotal"],
        "objective": "opmd",
        "training": {"steps": 2},
        "evaluation": {"problems": 4},
        "logging": {"rollouts_every": 1},
    } | changes


GRID = {
    "task": {"name": "gridtext", "size": 3, "max_turns": 4, "skill": 0.4},
    "policy": {"name": "tiny_lm", "width": 16, "layers": 1, "heads": 2, "tokenizer": "word"},
    "warm_start": {"steps": 3, "batch": 8},
    "rewards": ["task"],
}


def graded(home, **changes):
    run = Run.start(load_recipe(recipe_of(home, **changes)), overwrite=True, progress=QUIET)
    starts = Starts.repeat(run.task.train_batch(4, 0), 2)
    with torch.no_grad():
        scored, _ = collect.grade(run, collect.collect(run, starts, 0), starts, 0)
    return run, starts, scored


def test_retries_of_answers_join_the_group_without_their_advice(tmp_path):
    SEEN.clear()
    run, _, scored = graded(tmp_path)
    prompts, transcripts, rewards = SEEN[0]
    assert len(prompts) == 8
    assert all(text.startswith("[0] ") for text in transcripts)
    flawed = [place for place, reward in enumerate(rewards) if reward < 1 and place % 2]
    assert flawed, "the seed must give prompts that fail"
    assert len(scored) == 8 + len(flawed), "early() gives retries what it gave the attempts, so none is taught"
    retries = scored[8:]
    assert retries.group.tolist() == scored.group[flawed].tolist()
    assert [str(p) for p in retries.prompt] == [prompts[row] for row in flawed]
    assert retries.external.equal(retries.mask)
    assert not scored.external[:8].any()
    assert torch.allclose(run.policy.evaluate(scored).logp[8:], retries.old_logp, atol=1e-5)
    assert [known.get("pivot") for known in scored.metadata[:8]] == [0 if row in flawed else None for row in range(8)]


def test_episodes_go_on_behind_the_turns_that_are_kept(tmp_path):
    SEEN.clear()
    sources = [{"name": "reflect_retry", "reflector": second_turn}]
    sampling = {"prompts": 4, "group_size": 2, "max_new_tokens": 3, "sources": sources}
    run, _, scored = graded(tmp_path, sampling=sampling, **GRID)
    base, more = scored[:8], scored[8:]
    kept = (base.turn.amax(dim=1) >= 1).nonzero().flatten()
    retries = more[: len(kept)]
    assert retries.group.equal(base.group[kept])
    for parent, retry in zip(base[kept], retries, strict=True):
        shared = [row.tokens[row.turn == 0].tolist() for row in (parent, retry)]
        assert shared[0] == shared[1]
        assert parent.metadata["pivot"] == retry.metadata["pivot"] == 1
        assert parent.prompt == retry.prompt
        assert "advice" not in retry.prompt.lower()
    assert torch.allclose(run.policy.evaluate(scored).logp[8:], scored.old_logp[8:], atol=1e-5)


def test_successful_retries_are_taught_with_their_advice_in_groups_of_their_own(tmp_path):
    count = iter(range(1000))

    def later(text):
        """Fail the eight attempts and let whatever comes after succeed."""
        return float(next(count) >= 8)

    run, _, scored = graded(tmp_path, rewards=[later])
    taught = scored[12:]
    assert len(taught) == 4
    assert sorted(taught.group.tolist()) == [4, 5, 6, 7]
    assert all("Advice from an earlier attempt: go up" in str(prompt) for prompt in taught.prompt)
    for row, retry in zip(taught, scored[8:12], strict=True):
        assert row.tokens[row.mask].tolist() == retry.tokens[retry.mask].tolist()
    assert torch.allclose(run.policy.evaluate(scored).logp[12:], taught.old_logp, atol=1e-5)
    assert not torch.allclose(taught.old_logp, scored.old_logp[8:12], atol=1e-4), "read behind the advice"


@pytest.mark.parametrize("changes", [{}, GRID], ids=["answers", "episodes"])
def test_a_recipe_trains_with_it(tmp_path, changes):
    name = "reflect_retry"
    source = {"name": name, "reflector": second_turn if changes else fixed}
    sampling = {"prompts": 4, "group_size": 2, "max_new_tokens": 3, "sources": [source]}
    result = guerdon.train(recipe_of(tmp_path, sampling=sampling, **changes), progress=QUIET)
    assert result.steps == 2


def test_the_policy_can_reflect_itself(tmp_path):
    sources = [{"name": "reflect_retry", "report_tokens": 4}]
    _, _, scored = graded(tmp_path, sampling={"prompts": 4, "group_size": 2, "max_new_tokens": 3, "sources": sources})
    assert len(scored) == 8, "an untrained model writes no JSON"


def test_a_tool_and_a_policy_that_does_not_write_are_refused(tmp_path):
    run, starts, scored = graded(tmp_path)
    draw = collect._draw(run, scored, starts, 0, 0, 0)
    tool = run.sampling.model_copy(update={"tool": object()})
    with pytest.raises(RecipeError, match=r"remove 'sampling.tool'"):
        ReflectRetry(reflector=fixed).draw(collect.replace(draw, sampling=tool, reward=torch.zeros(len(scored))))
    with pytest.raises(RecipeError, match="needs a policy that writes"):
        ReflectRetry().draw(collect.replace(draw, policy=object()))
    short = ReflectRetry(reflector=lambda prompts, texts, rewards: [])
    with pytest.raises(RecipeError, match="gave 0 reports"):
        short.draw(collect.replace(draw, reward=torch.zeros(len(scored))))
