import json

import pytest
import torch

from guerdon.credit.group import grpo
from guerdon.errors import RecipeError
from guerdon.objectives.policy import ppo_clip
from guerdon.objectives.replayed import replay_clip
from guerdon.policies.language import LanguageSampling
from guerdon.policies.tiny_lm import TinyLM
from guerdon.recipe import load_recipe
from guerdon.rollouts import make_rollouts
from guerdon.sampling.sources import Draw
from guerdon.sampling.success_replay import SuccessBuffer, SuccessReplay, all_failed, replace_first
from guerdon.seeding import torch_generator
from guerdon.tasks.base import Problem, Starts, Task
from guerdon.training.plan import make_plan

NAN = float("nan")


class Words(Task):
    """Two words to write."""

    kind = "language"

    def train_batch(self, n, seed):
        return [Problem(7 + i, prompt=word, answer=word) for i, word in enumerate(["ab", "ba"])][:n]

    def eval_problems(self, n):
        return self.train_batch(n, 0)


@pytest.fixture(scope="module")
def policy():
    torch.manual_seed(0)
    return TinyLM(Words(), width=16, layers=1, heads=2)


def draw_of(policy, reward, *, step=0, turn=0, seed=3):
    starts = Starts.repeat(Words().train_batch(2, 0), 3, step)
    sampling = LanguageSampling(max_new_tokens=4)
    with torch.no_grad():
        rollouts = policy.sample(starts, sampling, seed=seed)
    return Draw(policy, Words(), [], sampling, starts, rollouts, torch.tensor(reward), step, turn, seed)


def test_a_group_has_failed_if_it_is_low_and_agrees():
    group = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5])
    reward = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.1, 0.15, NAN, NAN, 0.0])
    assert all_failed(reward, group).tolist() == [True] * 2 + [False] * 4 + [True] * 2 + [False] * 2 + [True]
    assert all_failed(torch.tensor([0.0, NAN]), torch.tensor([4, 4])).tolist() == [True, True]
    assert not all_failed(torch.tensor([0.1, 0.3]), torch.zeros(2).long()).any()
    assert all_failed(torch.tensor([0.1, 0.3]), torch.zeros(2).long(), spread=0.5, mean=0.25).all()


def test_the_buffer_keeps_the_newest_of_each_problem():
    buffer = SuccessBuffer[int](per_task=2)
    for item in range(4):
        buffer.add(1, item)
    buffer.add(2, 9)
    generator = torch_generator(0, "x")
    assert {buffer.draw(1, generator) for _ in range(30)} == {2, 3}
    assert buffer.draw(2, generator) == 9
    assert buffer.draw(3, generator) is None


def rows(n, t=3):
    flags = torch.ones(n, dtype=torch.bool)
    mask = torch.arange(t) < torch.tensor([t, 2])[torch.arange(n) % 2].unsqueeze(1)
    return make_rollouts(
        torch.arange(n) // 2 * 10,
        torch.arange(n) // 2,
        mask,
        -torch.arange(1.0, n * t + 1).reshape(n, t),
        done=flags,
        truncated=~flags,
        payload={"state": torch.arange(n)},
        reward=torch.zeros(n),
    )


def test_one_success_stands_in_for_the_first_of_a_failed_group():
    batch, success = rows(6), rows(2)[1:2]
    success.reward, success.payload["state"] = torch.ones(1), torch.tensor([99])
    failed = all_failed(batch.reward, batch.group)
    failed[4:] = False
    mixed = replace_first(batch, failed, {10: success, 20: success})
    assert mixed.group.tolist() == batch.group.tolist()
    assert mixed.payload["state"].tolist() == [0, 1, 99, 3, 4, 5]
    assert mixed.reward.tolist() == [0, 0, 1, 0, 0, 0]
    assert torch.equal(mixed.old_logp[2], success.old_logp[0])
    assert torch.equal(mixed.external[2], success.mask[0])
    assert not mixed.external[[0, 1, 3, 4, 5]].any()
    credit = grpo(mixed.reward, mixed.group, mixed.mask)
    assert credit[2, 0] > 0 > credit[3, 0]
    assert credit[2, 0] + credit[3, 0] == 0
    assert batch.external is None
    assert batch.payload["state"].tolist() == list(range(6))
    assert success.group.tolist() == [0]
    assert replace_first(batch, failed, {}) is batch
    assert replace_first(batch, torch.zeros(6, dtype=torch.bool), {10: success}) is batch


def test_a_source_adds_a_success_where_all_fail(policy):
    source = SuccessReplay(per_task=2)
    first = draw_of(policy, [1.0, 0.0, 0.5, 0.0, 0.0, 0.0])
    assert source.draw(first) is None, "the failed group has nothing yet, and the other did not fail"
    assert set(source.buffer.known) == {7}
    again = SuccessReplay(per_task=2)
    again.load_state_dict(json.loads(json.dumps(source.state_dict())))
    later = draw_of(policy, [0.0] * 6, step=5, seed=4)
    with torch.no_grad():
        policy.module["model"].embed.weight.mul_(1.5)
        shown, same = source.draw(later), again.draw(later)
    assert torch.equal(shown.tokens, same.tokens)
    assert shown.group.tolist() == [0]
    assert shown.task_id.tolist() == [7]
    assert torch.equal(shown.external, shown.mask)
    batch, mask = first.rollouts, shown.mask[0]
    stored = [row for row in (0, 2) if batch.tokens[row][batch.mask[row]].tolist() == shown.tokens[0][mask].tolist()]
    assert stored
    torch.testing.assert_close(shown.old_logp[0][mask], batch.old_logp[stored[0]][batch.mask[stored[0]]])
    assert source.draw(draw_of(policy, [0.0] * 6, turn=1)) is None
    assert source.draw(draw_of(policy, [1.0] * 6)) is None
    assert [len(items) for items in source.buffer.known.values()] == [2, 2]


def test_replayed_actions_are_cut_by_the_ratio_to_who_wrote_them():
    old = torch.tensor([[-2.0, -1.0], [-1.0, -1.0]])
    logp = torch.tensor([[-1.0, -1.0], [-1.5, -1.0]], requires_grad=True)
    mask, advantage = torch.ones(2, 2, dtype=torch.bool), torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    external = torch.tensor([[True, True], [False, False]])
    loss, stats = replay_clip(logp, old, advantage, mask, external)
    same, _ = ppo_clip(logp, old, advantage, mask, clip_high=0.3)
    assert loss == same
    assert loss.item() == pytest.approx(-(1.3 + 1 - 0.8 - 1) / 4)
    assert stats["clip_fraction"] == pytest.approx(0.5)
    (gradient,) = torch.autograd.grad(loss, logp)
    assert gradient[0, 0] == 0
    assert gradient[0, 1] < 0


def test_a_recipe_needs_an_objective_that_reads_it():
    recipe = {
        "task": {"name": "reasoning_gym", "dataset": "spell_backward"},
        "policy": "tiny_lm",
        "sampling": {"prompts": 2, "group_size": 4, "max_new_tokens": 4, "sources": ["success_replay"]},
        "rewards": ["task"],
        "credit": "grpo",
    }
    assert make_plan(load_recipe(recipe | {"objective": "replay_clip"})).sources[0].success == 0.1
    with pytest.raises(RecipeError, match="reads 'external'"):
        make_plan(load_recipe(recipe | {"objective": "ppo_clip"}))
