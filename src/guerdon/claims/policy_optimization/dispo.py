"""DISPO bounds the importance weight of an action by a window of its own for each sign of the credit, and keeps the
gradient of those outside: a wide ceiling for good actions explores, a wide one for bad actions stops what is spreading.

The exact checks read the weights off the gradient. The learning checks take eight updates on each batch of a softmax
policy, where answers that are equally good compete: a ceiling at 1 for good actions lets the favourite crowd out the
rest. That needs rewards that vary among good answers, which here succeed four times in five: where they always do, both
ceilings end at the same entropy (0.170 and 0.173). Then a policy in which a wrong answer has become likely since the
batch was drawn unlearns it from that batch.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, equal, paired
from guerdon.claims.testbeds.tabular import Tabular
from guerdon.credit.group import grpo
from guerdon.objectives.off_policy import dispo
from guerdon.objectives.policy import Objective, cispo, surrogate
from guerdon.seeding import torch_generator

# Six answers: five that succeed four times in five, of which one is the favourite, and one that seldom does.
SUCCESS = torch.tensor([0.8, 0.8, 0.8, 0.8, 0.8, 0.1])
START = torch.tensor([0.6, 0.05, 0.05, 0.05, 0.05, 0.2])
PROMPTS, BATCHES, ANSWERS, UPDATES = 32, 60, 16, 8
# Three answers, the last one wrong: what the policy was when it drew the batch, and what it is now.
THEN, NOW = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.25, 0.15, 0.6])


def one_narrow_window(logp: Tensor, old_logp: Tensor, advantage: Tensor, mask: Tensor, **_: object) -> Objective:
    """Cut weights at 0.8 and 1.2 whatever the sign of the credit."""
    return surrogate(logp, old_logp, advantage, mask, lo_pos=0.8, hi_pos=1.2, lo_neg=0.8, hi_neg=1.2, gradient="score")


def weights(objective: Callable[..., Objective], ratios: list[float], credit: list[float], **window: float) -> Tensor:
    """The factor of A grad log pi in the gradient of each action."""
    logp = torch.tensor([ratios], dtype=torch.float64).log().requires_grad_()
    advantage = torch.tensor([credit], dtype=torch.float64)
    loss, _ = objective(logp, torch.zeros_like(logp), advantage, torch.ones_like(logp).bool(), **window)
    return -torch.autograd.grad(loss, logp)[0].squeeze(0) * len(ratios) / advantage.squeeze(0)


def unlearn(objective: Callable[..., Objective], seeds: int, **window: float) -> Tensor:
    """Probability (S, UPDATES + 1) of the wrong answer while one stale batch of 32 is learned from."""
    draws = [torch.multinomial(THEN, 32, replacement=True, generator=torch_generator(s, "stale")) for s in range(seeds)]
    actions = torch.stack(draws)
    group = torch.arange(seeds).repeat_interleave(32)
    mask = torch.ones(seeds * 32, 1).bool()
    advantage = grpo((actions != 2).double().reshape(-1), group, mask)
    old_logp = THEN.double().log()[actions].reshape(-1, 1)
    logits = NOW.double().log().repeat(seeds, 1).requires_grad_()
    seen = [logits.detach().softmax(dim=1)[:, 2]]
    for _ in range(UPDATES):
        logp = logits.log_softmax(dim=1).gather(1, actions).reshape(-1, 1)
        loss, _ = objective(logp, old_logp, advantage, mask, **window)
        (gradient,) = torch.autograd.grad(loss * seeds, logits)
        logits = (logits - 0.3 * gradient).detach().requires_grad_()
        seen.append(logits.detach().softmax(dim=1)[:, 2])
    return torch.stack(seen, dim=1)


def run(method: Callable[..., Objective], seeds: int) -> Iterator[Check]:
    """Weights, then the two ceilings in training."""
    ratios, credit = [20.0, 20.0, 0.5, 0.5], [1.0, -1.0, 1.0, -1.0]
    yield equal("weights at ratio 20 (A > 0, A < 0) and 0.5", weights(method, ratios, credit), [11, 20, 0.8, 0.5])
    same = {"clip_low_pos": 0.3, "clip_low_neg": 0.3, "clip_high_pos": 2.0, "clip_high_neg": 2.0}
    yield equal(
        "the same window for both signs is CISPO's",
        weights(method, ratios, credit, **same),
        weights(cispo, ratios, credit, clip_low=0.3, clip_high=2.0),
    )

    bed = Tabular(START.repeat(PROMPTS, 1), lambda actions, prompt, noise: (noise < SUCCESS[actions[:, 0]]).double())

    def entropy(ceiling: float) -> Tensor:
        def objective(logp: Tensor, old_logp: Tensor, advantage: Tensor, mask: Tensor) -> Objective:
            return method(logp, old_logp, advantage, mask, clip_high_pos=ceiling)

        settings = {"steps": BATCHES, "group_size": ANSWERS, "updates": UPDATES, "lr": 0.3 * PROMPTS}
        return bed.train(seeds=seeds, objective=objective, **settings).entropy().mean(dim=-1).T

    wide, narrow = entropy(10.0), entropy(0.0)
    yield paired(
        "entropy after training, ceiling for A > 0 at 11 against 1",
        wide[:, -1],
        narrow[:, -1],
        curves={"ceiling 11": wide, "ceiling 1": narrow},
        axis="entropy in nats by batch",
    )
    fast, slow = unlearn(method, seeds, clip_high_neg=100.0), unlearn(method, seeds, clip_high_neg=0.0)
    yield paired(
        "probability of the spreading wrong answer after 8 updates, ceiling for A < 0 at 101 against 1",
        fast[:, -1],
        slow[:, -1],
        better="lower",
        curves={"ceiling 101": fast, "ceiling 1": slow},
        axis="probability of the wrong answer by update",
    )


CLAIM = Claim(
    system="dispo",
    run=run,
    method=dispo,
    mutation=Mutation("one window, 0.8 to 1.2, for both signs of the credit", one_narrow_window),
    recipe="objective: {name: dispo, clip_high_pos: 10, clip_high_neg: 100}\ntraining: {steps: 400, minibatches: 8}\n",
    quick=True,
)
