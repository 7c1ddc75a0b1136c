import copy
import dataclasses
import json

import pytest
import torch

from guerdon.errors import RecipeError
from guerdon.policies.language_sampling import LanguageSampling
from guerdon.policies.tiny_lm import TinyLM
from guerdon.registry import describe
from guerdon.rewards.base import Reward
from guerdon.sampling.replay import Demonstrations, RehearsalBuffer
from guerdon.sampling.sources import Draw, raw_reward
from guerdon.tasks.base import Problem, Starts, Task

WORDS = ["ab", "b", "abba", "bbb", "a", "ba"]


class Copying(Task):
    """Answer with the prompt; one problem lists ways to say it."""

    kind = "language"

    def train_batch(self, n, seed):
        return [
            Problem(i, prompt=word, answer=word, metadata={"shown": [word + "a", word + "b"]} if i else {})
            for i, word in enumerate(WORDS * n)
        ][:n]

    def eval_problems(self, n):
        return self.train_batch(n, 0)


def even(text):
    """Right for half the answers of an untrained policy, more or less."""
    if text == "b":
        raise ValueError("no")
    return float(sum(map(ord, text)) % 2 == 0)


def costly(text):
    """Nothing that training should ask for twice."""
    raise AssertionError("a watched reward was called")


REWARDS = [
    Reward("task", describe("reward", even), {}),
    Reward("watched", describe("reward", costly), {}, weight=9.0, watch=True, on_fault="stop"),
]


@pytest.fixture(scope="module")
def policy():
    torch.manual_seed(0)
    policy = TinyLM(Copying(), width=16, layers=1, heads=2)
    with torch.no_grad():
        policy.module["model"].embed.weight.mul_(10)
    return policy


def draw_of(policy, starts=None, seed=7, step=-1, temperature=1.0):
    sampling = LanguageSampling(max_new_tokens=4, temperature=temperature)
    with torch.no_grad():
        rollouts = None if starts is None else policy.sample(starts, sampling, seed=1)
    return Draw(policy, Copying(), REWARDS, sampling, starts, rollouts, None, step, 0, seed)


def test_every_problem_of_a_batch_gets_its_answer_shown(policy):
    starts = Starts.repeat(Copying().train_batch(6, 0), 3)
    shown = Demonstrations().draw(draw_of(policy, starts, step=4, temperature=0.5))
    assert shown.text == WORDS
    assert shown.group.tolist() == list(range(6))
    assert shown.task_id.tolist() == list(range(6))
    assert shown.version.tolist() == [4] * 6
    assert torch.equal(shown.external, shown.mask)
    assert shown.payload["temperature"].tolist() == [0.5] * 6
    with torch.no_grad():
        assert torch.allclose(shown.old_logp, policy.evaluate(shown).logp, atol=1e-6)


def test_a_share_of_the_problems_is_a_pure_function_of_the_seed(policy):
    starts = Starts.repeat(Copying().train_batch(200, 0), 1)
    half = Demonstrations(share=0.5)
    first, again, other = (half.draw(draw_of(policy, starts, seed=s)).group.tolist() for s in (1, 1, 2))
    assert first == again != other
    assert 70 < len(first) < 130
    assert Demonstrations(share=1e-9).draw(draw_of(policy, starts)) is None


def test_demonstrations_can_stand_in_the_metadata(policy):
    starts = Starts.repeat(Copying().train_batch(6, 0)[1:], 1)
    source = Demonstrations(key="shown")
    seen = {tuple(source.draw(draw_of(policy, starts, seed=s)).text) for s in range(20)}
    assert all(text[:-1] == word for texts in seen for text, word in zip(texts, WORDS[1:], strict=True))
    assert {text[-1] for texts in seen for text in texts} == {"a", "b"}
    with pytest.raises(RecipeError, match="task_id 0 has no 'shown' in its metadata"):
        source.draw(draw_of(policy, Starts.repeat(Copying().train_batch(2, 0), 1)))
    nothing = Starts([Problem(3, prompt="a")], torch.zeros(1, dtype=torch.int64))
    with pytest.raises(RecipeError, match="task_id 3 has no answer, so there is nothing to show"):
        Demonstrations().draw(draw_of(policy, nothing))


@pytest.fixture(scope="module")
def buffer(policy):
    source = RehearsalBuffer(problems=40, samples=6, threshold=0.6, rows=5)
    with torch.no_grad():
        source.prepare(draw_of(policy, temperature=0.8))
    return source


