"""RL forgets what it is not rewarded for, and settles on one of several right answers. DPH-RL rehearses right answers
that the policy gave before training, under a divergence that covers all modes of the policy of then.

Prompts share weights. On eight hard ones, the only ones trained for reward, four of sixteen answers are right. Eight
known ones have the same right answers; eight others have four that are wrong on the hard ones, and without a divergence
these are half forgotten. Not reproduced: reverse KL on own answers (``k2``, whose gradient is that of the reverse KL)
keeps modes here, where the source finds none kept. In a table it has to: what earns most under it is the reference
with all right answers raised alike. The baseline as released (``k3`` at 0.01) keeps some too: entropy 0.135 against
0.050 without a divergence, on seeds 100 to 109.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, equal, paired
from guerdon.claims.testbeds.shared import Shared
from guerdon.objectives.aggregation import token_mean
from guerdon.objectives.divergence import f_divergence

EACH, ANSWERS, COMMON = 8, 16, 0.5
MODES = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
ALIKE, OTHER, HARD = (slice(k * EACH, (k + 1) * EACH) for k in range(3))
WEIGHT = {"forward_kl": 0.05, "js": 0.2, "alpha": 0.05}  # the upper end of what was published
NOW = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05], dtype=torch.float64).log()
REFERENCE = torch.tensor([0.1, 0.3, 0.25, 0.15, 0.2], dtype=torch.float64).log()


def linear(
    logp: Tensor, old_logp: Tensor, mask: Tensor, external: Tensor, *, kind: str = "forward_kl", eta: float = 0.01
) -> tuple[Tensor, dict[str, float]]:
    """f = u - 1, whose expectation is 0 whatever the policy."""
    stored = mask & external
    u = (logp - old_logp.detach()).masked_fill(~stored, 0.0).clamp(max=10).exp()
    return eta * token_mean(u - 1, stored), {}


def expected(term: Callable[..., Any], kind: str, logp: Tensor) -> Tensor:
    """Expectation of a term over single answers of the reference."""
    one = torch.ones(1, 1, dtype=torch.bool)
    each = [
        term(now.view(1, 1), then.view(1, 1), one, one, kind=kind, eta=1.0)[0]
        for now, then in zip(logp, REFERENCE, strict=True)
    ]
    return (REFERENCE.exp() * torch.stack(each)).sum()


def divergences(logp: Tensor) -> dict[str, Tensor]:
    """KL(ref || pi), twice the Jensen-Shannon divergence, and the alpha-divergence at 0.2, from their definitions."""
    middle = ((logp.exp() + REFERENCE.exp()) / 2).log()
    to_middle = [(p.exp() * (p - middle)).sum() for p in (logp, REFERENCE)]
    power = (0.2 * REFERENCE + 0.8 * logp).exp().sum()
    return {
        "forward_kl": (REFERENCE.exp() * (REFERENCE - logp)).sum(),
        "js": to_middle[0] + to_middle[1],
        "alpha": (1 - power) / (0.2 * 0.8),
    }


def slope(value: Callable[[Tensor], Tensor]) -> Tensor:
    """Gradient in the logits of what ``value`` makes of log-probabilities."""
    logits = NOW.clone().requires_grad_()
    return torch.autograd.grad(value(logits.log_softmax(dim=0)), logits)[0]


def prompts() -> Shared:
    """Known prompts with the right answers of the hard ones, known ones with others, and hard ones."""
    start = torch.zeros(3 * EACH, 1, ANSWERS, dtype=torch.float64)
    right = torch.zeros(3 * EACH, 1, ANSWERS, dtype=torch.bool)
    for rows, place, known, tempting in ((ALIKE, 0, 0.995, 0.001), (OTHER, 4, 0.995, 0.001), (HARD, 0, 0.2, 0.4)):
        right[rows, :, place : place + 4] = True
        start[rows, 0, place : place + 4] = known * MODES
        start[rows, 0, 4 - place : 8 - place] = tempting * MODES
        start[rows, 0, 8:] = (1 - known - tempting) / (ANSWERS - 8)
    own, common = torch.eye(3 * EACH) * (1 - COMMON) ** 0.5, torch.full((3 * EACH, 1), COMMON**0.5)
    return Shared(start, torch.cat([own, common], dim=1), right)


def run(method: Any, seeds: int) -> Iterator[Check]:
    """Each form against its definition, then training with and without."""
    for kind in WEIGHT:
        wanted = divergences(NOW)[kind]
        yield equal(f"{kind}: mean over the reference's answers", expected(method, kind, NOW), wanted, tol=1e-8)
        seen = slope(lambda logp, kind=kind: expected(method, kind, logp))
        yield equal(f"{kind}: its gradient", seen, slope(lambda logp, kind=kind: divergences(logp)[kind]), tol=1e-8)

    bed = prompts()
    right = bed.right[:, 0]
    objective = {"name": "ppo_clip", "clip_high": 0.28, "dual_clip": 3.0}
    settings: dict[str, Any] = {"seeds": seeds, "steps": 100, "group_size": 8, "lr": 10.0, "optimizer": "sgd"}
    settings |= {"objective": objective, "prompts": torch.arange(3 * EACH)[HARD]}
    look = bed.remembered(torch.arange(3 * EACH), seeds=seeds, samples=8, threshold=1.0)

    def success(history: Tensor, rows: slice) -> Tensor:
        """(S, steps + 1) probability of right answers."""
        return bed.solved(history)[:, :, rows].mean(dim=-1).T

    def found(history: Tensor) -> Tensor:
        """(S,) share of the right answers to hard prompts that 16 samples hold on average."""
        last = history[-1, :, HARD, 0]
        return ((1 - (1 - last) ** 16) * right[HARD]).sum(dim=-1).mean(dim=-1) / len(MODES)

    def spread(history: Tensor) -> Tensor:
        """(S,) entropy over the right answers to hard prompts."""
        modes = history[-1, :, HARD, 0, :4]
        modes = modes / modes.sum(dim=-1, keepdim=True)
        return -torch.special.xlogy(modes, modes).sum(dim=-1).mean(dim=-1)

    none = bed.train(**settings)
    trained = {
        kind: bed.train(terms=[{"name": method, "kind": kind, "eta": eta}], rehearsed=look, **settings)
        for kind, eta in WEIGHT.items()
    }
    by_definition = {"name": "jensen_shannon", "eta": 0.05}  # the lower end, for it also holds on to own answers
    definition = bed.train(terms=[by_definition], rehearsed=look, **settings)
    curves = {"without": success(none, OTHER)} | {kind: success(h, OTHER) for kind, h in trained.items()}
    for kind, history in (trained | {"js by definition": definition}).items():
        kept, lost = success(history, OTHER)[:, -1], success(none, OTHER)[:, -1]
        shown = curves if kind == "forward_kl" else None
        axis = "success on what was known"
        yield paired(f"{kind}: success kept on other known prompts", kept, lost, share=1.0, curves=shown, axis=axis)
        both = (success(history, HARD)[:, -1], success(none, HARD)[:, -1])
        yield paired(f"{kind}: success on hard prompts, less 2 points", *both, margin=-0.02, share=1.0)
    for kind in ("forward_kl", "js"):
        yield paired(f"{kind}: right answers found by 16 samples", found(trained[kind]), found(none), share=1.0)
        yield paired(f"{kind}: entropy over right answers", spread(trained[kind]), spread(none), share=1.0)
    reverse = bed.train(terms=[{"name": "kl", "beta": 0.05, "estimator": "k2"}], **settings)
    what = "entropy over right answers without a divergence, against reverse KL, less 0.05"
    yield paired(what, spread(none), spread(reverse), margin=-0.05, share=1.0)


CLAIM = Claim(
    system="dph-rl",
    run=run,
    method=f_divergence,
    mutation=Mutation("f is linear in u, so that its divergence is always 0", linear),
    recipe="""
sampling:
  prompts: 64
  group_size: 8
  max_new_tokens: 8
  sources: [{name: rehearsal, problems: 512, samples: 8, rows: 32}]
objective: {name: ppo_clip, clip_high: 0.28, dual_clip: 3.0}
terms: [{name: f_divergence, kind: forward_kl, eta: 0.01}]
""",
)
