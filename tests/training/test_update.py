import pytest
import torch

from guerdon.policies.base import Evaluation
from guerdon.policies.critic import SoftMinCritic
from guerdon.recipe import load_recipe
from guerdon.rollouts import Fields, make_rollouts
from guerdon.training.optim import Optimizer
from guerdon.training.plan import make_plan
from guerdon.training.update import _own, _read_fields, update


class Table:
    """A softmax over three actions in one state."""

    def __init__(self):
        self.logits = torch.nn.Parameter(torch.tensor([0.0, 0.5, -0.5]))
        self.module = torch.nn.Module()
        self.calls = []

    def trainable(self):
        return {"logits": self.logits}

    def evaluate(self, rollouts):
        self.calls.append(sorted(rollouts.task_id.tolist()))
        logp = self.logits.log_softmax(0)
        picked = logp[rollouts.payload["action"]].unsqueeze(1)
        return Evaluation(logp=picked, entropy=(-(logp.exp() * logp).sum()).expand_as(picked))


def batch(policy, n=12):
    action = torch.arange(n) % 3
    logp = policy.logits.detach().log_softmax(0)[action].unsqueeze(1)
    rollouts = make_rollouts(
        torch.zeros(n, dtype=torch.int64),
        torch.arange(n),
        torch.ones(n, 1, dtype=torch.bool),
        logp,
        done=torch.ones(n, dtype=torch.bool),
        truncated=torch.zeros(n, dtype=torch.bool),
        payload={"action": action},
    )
    rollouts.advantage = (action == 2).float().unsqueeze(1) - 0.2
    return rollouts


def plan(**changes):
    recipe = {"task": {"name": "reasoning_gym", "dataset": "chain_sum"}, "policy": "tiny_lm", "rewards": ["exact"]}
    return make_plan(load_recipe(recipe | changes))


def stepped(policy, plan_, **settings):
    optimizer = Optimizer(policy.trainable(), grad_clip=None)
    return update(plan_, policy, optimizer, batch(policy), step=0, lr=0.1, **settings)


def test_one_update_follows_the_policy_gradient():
    policy = Table()
    rollouts = batch(policy)
    loss = -(rollouts.advantage[:, 0] * policy.logits.log_softmax(0)[rollouts.payload["action"]]).mean()
    expected = torch.autograd.grad(loss, policy.logits)[0]
    optimizer = Optimizer(policy.trainable(), grad_clip=None)
    seen = []
    optimizer.step = lambda lr: seen.append(policy.logits.grad.clone()) or 1.0
    stats = update(plan(), policy, optimizer, rollouts, step=0, lr=0.1)
    assert torch.allclose(seen[0], expected, atol=1e-6)
    assert stats["update/ppo_clip/ratio"] == 1.0
    assert stats["update/lr"] == 0.1


def test_terms_add_up():
    with_entropy = plan(terms=[{"name": "entropy", "beta": 0.3}])
    policy = Table()
    stats = stepped(policy, with_entropy)
    parts = stats["update/ppo_clip/loss"] + stats["update/entropy/loss"]
    assert abs(stats["update/loss"] - parts) < 1e-6
    logp = Table().logits.detach().log_softmax(0)
    assert abs(stats["update/entropy/loss"] - 0.3 * float((logp.exp() * logp).sum())) < 1e-6


def test_every_epoch_visits_every_row_once_in_an_order_of_its_own():
    policy = Table()
    stepped(policy, plan(training={"epochs": 2, "minibatches": 5}))
    assert [len(c) for c in policy.calls] == [3, 3, 2, 2, 2] * 2
    epochs = [policy.calls[:5], policy.calls[5:]]
    for epoch in epochs:
        assert sorted(row for part in epoch for row in part) == list(range(12))
    assert epochs[0] != epochs[1]
    again = Table()
    stepped(again, plan(training={"epochs": 2, "minibatches": 5}))
    assert again.calls == policy.calls


def test_what_no_method_reads_is_left_behind_and_what_one_reads_is_there():
    def odd(logp, group, length, dense, components):
        """Read rewards in every form."""
        return logp.sum()

    rollouts = batch(Table())
    rollouts.entropy = torch.ones(12, 1)
    rollouts.reward = torch.arange(12.0)
    rollouts.rewards["exact"] = torch.arange(12.0)
    methods = [plan(objective=odd).objective]
    names = {"component_names": ("exact",)}
    kept = _read_fields(methods, rollouts)
    for name in ("group", "length", "dense", "components", "mask", "old_logp"):
        assert torch.equal(Fields(kept, **names)[name], Fields(rollouts, **names)[name])
    assert torch.equal(kept.payload["action"], rollouts.payload["action"])
    assert kept.version is None
    plain = _read_fields([plan().objective], rollouts)
    assert plain.rewards is None
    assert torch.equal(plain.entropy, rollouts.entropy)  # says of trajectories without credit what is not asked again
    assert torch.equal(plain.advantage, rollouts.advantage)


