"""guerdon inside TRL's own trainer, on a model of a few thousand weights."""

import copy
import random
from pathlib import Path

import letters_lm
import pytest
import torch

pytest.importorskip("trl", reason="the trl extra is not installed")

from guerdon.credit.group import gdpo
from guerdon.errors import MissingField, RecipeError
from guerdon.integrations.columns import as_rollouts
from guerdon.integrations.trl import GRPOTrainer, reward


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A model, its tokenizer and a dataset of four letters and the first of them as the answer."""
    from datasets import Dataset

    model, tokenizer = letters_lm.make()
    draw = random.Random(0)
    rows = [{"prompt": "".join(draw.choices("abcdefgh", k=4)) + "?"} for _ in range(16)]
    data = Dataset.from_list([row | {"answer": row["prompt"][0]} for row in rows])
    return tmp_path_factory.mktemp("trl"), model, tokenizer, data


def trainer(parts, rewards, *, steps=2, **settings):
    from trl import GRPOConfig

    folder, model, tokenizer, data = parts
    own = {name: settings.pop(name) for name in ("shaping", "credit") if name in settings}
    options = GRPOConfig(
        output_dir=str(folder / "run"),
        per_device_train_batch_size=16,
        num_generations=4,
        max_completion_length=5,
        max_steps=steps,
        logging_steps=1,
        save_steps=steps,
        report_to=[],
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        **settings,
    )
    return GRPOTrainer(copy.deepcopy(model), rewards, options, data, processing_class=tokenizer, **own)


def vowels(text: str) -> float:
    return sum(c in "ae" for c in text) / 5


def letters(text: str) -> float:
    return 10.0 * len(set(text))


def test_credit_is_that_of_the_function_by_hand(parts, monkeypatch):
    rewards = [reward(vowels), reward(letters)]
    made = trainer(parts, rewards, steps=1, credit={"name": "gdpo"}, reward_weights=[1.0, 0.5])
    seen = {}
    before = GRPOTrainer._generate_and_score_completions

    def listen(self, inputs):
        output = before(self, inputs)
        seen.update(output, scores=self._scores.clone())
        return output

    monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", listen)
    made.train()
    group, mask = torch.arange(16) // 4, seen["completion_mask"].bool()
    names, weights = ("vowels", "letters"), torch.tensor([1.0, 0.5])
    expected = gdpo(seen["scores"], group, mask, weights)
    assert made.signal.names == names
    assert seen["advantages"].shape == mask.shape
    assert torch.allclose(seen["advantages"], expected.float(), atol=1e-5)
    assert seen["advantages"].abs().sum() > 0
    assert list(made._logs["advantages"])[-16:] == pytest.approx(
        ((expected * mask).sum(1) / mask.sum(1).clamp(min=1)).tolist(), abs=1e-5
    )


def test_it_learns_and_logs_what_credit_tells(parts):
    made = trainer(parts, [reward(vowels)], steps=25, learning_rate=0.02, credit="grpo")
    made.train()
    history = [row for row in made.state.log_history if "reward" in row]
    first, last = (sum(row["reward"] for row in rows) / 5 for rows in (history[:5], history[-5:]))
    assert last > first + 0.2
    assert all(row["credit/grpo/abs_mean"] >= 0 for row in history)
    assert all(row["faults/vowels"] == 0 for row in history)


def fails_on_b(text: str) -> float:
    if "b" in text:
        raise ValueError("no b")
    return 1.0 * ("a" in text)


def test_faults_are_none_and_hangs_end():
    texts = ["ab", "a", "c", "d"]
    ids = [[2] * len(text) for text in texts]
    told = {}
    ask = {"prompts": ["q"] * 4, "completions": texts, "completion_ids": ids, "log_metric": told.__setitem__}
    assert reward(fails_on_b)(**ask) == [None, 1.0, 0.0, 0.0]
    assert told == {"faults/fails_on_b": 1.0}
    patient = reward(f"{Path(__file__).parent / 'slow_rewards.py'}:hangs", timeout=1.0, workers=1)
    assert patient(**ask) == [1.0, 1.0, None, 1.0]
    patient.close()


def test_rewards_of_the_registry_read_the_columns_of_the_dataset():
    chat = [[{"role": "assistant", "content": text}] for text in ("a", "b")]
    ask = {"prompts": ["q", "q"], "completions": chat, "completion_ids": [[2], [3]], "answer": ["a", "a"]}
    assert reward("exact")(**ask) == [1.0, 0.0]
    assert reward({"name": "regex", "pattern": "^b$"}, label="b").__name__ == "b"
    ask = {"prompts": ["p", "p", "p", "q"], "completions": ["a", "a", "b", "c"], "completion_ids": [[1]] * 4}
    assert reward("majority_vote")(**ask)[:3] == [1, 1, 0]  # of its group


def test_a_completion_that_nothing_could_score_has_no_credit(parts):
    made = trainer(parts, [reward(fails_on_b)], steps=1)
    made._scores = torch.tensor([[1.0], [float("nan")], [0.0], [0.0]])
    rollouts = as_rollouts(
        torch.ones(4, 2).bool(),
        torch.zeros(4, dtype=torch.int64),
        prompts=["q"] * 4,
        completions=["a"] * 4,
        columns={},
        truncated=torch.zeros(4).bool(),
    )
    rollouts.rewards["fails_on_b"] = made._scores[:, 0]
    credit, _ = made._credit(rollouts)
    assert credit[1].tolist() == [0, 0]
    assert credit[[0, 2, 3]].sum().abs() < 1e-5
    assert credit[0, 0] > 0


def test_memory_of_methods_goes_through_checkpoints(parts):
    first = trainer(parts, [reward(vowels)], steps=2, credit="shrinkage_baseline")
    first.train()
    state = first.signal.credit[0].state_dict()
    again = trainer(parts, [reward(vowels)], steps=3, credit="shrinkage_baseline")
    again.create_optimizer_and_scheduler(3)
    again._load_optimizer_and_scheduler(str(parts[0] / "run" / "checkpoint-2"))
    loaded = again.signal.credit[0].state_dict()
    assert state
    assert repr(loaded) == repr(state)


def test_what_cannot_be_is_refused_before_a_model_is_loaded(parts):
    with pytest.raises(MissingField, match=r"'gae'.*'values'"):
        trainer(parts, [reward(vowels)], credit="gae")
    with pytest.raises(RecipeError, match="no 'weight'; use GRPOConfig"):
        reward("exact", weight=2.0)
    with pytest.raises(RecipeError, match="did you mean 'exact'"):
        reward("exactt")
    with pytest.raises(RecipeError, match="belongs to a task"):
        reward("task")
