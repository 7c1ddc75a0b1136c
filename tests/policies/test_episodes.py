from functools import partial

import pytest
import torch

from guerdon.engine.generate import SamplingError
from guerdon.engine.reading import read
from guerdon.errors import RecipeError
from guerdon.policies.episodes import branch_episodes
from guerdon.policies.language_sampling import LanguageSampling
from guerdon.policies.likelihoods import answer_logp
from guerdon.policies.tiny_lm import TinyLM
from guerdon.rewards.base import Reward, drop_faulted, score
from guerdon.rollouts import Fields
from guerdon.tasks.base import Problem, Starts
from guerdon.tasks.environments import EnvironmentTask, Step

WORDS = "a b c one two three four five broken"


class Counting:
    """Says how many turns have been taken; ends at ``start`` turns; pays 1 for each turn that begins with ``a``."""

    def __init__(self, break_at=None):
        self.break_at = break_at

    def reset(self, problem, seed):
        self.turns, self.limit = 0, problem.start
        return "one"

    def step(self, action):
        self.turns += 1
        if self.break_at == (self.limit, self.turns):
            raise RuntimeError("the wheel came off")
        said = " ".join(["one", "two", "three", "four", "five"][: 1 + self.turns % 4])
        return Step(said, float(action.startswith("a")), terminated=self.turns >= self.limit)


class Waiting(Counting):
    async def step(self, action):
        return super().step(action)


class Rows(EnvironmentTask):
    def __init__(self, make=Counting, **options):
        super().__init__(**options)
        self.make = make

    def environment(self):
        return self.make

    def train_batch(self, n, seed):
        return [Problem(i, start=1 + i % 5) for i in range(n)]

    def eval_problems(self, n):
        return self.train_batch(n, 0)

    def corpus(self):
        yield WORDS


