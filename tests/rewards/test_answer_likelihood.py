import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.credit.jepo import jepo
from guerdon.errors import RecipeError
from guerdon.monitor.progress import Progress
from guerdon.policies.language_sampling import LanguageSampling
from guerdon.policies.tiny_lm import TinyLM
from guerdon.recipe import load_recipe
from guerdon.rewards.answer_likelihood import answer_likelihood, likelihood_reward, log_mean_prob, perplexity
from guerdon.sampling.reference_answer import ReferenceAnswer
from guerdon.sampling.sources import Draw
from guerdon.tasks.base import Starts
from guerdon.tasks.reasoning_gym import ReasoningGym
from guerdon.training.folder import RunFolder
from guerdon.training.loop import train

quick = settings(derandomize=True, deadline=None, max_examples=25)
RECIPE = {
    "task": {"name": "reasoning_gym", "dataset": "spell_backward", "config": {"min_word_len": 3, "max_word_len": 4}},
    "policy": {"name": "tiny_lm", "width": 16, "layers": 1, "heads": 2},
    "sampling": {"prompts": 3, "group_size": 4, "max_new_tokens": 3, "sources": ["reference_answer"]},
    "rewards": ["answer_likelihood", {"name": "task", "watch": True}],
    "evaluation": {"problems": 4},
    "training": {"steps": 2},
}


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [("log_prob", math.log(0.15)), ("avg_log_prob", math.log(0.15) / 2), ("prob", 0.15), ("avg_prob", 0.4)],
)
def test_kinds_by_hand(kind, wanted):
    logp = torch.tensor([[0.3, 0.5, math.nan], [0.3, 0.5, 0.9]], dtype=torch.float64).log()
    there = torch.tensor([[True, True, False], [True, True, False]])
    logp.requires_grad_(True)
    value = likelihood_reward(logp, there, kind=kind)
    assert value.tolist() == pytest.approx([wanted, wanted])
    value.sum().backward()
    assert logp.grad.isfinite().all()
    assert (logp.grad[:, 2] == 0).all()


def test_the_reward_reads_the_reference_alone():
    old_logp = torch.tensor([[-5.0, -1.0, -2.0, math.nan], [-5.0, 7.0, 7.0, 7.0]])
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    external = torch.tensor([[False, True, True, False], [False] * 4])
    first, second = answer_likelihood(old_logp, mask, external)
    assert first.value == pytest.approx(-3.0)
    assert first.detail == {"mean_logp": -1.5, "tokens": 2}
    assert first.valid
    assert not second.valid
    assert [score.valid for score in answer_likelihood(old_logp, mask)] == [False, False]


def test_jepo_by_hand():
    reward = torch.tensor([0.2, 0.6, 0.9], dtype=torch.float64).log()
    mask = torch.ones(3, 2).bool()
    credit, stats = jepo(reward, torch.tensor([4, 4, 7]), mask)
    assert credit[:, 0].tolist() == pytest.approx([math.log(0.4 / 0.6), math.log(0.4 / 0.2), 0.0])
    assert stats["log_prob_mc"] == pytest.approx((math.log(0.4) + math.log(0.9)) / 2)


def test_sums_stay_in_log_space():
    reward = torch.tensor([-2000.0, -2000.0 + math.log(3.0), -3000.0], dtype=torch.float64)
    group = torch.zeros(3, dtype=torch.int64)
    assert log_mean_prob(reward, group).tolist() == pytest.approx([-2000 + math.log(4 / 3)] * 3)
    credit = jepo(reward, group, torch.ones(3, 1).bool())[0][:, 0].tolist()
    whole = -2000 + math.log(4 / 3)
    others = [-2000 + math.log(3 / 2), -2000 - math.log(2), -2000 + math.log(4 / 2)]
    assert credit == pytest.approx([whole - x for x in others])


def test_perplexity():
    assert float(perplexity(torch.tensor([math.log(0.5), math.log(1 / 8)]))) == pytest.approx(4.0)


