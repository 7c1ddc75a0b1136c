import math

import pytest
import torch

from guerdon.monitor.progress import Progress
from guerdon.policies.language_sampling import LanguageSampling
from guerdon.policies.tiny_lm import TinyLM
from guerdon.recipe import load_recipe
from guerdon.sampling.sources import Draw
from guerdon.sampling.step_probe import StepProbe, probe_accuracy, probe_confidence, step_ends
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
        "max_new_tokens": 6,
        "sources": [{"name": "step_probe", "delimiter": "e", "ask": "=", "samples": 2, "tokens": 2}],
    },
    "credit": "spae",
    "evaluation": {"problems": 4},
    "training": {"steps": 2},
}


def test_where_steps_end():
    assert step_ends(["a.", "\n", "\nb", ".\n\n", "c"], ".\n\n", None) == [2, 3]
    assert step_ends(list("a.\n\nb</think>c.\n\n"), ".\n\n", "</think>") == [3]
    assert step_ends([".\n\n.\n\n"], ".\n\n", None) == [0]
    assert step_ends(["abc"], ".", "</think>") == []
    assert step_ends([], ".", None) == []


def test_accuracy_and_confidence_by_hand():
    logp = torch.tensor([[0.2, 0.6, math.nan]], dtype=torch.float64).log()
    valid = torch.tensor([[True, True, False]])
    assert probe_accuracy(logp, valid).tolist() == pytest.approx([0.4])
    assert probe_accuracy(logp, valid, probe="released").tolist() == pytest.approx([0.06])
    entropy = torch.tensor([[[0.2, 0.4, math.nan], [0.6, math.nan, math.nan]]], dtype=torch.float64)
    there = torch.tensor([[[True, True, False], [True, False, False]]])
    assert probe_confidence(entropy, there).tolist() == pytest.approx([(math.exp(-0.3) + math.exp(-0.6)) / 2])
    released = (math.exp(-0.6) / 2 + math.exp(-0.6)) / 2
    assert probe_confidence(entropy, there, probe="released").tolist() == pytest.approx([released])


def test_probes_of_a_policy():
    torch.manual_seed(0)
    task = ReasoningGym(dataset="spell_backward", config={"min_word_len": 3, "max_word_len": 6})
    policy = TinyLM(task, width=16, layers=1, heads=2)
    starts = Starts.repeat(task.train_batch(3, 0), 2)
    draw = Draw(policy, task, [], LanguageSampling(max_new_tokens=20), starts, None, None, 0, 0, 0)
    rollouts = StepProbe(delimiter="e", until=None, ask="=", samples=2, tokens=3).draw(draw)
    plain = policy.sample(starts, draw.sampling, seed=0)
    assert torch.equal(rollouts.tokens, plain.tokens)
    total = 0
    for row, problem in enumerate(starts.problems):
        probe = rollouts.metadata[row]["step_probe"]
        assert set(rollouts.metadata[row]) > {"step_probe"} or not plain.metadata[row]
        total += len(probe["ends"])
        assert all(0 < x <= 1 for x in probe["confidence"])
        own = rollouts.tokens[row][rollouts.mask[row]].tolist()
        for end, accuracy in zip(probe["ends"], probe["accuracy"], strict=True):
            assert policy.decode([[own[end]]]) == ["e"]
            answer = policy.encode(str(problem.answer))
            ids = torch.tensor([[*policy.encode_prompt(problem.prompt), *own[: end + 1], *policy.encode("="), *answer]])
            with torch.no_grad():
                probs = policy.model(ids).softmax(dim=-1)[0, -len(answer) - 1 : -1]
            assert accuracy == pytest.approx(float(probs.gather(1, torch.tensor([answer]).T).mean()), abs=1e-5)
    assert total > 0


def test_a_run_of_two_steps(tmp_path):
    recipe = RECIPE | {"runs_dir": str(tmp_path)}
    metrics = RunFolder.open(train(load_recipe(recipe), progress=Progress(quiet=True)).run).metrics()
    assert metrics["credit/spae/right_to_wrong"] == [0.0, 0.0]
    assert all(x == 0 for x in metrics["faults"])
