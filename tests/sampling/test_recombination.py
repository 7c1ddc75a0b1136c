from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.errors import RecipeError
from guerdon.monitor.progress import Progress
from guerdon.policies.language_sampling import LanguageSampling
from guerdon.policies.tiny_lm import TinyLM
from guerdon.sampling.recombination import Cure, critical_positions, cure_branch, eligible_tokens
from guerdon.tasks.base import Problem, Starts, Task
from guerdon.training.folder import RunFolder
from guerdon.training.loop import train


class Copying(Task):
    kind = "language"

    def train_batch(self, n, seed):
        return [Problem(i, prompt=p, answer=p) for i, p in enumerate(["ab c", "b", "abba", "bbb"] * n)][:n]

    def eval_problems(self, n):
        return self.train_batch(n, 0)


@pytest.fixture(scope="module")
def written():
    torch.manual_seed(0)
    policy = TinyLM(Copying(), width=16, layers=1, heads=2)
    with torch.no_grad():
        policy.module["model"].embed.weight.mul_(10)
        options = LanguageSampling(max_new_tokens=8)
        return policy, options, policy.sample(Starts.repeat(Copying().train_batch(4, 0), 3), options, seed=1)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 12), st.sampled_from(["entropy", "random"]))
def test_only_eligible_positions_of_the_highest_entropies_are_picked(seed, k, ranking):
    generator = torch.Generator().manual_seed(seed)
    entropy = torch.rand(6, 9, generator=generator)
    eligible = torch.rand(6, 9, generator=generator) < 0.5
    entropy[~eligible] = float("nan")
    at = critical_positions(entropy, eligible, k=k, ranking=ranking, generator=generator)
    for row, allowed, place in zip(entropy, eligible, at.tolist(), strict=True):
        fit = allowed.nonzero().flatten().tolist()
        fit = [t for t in fit if t > 0]
        best = sorted(fit, key=lambda t, row=row: -row[t])[:k] if ranking == "entropy" else fit
        assert place in best if best else place == -1


def test_candidates_are_drawn_evenly():
    entropy = torch.arange(10.0).expand(3000, -1)
    at = critical_positions(entropy, torch.ones(3000, 10), k=5, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(at, minlength=10)
    assert not counts[:5].any()
    assert ((counts[5:] - 600).abs() < 5 * 600**0.5).all()
    one = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    pair = [critical_positions(entropy, torch.ones(3000, 10), k=5, generator=g) for g in one]
    assert torch.equal(*pair)


def test_nothing_to_pick_from():
    generator = torch.Generator()
    assert critical_positions(torch.zeros(2, 0), torch.zeros(2, 0), generator=generator).tolist() == [-1, -1]
    assert critical_positions(torch.zeros(0, 3), torch.zeros(0, 3), generator=generator).shape == (0,)


def test_special_and_blank_tokens_are_not_eligible(written):
    policy, _, rollouts = written
    eligible = eligible_tokens(policy, rollouts, least_characters=1)
    texts = [[policy.tokenizer.decode([t]) for t in row] for row in rollouts.tokens.tolist()]
    special = torch.isin(rollouts.tokens, torch.tensor(policy.tokenizer.all_special_ids))
    blank = torch.tensor([[not text.strip() for text in row] for row in texts])
    assert (special & rollouts.mask).any()
    assert torch.equal(eligible, rollouts.mask & ~special & ~blank)
    assert not eligible_tokens(policy, rollouts).any()  # single characters


def test_branches_keep_the_beginning_as_context_and_learn_from_the_rest(written):
    policy, options, rollouts = written
    branches = cure_branch(policy, rollouts, options, seed=5, branches=3, k=2, least_characters=1)
    assert torch.equal(branches.group, rollouts.group[branches.parent])
    place = torch.arange(branches.mask.shape[1])
    for i, (parent, at) in enumerate(zip(branches.parent.tolist(), branches.branch_at.tolist(), strict=True)):
        assert at >= 1
        assert torch.equal(branches.tokens[i, :at], rollouts.tokens[parent, :at])
        assert not branches.mask[i, :at].any()
        length = int(branches.payload["attention"][i, branches.payload["prompt_tokens"].shape[1] :].sum())
        assert torch.equal(branches.mask[i], (place >= at) & (place < length))
        assert length <= options.max_new_tokens
        assert branches.text[i].startswith(policy.decode([rollouts.tokens[parent, :at].tolist()])[0].strip())
    assert branches.mask.any(dim=1).all()
    evaluation = policy.evaluate(branches)
    torch.testing.assert_close(evaluation.logp.detach(), branches.old_logp, atol=1e-5, rtol=0)
    joined = policy.join([rollouts, branches])
    torch.testing.assert_close(policy.evaluate(joined).logp.detach(), joined.old_logp, atol=1e-5, rtol=0)
    assert cure_branch(policy, rollouts, options, seed=5) is None


def recipe(folder, **changes):
    return {
        "name": "cure",
        "runs_dir": str(folder),
        "task": {"name": "reasoning_gym", "dataset": "spell_backward", "config": {"max_word_len": 4}},
        "policy": {"name": "tiny_lm", "width": 16, "layers": 1, "heads": 2},
        "sampling": {
            "prompts": 2,
            "group_size": 2,
            "max_new_tokens": 6,
            "sources": [{"name": "cure", "branches": 3, "least_characters": 1, "steps": 1}],
        },
        "rewards": [{"name": "regex", "pattern": "[a-m].*"}],
        "objective": "dapo",
        "training": {"steps": 2},
        "evaluation": {"problems": 2},
        "logging": {"rollouts_every": 1},
        **changes,
    }


def test_a_recipe_trains_through_both_stages(tmp_path):
    folder = RunFolder.open(train(recipe(tmp_path), progress=Progress(quiet=True)).run)
    rows = {step: folder.rollouts(step) for step in (0, 1)}
    assert len(rows[1]) == 16
    assert 4 < len(rows[0]) <= 16


def test_policies_that_do_not_write_are_refused():
    draw = SimpleNamespace(policy=object(), sampling=None, starts=None, rollouts=None)
    with pytest.raises(RecipeError, match="needs a policy that writes, and 'object' does not"):
        Cure().draw(draw)
