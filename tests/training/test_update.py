import torch

from guerdon.policies.base import Evaluation
from guerdon.recipe import load_recipe
from guerdon.rollouts import make_rollouts
from guerdon.training.optim import Optimizer
from guerdon.training.plan import make_plan
from guerdon.training.update import update


class Table:
    """A softmax over three actions in one state."""

    def __init__(self):
        self.logits = torch.nn.Parameter(torch.tensor([0.0, 0.5, -0.5]))
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
