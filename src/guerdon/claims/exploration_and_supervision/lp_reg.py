"""A rare but useful token dies of repeated negative credit, and an entropy bonus revives noise as well. Lp-Reg draws
unlikely tokens towards what the policy that sampled them says once its noise is filtered out.

Exact are proxy, penalty and gradient of a distribution with one spark of 0.05 beside a tail of 58 tokens that share
0.4. Trained are two tokens that succeed with 0.6 and 0.45 beside that tail, for 200 steps of 64 samples: with the tail
held fast, against plain credit (the same objective with beta 0), and with a tail that learns, against an entropy bonus
of 0.2. (On seeds 100 to 104 that bonus leaves 0.24 on the noise and 0.1 on the spark, one of 0.1 leaves 0.03 and 0.005;
Lp-Reg and plain credit leave 0.01 and 0.001 alike, for a proxy without a tail is the policy, and saves nothing.)

Two thirds of the tokens with negative credit can be selected, which are the tail and the spark: with all of them the
leading token is drawn up as well, and the gain shrinks (0.011 against 0.010 at a rate of 1, on seeds 100 to 109). The
rate 0.5 is one of five that were tried there; at 0.1 and 0.25 the spark gained as well, from 0.035 to 0.043 and from
0.024 to 0.037. (The specification has 0.033 and 0.055, at settings not known.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, equal, paired
from guerdon.claims.testbeds.prefixes import Prefixes
from guerdon.objectives.divergence import k3
from guerdon.objectives.low_probability import filtered_proxy_logprob, lp_reg

TAIL, MASS, MAIN, SPARK = 58, 0.4, 0.55, 0.05
START = torch.tensor([MAIN, SPARK] + [MASS / TAIL] * TAIL, dtype=torch.float64)
CHANCE = torch.tensor([0.6, 0.45] + [0.0] * TAIL)
SHARE, STEPS, LR = 0.66, 200, 0.5
Proxy = Callable[..., Tensor]


def gradients(method: Proxy, credit: float) -> Tensor:
    """Slope of the loss in the log-probability of the leader, the spark and a tail token, less that of plain credit."""
    tokens, mask = torch.tensor([[0], [1], [2]]), torch.ones(3, 1, dtype=torch.bool)
    logp = START.log()[tokens].requires_grad_()
    payload = {"proxy_logp": method(START.log().expand(3, 1, -1), tokens)}
    advantage = torch.full((3, 1), credit, dtype=torch.float64)
    slopes = []
    for beta in (1.0, 0.0):
        loss, _ = lp_reg(logp, logp.detach(), advantage, mask, payload, beta=beta, share_neg=1.0)
        slopes.append(torch.autograd.grad(loss, logp)[0].squeeze(1) * len(tokens))
    return slopes[0] - slopes[1]


def run(method: Proxy, seeds: int) -> Iterator[Check]:
    """Proxy, penalty and gradient by hand; then training."""
    proxy = method(START.log().expand(3, -1), torch.arange(3))
    kept = MAIN + SPARK
    yield equal("proxy of the spark", proxy[1].exp(), SPARK / kept, tol=1e-6)
    yield equal("proxy of the spark, to three digits", proxy[1].exp(), 0.0833, tol=5e-5)
    yield equal("penalty of the spark", k3(START[1].log(), proxy[1]), 0.156, tol=5e-4)
    yield equal("proxy of a tail token", proxy[2].exp(), 0.0)
    slope = gradients(method, -1.0)
    yield equal("slope of the penalty on the spark, and on a tail token", slope[1:], [1 - 1 / kept, 0.0])
    yield equal("slope of the penalty where credit is positive", gradients(method, 1.0), [0.0] * 3)
    fixed = method(START.log().expand(3, -1), torch.arange(3), threshold=0.1)
    yield equal("proxy of the spark under a fixed threshold of 0.1", fixed[1].exp(), 0.0)
    even = method(torch.zeros(3, 4), torch.arange(3))
    yield equal("proxy where there is no tail", even.exp(), [0.25] * 3)

    def more(tokens: Tensor, table: Tensor) -> dict[str, Any]:
        return {"payload": {"proxy_logp": method(table, tokens)}}

    train: Any = {"seeds": seeds, "steps": STEPS, "group_size": 8, "groups": 8, "lr": LR, "more": more}
    train["initial"] = START.log().unsqueeze(0)
    guarded = {"name": "lp_reg", "share_neg": SHARE}
    held = Prefixes(2 + TAIL, 1, CHANCE, frozen=TAIL, mass=MASS)
    ours = held.whole(held.train(**train, objective=guarded).logits)[..., 1]
    theirs = held.whole(held.train(**train, objective={**guarded, "beta": 0.0}).logits)[..., 1]
    curves = {"lp-reg": ours.T, "grpo": theirs.T}
    what = f"probability of the spark after {STEPS} steps, beside a tail that is held fast"
    yield paired(what, ours[-1], theirs[-1], curves=curves, axis="probability of the spark by step")

    free = Prefixes(2 + TAIL, 1, CHANCE)
    settings: dict[str, dict[str, Any]] = {
        "lp-reg": {"objective": guarded},
        "grpo": {"objective": {**guarded, "beta": 0.0}},
        "entropy bonus": {"objective": "ppo_clip", "terms": [{"name": "entropy", "beta": 0.2}]},
    }
    noise = {
        name: free.whole(free.train(**train, **setting).logits)[..., 2:].sum(dim=-1)
        for name, setting in settings.items()
    }
    yield paired(
        "probability of a tail that learns, against an entropy bonus",
        noise["lp-reg"][-1],
        noise["entropy bonus"][-1],
        better="lower",
        margin=0.05,
        curves={name: x.T for name, x in noise.items()},
        axis="probability of the tail by step",
    )
    what = "the same against plain credit, no more than 0.02 more"
    yield paired(what, noise["lp-reg"][-1], noise["grpo"][-1], better="lower", margin=-0.02)


CLAIM = Claim(
    system="lp-reg",
    run=run,
    method=filtered_proxy_logprob,
    mutation=Mutation("nothing is filtered", partial(filtered_proxy_logprob, kappa=0.0)),
    recipe="""
sampling:
  prompts: 64
  group_size: 8
  max_new_tokens: 8
  sources: [{name: lp_reg_proxy, kappa: 0.02}]
objective: {name: lp_reg, share_neg: 0.01}
""",
)