def test_known_problems_are_stored_with_a_right_answer_and_its_likelihood(policy, buffer):
    assert 0 < len(buffer.known) < 40
    assert len({p.task_id for p in buffer.known}) == len(buffer.known)
    starts = Starts(buffer.known, torch.arange(len(buffer.known)))
    rollouts = policy.replay(starts, buffer.actions, LanguageSampling(temperature=0.8))
    assert all(even(text) == 1 for text in rollouts.text)
    stored = torch.tensor([x for row in buffer.logp for x in row])
    assert torch.allclose(rollouts.old_logp[rollouts.mask], stored, atol=1e-5)


def test_the_threshold_is_a_share_of_right_answers(policy, buffer):
    with torch.no_grad():
        easier = RehearsalBuffer(problems=40, samples=6, threshold=0.3, rows=5)
        easier.prepare(draw_of(policy, temperature=0.8))
        assert {p.task_id for p in buffer.known} < {p.task_id for p in easier.known}
        with pytest.raises(RecipeError, match=r"of 40 problems the policy solves none in 100% of 99 answers \(at best"):
            RehearsalBuffer(problems=40, samples=99).prepare(draw_of(policy))


def test_a_step_rehearses_some_of_them_as_they_were_stored(policy, buffer):
    starts = Starts.repeat(Copying().train_batch(3, 0), 2)
    draw = draw_of(policy, starts, seed=3, step=2, temperature=0.8)
    rows = buffer.draw(draw)
    assert len(rows) == 5
    assert len(set(rows.task_id.tolist())) == 5
    assert rows.group.tolist() == [3, 4, 5, 6, 7], "groups of their own"
    assert torch.equal(rows.external, rows.mask)
    assert torch.equal(rows.old_logp, rows.ref_logp)
    place = {p.task_id: i for i, p in enumerate(buffer.known)}
    for row in range(5):
        i = place[int(rows.task_id[row])]
        assert rows.tokens[row][rows.mask[row]].tolist() == buffer.actions[i]
        assert rows.old_logp[row][rows.mask[row]].tolist() == buffer.logp[i]
    same, other = buffer.draw(draw), buffer.draw(draw_of(policy, starts, seed=4, temperature=0.8))
    assert torch.equal(same.task_id, rows.task_id)
    assert not torch.equal(other.task_id, rows.task_id)
    moved = copy.deepcopy(policy)
    with torch.no_grad():
        moved.module["model"].embed.weight.mul_(2)
    later = buffer.draw(dataclasses.replace(draw, policy=moved))
    assert torch.equal(later.old_logp, rows.old_logp), "as likely as they were then"
    few = RehearsalBuffer(rows=1000)
    few.load_state_dict(buffer.state_dict())
    assert len(few.draw(draw)) == len(buffer.known)


def test_the_memory_survives_json(policy, buffer):
    again = RehearsalBuffer(rows=5)
    again.load_state_dict(json.loads(json.dumps(buffer.state_dict())))
    draw = draw_of(policy, Starts.repeat(Copying().train_batch(3, 0), 2), temperature=0.8)
    one, two = buffer.draw(draw), again.draw(draw)
    assert torch.equal(one.old_logp, two.old_logp)
    assert torch.equal(one.tokens, two.tokens)
    assert one.prompt == two.prompt


def test_raw_reward_counts_what_does_not_apply_as_nothing_and_a_fault_as_nan(policy):
    from guerdon.rewards.base import Score, score

    def half(task_id):
        """Applies to even problems."""
        return Score(1.0, valid=task_id % 2 == 0)

    watched = Reward("watched", describe("reward", even), {}, weight=9.0, watch=True)
    rewards = [REWARDS[0], watched, Reward("half", describe("reward", half), {}, weight=0.5)]
    starts = Starts.repeat(Copying().train_batch(6, 0), 1)
    rollouts = policy.replay(starts, [policy.encode_answer(w) for w in WORDS], LanguageSampling())
    rollouts, faults = score(rollouts, rewards)
    seen = raw_reward(rollouts, rewards, faults)
    assert seen.isnan().tolist() == [word == "b" for word in WORDS]
    assert seen[~seen.isnan()].tolist() == [0.5, 1.5, 1.0, 0.5, 0.0]