def sampled(task, seed=3, rows=10, **options):
    torch.manual_seed(0)
    policy = TinyLM(task, width=32, layers=2, tokenizer="word")
    settings = LanguageSampling(**{"max_new_tokens": 3} | options).bound_to(task)
    return policy, policy.sample(Starts.repeat(task.train_batch(rows // 2, 0), 2), settings, seed=seed)


def test_an_episode_alternates_actions_and_observations():
    policy, rollouts = sampled(Rows(max_turns=4))
    assert rollouts.prompt == ["one"] * 10
    assert rollouts.turn.amax(dim=1).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 3, 3]
    assert rollouts.done.tolist() == [True] * 8 + [False] * 2  # the last would take five turns, and four are allowed
    assert rollouts.truncated.tolist() == [False] * 8 + [True] * 2
    assert torch.equal(rollouts.mask, rollouts.turn >= 0)
    row = 6
    heard = rollouts.tokens[row][~rollouts.mask[row] & rollouts.payload["attention"][row][-rollouts.mask.shape[1] :]]
    ask = policy.encode_prompt("")[0]
    said = policy.decode([[t for t in heard.tolist() if t != ask]])[0]
    assert said == "one two one two three one two three four"


def test_rewards_stand_at_their_turns():
    policy, rollouts = sampled(Rows(max_turns=4), rows=20)
    rewards = rollouts.rewards["task"]
    assert rewards.shape == (20, 4)
    assert rewards.shape != rollouts.mask.shape
    for row in range(20):
        for turn in range(4):
            tokens = rollouts.tokens[row][rollouts.turn[row] == turn]
            began = len(tokens) > 0 and policy.decode([tokens.tolist()])[0].startswith("a")
            assert rewards[row, turn] == float(began)
    assert rewards.sum() > 0
    fields = Fields(rollouts, component_names=("task",))
    assert torch.equal(fields["turn_reward"], rewards)
    assert torch.equal(fields["components"][:, 0], rewards.sum(dim=1))


def test_equal_observations_are_equal_states():
    _, rollouts = sampled(Rows(max_turns=4))
    keys = rollouts.state_key
    assert keys.shape == (10, 4)
    assert torch.equal(keys[8], keys[9])
    assert len(set(keys[9].tolist())) == 4


@pytest.mark.parametrize("options", [{}, {"context": 18}])
@pytest.mark.parametrize("truncation", ["drop_oldest", "discard_all"])
def test_evaluation_reads_what_was_read_while_sampling(options, truncation):
    options = options | ({"truncation": truncation} if options else {})
    policy, rollouts = sampled(Rows(max_turns=5), **options)
    dropped = rollouts.payload.get("begins", None)
    assert (dropped is not None) == bool(options)
    now = policy.evaluate(rollouts)
    assert torch.allclose(now.logp, rollouts.old_logp, atol=1e-4)
    assert torch.allclose(now.entropy, rollouts.entropy, atol=1e-4)
    if options:
        whole = rollouts.clone()
        del whole.payload["begins"]
        assert not torch.allclose(policy.evaluate(whole).logp, rollouts.old_logp, atol=1e-4)


def test_a_row_is_evaluated_alike_in_any_batch():
    policy, rollouts = sampled(Rows(max_turns=5), context=18, truncation="drop_oldest")
    whole = policy.evaluate(rollouts).logp
    for rows in ([9, 0], [3], [5, 9, 8]):
        assert torch.allclose(policy.evaluate(rollouts[rows]).logp, whole[rows], atol=1e-5)
    other = sampled(Rows(max_turns=5))[1]
    joined = policy.join([other, rollouts])
    assert torch.allclose(policy.evaluate(joined).logp[len(other) :, : whole.shape[1]], whole, atol=1e-5)


def test_a_full_context_cuts_the_episode():
    _, free = sampled(Rows(max_turns=5))
    _, cut = sampled(Rows(max_turns=5), context=18, truncation="stop")
    assert cut.truncated.sum() > free.truncated.sum()
    assert cut.mask.sum() < free.mask.sum()
    width = cut.mask.shape[1]
    assert width <= 18
    same = cut.turn >= 0
    assert torch.equal(cut.tokens[same], free.tokens[:, :width][same])


def test_a_reply_that_never_fits_cuts_the_episode():
    _, rollouts = sampled(Rows(max_turns=5), context=6, truncation="discard_all")
    assert int(rollouts.turn.max()) == 0
    assert rollouts.mask.shape[1] <= 3 + 1
    assert rollouts.truncated.sum() == 8


@pytest.mark.parametrize("make", [Waiting, Counting])
@pytest.mark.parametrize("workers", [0, 2])
def test_it_does_not_matter_where_environments_live(make, workers):
    task = Rows(make, max_turns=4, workers=workers)
    try:
        _, rollouts = sampled(task)
    finally:
        task.close()
    _, wanted = sampled(Rows(max_turns=4))
    assert torch.equal(rollouts.tokens, wanted.tokens)
    assert torch.equal(rollouts.rewards["task"], wanted.rewards["task"])
    assert torch.equal(rollouts.state_key, wanted.state_key)


def test_an_environment_that_breaks_is_a_fault_of_its_trajectory():
    task = Rows(partial(Counting, break_at=(4, 2)), max_turns=4)
    _, rollouts = sampled(task)
    _, whole = sampled(Rows(max_turns=4))
    reward = Reward("task", None, {})
    rollouts, faults = score(rollouts, [reward])
    assert [(fault.row, fault.reward, fault.kind) for fault in faults] == [
        (6, "task", "exception"),
        (7, "task", "exception"),
    ]
    assert "the wheel came off" in faults[0].message
    kept = drop_faulted(rollouts, [reward], faults)
    others = [0, 1, 2, 3, 4, 5, 8, 9]
    assert torch.equal(kept.tokens, whole.tokens[others])
    assert torch.equal(kept.rewards["task"], whole.rewards["task"][others])


def test_an_environment_that_cannot_begin_leaves_an_empty_trajectory():
    class Never(Counting):
        def reset(self, problem, seed):
            raise OSError("no such world")

    _, rollouts = sampled(Rows(Never))
    rollouts, faults = score(rollouts, [Reward("task", None, {})])
    assert len(faults) == 10
    assert not rollouts.mask.any()


def test_a_tool_and_environments_are_not_mixed():
    with pytest.raises(RecipeError, match="environments of this task answer"):
        LanguageSampling(tool={"name": len}).bound_to(Rows())


def test_imitation_reads_observations_and_imitates_actions():
    task = Rows()
    torch.manual_seed(0)
    policy = TinyLM(task, width=32, layers=2, tokenizer="word")
    problem = Problem(0, prompt="one", episode=("a", "one two", "b"))
    optimizer = torch.optim.Adam(policy.module.parameters(), lr=1e-2)
    for seed in range(60):
        optimizer.zero_grad()
        loss = policy.supervised_loss([problem], seed)
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    settings = LanguageSampling(max_new_tokens=3).bound_to(task)
    rollouts = policy.sample(Starts.repeat([Problem(0, start=2)], 1), settings, seed=0, greedy=True)
    assert policy.decode([rollouts.tokens[0][rollouts.turn[0] == t].tolist() for t in (0, 1)]) == ["a", "b"]


@pytest.mark.parametrize("options", [{}, {"context": 18, "truncation": "drop_oldest"}])
def test_a_branch_shares_turns_and_goes_on_by_itself(options):
    task = Rows(max_turns=5)
    policy, rollouts = sampled(task, **options)
    settings = LanguageSampling(max_new_tokens=3, **options).bound_to(task)
    starts = Starts.repeat(task.train_batch(5, 0), 2)
    rows, at = [9, 8, 5, 9], [2, 4, 1, 0]
    branches = branch_episodes(policy, starts, rollouts, rows, at, settings, seed=11)
    assert branches.parent.tolist() == rows
    assert branches.group.tolist() == rollouts.group[rows].tolist()
    for branch, (row, turns) in enumerate(zip(rows, at, strict=True)):
        kept = rollouts.turn[row] < turns
        first = int((rollouts.turn[row] >= turns).nonzero()[0])
        assert int(branches.branch_at[branch]) == int((kept & rollouts.mask[row]).sum())
        for name in ("tokens", "old_logp", "entropy", "turn"):
            mine, theirs = getattr(branches, name)[branch, :first], getattr(rollouts, name)[row, :first]
            assert torch.equal(mine, theirs), name
        assert torch.equal(branches.state_key[branch, :turns], rollouts.state_key[row, :turns])
        assert torch.equal(branches.rewards["task"][branch, :turns], rollouts.rewards["task"][row, :turns])
        assert int(branches.turn[branch].max()) == int(rollouts.turn[row].max())  # the environment counts on
    assert not torch.equal(branches.tokens[0], rollouts.tokens[9][: branches.tokens.shape[1]])
    assert torch.allclose(policy.evaluate(branches).logp, branches.old_logp, atol=1e-4)
    with pytest.raises(SamplingError, match="row 5, which took 3"):
        branch_episodes(policy, starts, rollouts, [5], [3], settings, seed=0)


class Answering(Rows):
    answer_form = "b {}"

    def train_batch(self, n, seed):
        return [Problem(i, answer=["four", "two three"][i % 2], start=1 + i % 5) for i in range(n)]


@pytest.mark.parametrize("options", [{}, {"max_tokens": 40}])
def test_answers_are_scored_before_every_turn(options):
    policy, rollouts = sampled(Answering(max_turns=4))
    policy.max_tokens = options.get("max_tokens")
    scored = answer_logp(policy, rollouts, Answering.answer_form)
    assert scored.shape == (10, 4)
    for row in range(10):
        answer = policy.encode(rollouts.answer[row])
        prompt = rollouts.payload["prompt_tokens"][row][rollouts.payload["attention"][row][: -rollouts.mask.shape[1]]]
        for turn in range(4):
            at = (rollouts.turn[row] == turn).nonzero().flatten()
            if not len(at):
                assert scored[row, turn] == 0
                continue
            history = [*prompt.tolist(), *rollouts.tokens[row, : int(at[0])].tolist(), *policy.encode("b")]
            ids = torch.tensor([[*history, *answer]])
            present = torch.ones_like(ids, dtype=torch.bool)
            with torch.no_grad():
                states = read(policy.model, ids, present, present)
                logp = policy.model.project(states).log_softmax(dim=-1)
            wanted = [logp[len(history) - 1 + place, token] for place, token in enumerate(answer)]
            assert float(scored[row, turn]) == pytest.approx(float(torch.stack(wanted).mean()), abs=1e-5)


def test_episodes_of_different_lengths_join():
    policy, short = sampled(Rows(max_turns=2))
    _, long = sampled(Rows(max_turns=5))
    joined = policy.join([short, long])
    assert joined.state_key.shape == joined.rewards["task"].shape == (20, 5)
    assert torch.equal(joined.state_key[:10, :2], short.state_key)
    assert torch.equal(joined.state_key[10:], long.state_key)
    assert torch.equal(joined.rewards["task"][10:], long.rewards["task"])
    assert torch.equal(joined.payload["environment_seed"][:10], short.payload["environment_seed"])
    assert joined.failure == [None] * 20
