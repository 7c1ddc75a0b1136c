import pytest
import torch

from guerdon.errors import RecipeError
from guerdon.monitor.progress import Progress
from guerdon.policies.language_sampling import LanguageSampling
from guerdon.policies.tiny_lm import TinyLM
from guerdon.recipe import load_recipe
from guerdon.sampling.gold_chains import Compared, GoldChains, chunk_ends, continuation_logp
from guerdon.sampling.sources import Draw
from guerdon.tasks.base import Starts
from guerdon.tasks.reasoning_gym import ReasoningGym
from guerdon.training.folder import RunFolder
from guerdon.training.loop import train

RECIPE = {
    "task": {"name": "reasoning_gym", "dataset": "spell_backward", "config": {"min_word_len": 3, "max_word_len": 4}},
    "policy": {"name": "tiny_lm", "width": 16, "layers": 1, "heads": 2},
    "sampling": {
        "prompts": 3,
        "group_size": 4,
        "max_new_tokens": 5,
        "sources": [{"name": "gold_chains", "parts": 3, "chains": 2, "contains": False, "hint": "{prompt}{answer}"}],
    },
    "rewards": ["task", "path_faithfulness"],
    "shaping": [{"name": "outcome_or_process", "outcome": "task", "process": "path_faithfulness"}],
    "evaluation": {"problems": 4},
    "training": {"steps": 2},
}


@pytest.fixture(scope="module")
def drawn():
    torch.manual_seed(0)
    task = ReasoningGym(dataset="spell_backward", config={"min_word_len": 3, "max_word_len": 6})
    policy = TinyLM(task, width=16, layers=1, heads=2)
    starts = Starts.repeat(task.train_batch(3, 0), 2)
    return Draw(policy, task, [], LanguageSampling(max_new_tokens=6), starts, None, None, 0, 0, 0)


def test_equal_parts():
    assert chunk_ends(8, 4) == [2, 4, 6, 8]
    assert chunk_ends(3, 8) == [1, 2, 3]
    assert chunk_ends(7, 3) == [2, 5, 7]


def alone(policy, before, after):
    with torch.no_grad():
        logp = policy.model(torch.tensor([[*before, *after]])).log_softmax(dim=-1)[0, len(before) - 1 : -1]
    return float(logp.gather(1, torch.tensor([after]).T).sum())


def test_readings_against_one_pass_each(drawn):
    policy = drawn.policy
    before, after = [policy.encode("ab"), policy.encode("c")], [policy.encode("c"), policy.encode("abc")]
    together = continuation_logp(policy, before, after)
    assert together.tolist() == pytest.approx([alone(policy, *x) for x in zip(before, after, strict=True)], abs=1e-4)
    assert len(continuation_logp(policy, [], [])) == 0


def compared(policy, written, chain):
    return Compared(policy.encode("q"), policy.encode(written), policy.encode(chain), "z")


def test_a_beginning_that_is_its_mask_says_nothing(drawn):
    policy, source = drawn.policy, GoldChains(parts=4, placeholder="x")
    parts, single = source.faithfulness(policy, [compared(policy, "xxxx", "abcd"), compared(policy, "x", "a")])
    assert parts[:3] == pytest.approx([0.0] * 3, abs=1e-6)
    assert parts[3] == pytest.approx(alone(policy, policy.encode("qxxxx"), policy.encode("z")), abs=1e-4)
    assert single == pytest.approx([alone(policy, policy.encode("qx"), policy.encode("z"))], abs=1e-4)


def test_the_chain_that_makes_the_answer_likeliest(drawn):
    source = GoldChains(chains=3, contains=False)
    gold = source.good_chains(drawn.policy, drawn)
    assert gold.keys() == {0, 1, 2}
    assert all(gold.values())
    nothing = GoldChains(chains=3, contains=True).good_chains(drawn.policy, drawn)
    assert nothing == {0: [], 1: [], 2: []}  # an untrained policy never writes the answer


def test_what_cannot_work_is_refused():
    with pytest.raises(RecipeError, match=r"wanted a text with one \{\}"):
        GoldChains(form="")


def test_a_run_of_two_steps(tmp_path):
    recipe = RECIPE | {"runs_dir": str(tmp_path)}
    metrics = RunFolder.open(train(load_recipe(recipe), progress=Progress(quiet=True)).run).metrics()
    assert metrics["shaping/outcome_or_process/process"][0] > 0.5
    assert metrics["reward/path_faithfulness/std"][0] > 0
    assert all(x == 0 for x in metrics["faults"])