@quick
@given(st.lists(st.tuples(st.floats(-30, 0), st.integers(0, 2)), min_size=1, max_size=8), st.integers(0, 99))
def test_jepo_against_brute_force(rows, seed):
    reward = torch.tensor([x for x, _ in rows], dtype=torch.float64)
    group = torch.tensor([g for _, g in rows])
    mask = torch.rand(len(rows), 3, generator=torch.Generator().manual_seed(seed)) > 0.3
    credit, _ = jepo(reward, group, mask)
    for i, g in enumerate(group.tolist()):
        mine = reward[group == g].exp()
        others = mine.sum() - reward[i].exp()
        if len(mine) == 1:
            wanted = 0.0
        elif float(others) < 1e-9 * float(mine.sum()):
            continue  # the brute force has lost what is left
        else:
            wanted = math.log(mine.mean()) - math.log(others / (len(mine) - 1))
        assert credit[i][mask[i]].tolist() == pytest.approx([wanted] * int(mask[i].sum()), abs=1e-5)
    assert (credit[~mask] == 0).all()
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(jepo(reward[order], group[order], mask[order])[0], credit[order])


@pytest.fixture(scope="module")
def drawn():
    torch.manual_seed(0)
    task = ReasoningGym(dataset="spell_backward", config={"min_word_len": 3, "max_word_len": 6})
    policy = TinyLM(task, width=16, layers=1, heads=2)
    starts = Starts.repeat(task.train_batch(3, 0), 2)
    return Draw(policy, task, [], LanguageSampling(max_new_tokens=4), starts, None, None, 0, 0, 0)


def test_references_stand_behind_completions(drawn):
    rollouts = ReferenceAnswer(form=" so {}!", end=True).draw(drawn)
    policy = drawn.policy
    plain = policy.sample(drawn.starts, drawn.sampling, seed=0)
    assert list(rollouts.text) == list(plain.text)
    for row, problem in enumerate(drawn.starts.problems):
        theirs = rollouts.tokens[row][rollouts.external[row]].tolist()
        assert theirs == [*policy.encode(f"{problem.answer}!"), policy.eos]
        own = rollouts.tokens[row][rollouts.mask[row] & ~rollouts.external[row]].tolist()
        assert own == plain.tokens[row][plain.mask[row]].tolist()
    torch.testing.assert_close(policy.evaluate(rollouts).logp, rollouts.old_logp, atol=1e-4, rtol=0)
    assert torch.equal(rollouts.group, plain.group)


def test_score_and_source_agree(drawn):
    rollouts = ReferenceAnswer().draw(drawn)
    given = answer_likelihood(rollouts.old_logp, rollouts.mask, rollouts.external)
    policy = drawn.policy
    row = int((~rollouts.done).nonzero()[0])  # without an end token its text is all that was read
    problem = drawn.starts.problems[row]
    own = rollouts.tokens[row][rollouts.mask[row] & ~rollouts.external[row]].tolist()
    prefix = policy.encode_prompt(problem.prompt)
    answer = policy.encode(str(problem.answer))
    ids = torch.tensor([[*prefix, *own, *answer]])
    with torch.no_grad():
        logp = policy.model(ids).log_softmax(dim=-1)[0, len(prefix) + len(own) - 1 : -1]
    assert given[row].value == pytest.approx(float(logp.gather(1, torch.tensor([answer]).T).sum()), abs=1e-4)


def test_what_cannot_work_is_refused(drawn):
    with pytest.raises(RecipeError, match=r"wanted a text with one \{\}"):
        ReferenceAnswer(form="none")


@pytest.mark.parametrize(("credit", "kind", "term"), [("rloo", "avg_prob", "avg_prob"), ("jepo", "log_prob", "jepo")])
def test_a_run_without_a_verifier(tmp_path, credit, kind, term):
    recipe = RECIPE | {
        "runs_dir": str(tmp_path),
        "rewards": [{"name": "answer_likelihood", "kind": kind}, {"name": "task", "watch": True}],
        "credit": credit,
        "objective": {"name": "reinforce", "aggregate": "sum_over_max_length"},
        "terms": [{"name": "answer_term", "kind": term, "aggregate": "sum_over_max_length"}],
    }
    result = train(load_recipe(recipe), progress=Progress(quiet=True))
    metrics = RunFolder.open(result.run).metrics()
    seen = metrics["credit/jepo/log_prob_mc"] if credit == "jepo" else metrics["reward/answer_likelihood/mean"]
    assert metrics["update/answer_term/likelihood"] == pytest.approx(seen, abs=1e-4)
    assert all(x == 0 for x in metrics["faults"])