def test_slow_critics_follow_after_every_minibatch():
    policy = Table()
    policy.module.critic = critic = SoftMinCritic(4, polyak=0.5)
    bias = critic.heads.first[0].bias
    bias.data = critic.slow_first_0_bias + 1.0
    stepped(policy, plan(training={"epochs": 2, "minibatches": 3}))
    assert torch.allclose(bias - critic.slow_first_0_bias, torch.full_like(bias, 0.5**6), atol=1e-6)


def test_more_minibatches_than_rows_become_one_row_each():
    policy = Table()
    update(
        plan(training={"minibatches": 100}, sampling={"prompts": 64}),
        policy,
        Optimizer(policy.trainable()),
        batch(policy, n=4),
        step=0,
        lr=0.1,
    )
    assert [len(c) for c in policy.calls] == [1, 1, 1, 1]


def test_later_minibatches_measure_the_ratio_to_the_sampling_policy():
    policy = Table()
    stats = stepped(policy, plan(training={"epochs": 4}))
    assert stats["update/ppo_clip/ratio"] != 1.0
    assert stats["update/ppo_clip/approx_kl"] > 0


def mixed(policy, own=6, foreign=6):
    """A batch of which the last rows are external."""
    rollouts = batch(policy, n=own + foreign)
    rollouts.external = (torch.arange(own + foreign) >= own).unsqueeze(1)
    rollouts.old_logp[own:] = -2.5
    return rollouts


def test_a_method_that_does_not_name_external_sees_the_rows_of_the_policy_only():
    seen = {}

    def plain(logp, mask, task_id, length):
        """Remember."""
        seen["plain"] = (len(logp), mask.shape, task_id.tolist(), length.tolist())
        return logp.sum()

    def aware(logp, old_logp, mask, external):
        """Remember."""
        seen["aware"] = (len(logp), external.flatten().tolist(), old_logp.flatten().tolist())
        return logp.sum() * 0

    policy = Table()
    both = plan(objective=plain, terms=[{"name": aware}], sampling={"sources": ["rehearsal"]})
    optimizer = Optimizer(policy.trainable(), grad_clip=None)
    gradients = []
    optimizer.step = lambda lr: gradients.append(policy.logits.grad.clone()) or 1.0
    update(both, policy, optimizer, mixed(policy), step=0, lr=0.1)
    assert seen["plain"] == (6, (6, 1), list(range(6)), [1] * 6)
    rows, external, old = seen["aware"]
    assert rows == 12
    assert external == [False] * 6 + [True] * 6
    now = Table().logits.log_softmax(0).tolist()
    assert old == pytest.approx([now[i % 3] for i in range(6)] + [-2.5] * 6)
    wanted = torch.autograd.grad(policy.logits.log_softmax(0)[torch.arange(6) % 3].sum(), policy.logits)[0]
    assert torch.allclose(gradients[0], wanted, atol=1e-6)


def test_actions_that_are_external_in_part_are_masked_one_by_one():
    rollouts = make_rollouts(
        torch.zeros(3, dtype=torch.int64),
        torch.arange(3),
        torch.tensor([[True, True], [True, True], [True, False]]),
        torch.zeros(3, 2),
        done=torch.ones(3, dtype=torch.bool),
        truncated=torch.zeros(3, dtype=torch.bool),
        payload={"action": torch.zeros(3, dtype=torch.int64)},
        external=torch.tensor([[True, False], [False, False], [True, False]]),
    )
    own = _own(Fields(rollouts, logp=torch.arange(6.0).view(3, 2), step=4))
    assert own["mask"].tolist() == [[False, True], [True, True]]
    assert own["logp"].tolist() == [[0, 1], [2, 3]]
    assert own["length"].tolist() == [1, 2]
    assert own["step"] == 4
    assert rollouts.mask[0].tolist() == [True, True]


def test_every_minibatch_has_its_share_of_both_kinds():
    policy = Table()
    loop = plan(training={"epochs": 2, "minibatches": 3}, objective="rl_plus", sampling={"sources": ["demonstrations"]})
    update(loop, policy, Optimizer(policy.trainable()), mixed(policy, own=7, foreign=3), step=0, lr=0.1)
    assert [sum(row < 7 for row in call) for call in policy.calls] == [3, 2, 2] * 2
    assert [sum(row >= 7 for row in call) for call in policy.calls] == [1, 1, 1] * 2
    assert sorted(row for call in policy.calls[:3] for row in call) == list(range(10))
    few = Table()
    update(loop, few, Optimizer(few.trainable()), mixed(few, own=2, foreign=5), step=0, lr=0.1)
    assert [sum(row < 2 for row in call) for call in few.calls] == [1, 1] * 2


def test_external_rows_alone_still_reach_those_that_name_them():
    policy = Table()
    both = plan(objective="rl_plus", terms=["entropy"], sampling={"sources": ["demonstrations"]})
    stats = update(both, policy, Optimizer(policy.trainable()), mixed(policy, own=0, foreign=4), step=0, lr=0.1)
    assert stats["update/rl_plus/external_ratio"] > 0
    assert "update/entropy/loss" not in stats


def test_the_length_of_a_step_is_measured_on_the_policys_own_actions():
    def aware(logp, external):
        """Learn from external actions alone."""
        return -(logp * external).sum()

    recipe = {"objective": aware, "sampling": {"sources": ["demonstrations"]}, "training": {"max_step_kl": 1e-9}}
    seen = []
    for own in (3, 6):
        policy = Table()
        rollouts = mixed(policy, own=own, foreign=3)
        rollouts.payload["action"][own:] = 2
        seen.append(update(plan(**recipe), policy, Optimizer(policy.trainable()), rollouts, step=0, lr=0.1))
    assert seen[0]["update/step_kl"] == pytest.approx(seen[1]["update/step_kl"], rel=1e-5)
    assert seen[0]["update/step_kl"] > 0


def silent(policy, rows=(3, 4, 5, 9)):
    """A batch in which some trajectories have no credit, and all that is known of them."""
    rollouts = batch(policy)
    rollouts.advantage[list(rows)] = 0.0
    rollouts.entropy = policy.evaluate(rollouts).entropy.detach()
    policy.calls.clear()
    return rollouts


@pytest.mark.parametrize("objective", ["ppo_clip", "dapo", "gspo", "cispo", "sapo", "gmpo", "dispo", "reinforce"])
@pytest.mark.parametrize("updates", [1, 3])
def test_trajectories_without_credit_are_skipped_and_nothing_changes(objective, updates, monkeypatch):
    from guerdon.training import update as module

    settings = {"objective": objective, "training": {"epochs": updates}}
    moved, stats = [], []
    for skipping in (True, False):
        policy = Table()
        rollouts = silent(policy)
        if not skipping:
            monkeypatch.setattr(module, "learns_from_credit_alone", lambda plan: False)
        optimizer = Optimizer(policy.trainable())
        stats.append(update(plan(**settings), policy, optimizer, rollouts, step=0, lr=0.1))
        assert policy.calls == [[0, 1, 2, 6, 7, 8, 10, 11] if skipping else list(range(12))] * updates
        moved.append(policy.logits.detach().clone())
    assert torch.allclose(moved[0], moved[1], atol=1e-7)
    assert stats[0]["update/grad_norm"] == pytest.approx(stats[1]["update/grad_norm"], abs=1e-7)
    assert stats[0]["update/loss"] == pytest.approx(stats[1]["update/loss"], abs=1e-7)


def test_without_any_credit_the_gradient_is_zero_and_not_missing():
    policy = Table()
    rollouts = silent(policy, range(12))
    optimizer = Optimizer(policy.trainable())
    stepped_before = batch(policy)
    stepped_before.entropy = torch.zeros(12, 1)
    update(plan(), policy, optimizer, stepped_before, step=0, lr=0.1)
    policy.calls.clear()
    before = policy.logits.detach().clone()
    stats = update(plan(), policy, optimizer, rollouts, step=1, lr=0.1)
    assert policy.calls == [[0]]
    assert stats["update/grad_norm"] == 0.0
    assert not torch.equal(policy.logits, before)  # momentum goes on, as with any gradient that is 0


@pytest.mark.parametrize(
    "settings",
    [{"terms": [{"name": "kl", "beta": 0.1}]}, {"terms": [{"name": "entropy", "beta": 0.1}]}, {"objective": "kl_cov"}],
)
def test_whoever_learns_from_more_than_credit_sees_all(settings):
    policy = Table()
    rollouts = silent(policy)
    rollouts.ref_logp = rollouts.old_logp.clone()
    update(plan(**settings), policy, Optimizer(policy.trainable()), rollouts, step=0, lr=0.1)
    assert policy.calls == [list(range(12))]
