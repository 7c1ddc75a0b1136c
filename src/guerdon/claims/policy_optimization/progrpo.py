"""ProGRPO adds to each advantage how unsure the policy was of the least likely fifth of what it wrote, in every group
that has a success. Of several right answers the likely one so stops crowding out the rest.

A prompt with five right answers of unequal probability is trained well past 95 % success, in eight copies per seed.
GRPO settles on one of them; ProGRPO keeps the rare ones within reach of eight samples, at equal success.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, equal, every_seed, paired
from guerdon.claims.testbeds.tabular import History, Tabular
from guerdon.credit.group import grpo
from guerdon.credit.likelihood import progrpo

START = torch.tensor([0.5, 0.2, 0.1, 0.05, 0.02, 0.08, 0.05])  # five right answers, then two wrong ones
RIGHT, RARE, COPIES = 5, slice(3, 5), 8
ALPHA = 0.3


def favour_the_confident(
    reward: Tensor,
    group: Tensor,
    mask: Tensor,
    old_logp: Tensor,
    prompt_logp: Tensor | None = None,
    *,
    alpha: float = ALPHA,
) -> tuple[Tensor, dict[str, float]]:
    """Turn the bonus round."""
    return progrpo(reward, group, mask, old_logp, prompt_logp, alpha=-alpha)


def single(method: Callable[..., Any], rewards: list[float], confidence: list[float], **options: Any) -> Tensor:
    """Credit (N,) of answers of one token, all to the same prompt."""
    reward, n = torch.tensor(rewards, dtype=torch.float64), len(rewards)
    old_logp = torch.tensor(confidence, dtype=torch.float64).log().unsqueeze(1)
    group, mask = torch.zeros(n, dtype=torch.int64), torch.ones(n, 1).bool()
    return method(reward, group, mask, old_logp, **options)[0].squeeze(1)


def right(history: History) -> Tensor:
    """Probability (steps + 1, S, P, 5) of each right answer."""
    return history.probs[..., 0, :RIGHT]


def spread(history: History) -> Tensor:
    """Entropy (S, steps + 1) over the right answers alone, in nats."""
    share = right(history) / right(history).sum(dim=-1, keepdim=True)
    return -torch.special.xlogy(share, share).sum(dim=-1).mean(dim=-1).T


def run(method: Callable[..., Any], seeds: int) -> Iterator[Check]:
    """The bonus by hand, then diversity at equal success."""
    credit = single(method, [1.0, 1.0, 0.0], [0.9, 0.3, 0.5])
    gain = credit[1] - credit[0]
    yield equal("of right answers of confidence 0.9 and 0.3, the second gets more by", gain, 0.6 * ALPHA)
    failed = single(method, [0.0, 0.0], [0.9, 0.3])
    yield equal("credit in a group without a success", failed, [0, 0])
    rewards, confidence = [1.0, 0.0, 1.0, 0.0], [0.9, 0.1, 0.4, 0.7]
    plain = grpo(torch.tensor(rewards, dtype=torch.float64), torch.zeros(4).long(), torch.ones(4, 1).bool())
    yield equal("alpha 0 is GRPO", single(method, rewards, confidence, alpha=0.0), plain.squeeze(1))

    tokens = torch.full((2, 10), 0.9, dtype=torch.float64)  # ten tokens each; of the second, two were unlikely
    tokens[1, 3:5] = 0.1
    data = torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.int64), torch.ones(2, 10).bool(), tokens.log()
    long = method(*data)[0][:, 0]
    yield equal("the least likely fifth of the tokens decides: the second gets more by", long[1] - long[0], 0.8 * ALPHA)
    prompt = torch.full((2, 4), 0.25, dtype=torch.float64).log()
    shifted = method(*data, prompt)[0][:, 0]
    yield equal("with a prompt of confidence 0.25", shifted, [ALPHA * (0.25 - 0.9), ALPHA * (0.25 - 0.1)])

    bed = Tabular(START.repeat(COPIES, 1), lambda actions, prompt: (actions[:, 0] < RIGHT).double())
    train = partial(bed.train, seeds=seeds, steps=200, group_size=8, lr=0.3 * COPIES)
    ours, baseline = train(credit=method), train(credit="grpo")
    success, other = (right(history)[-1].sum(dim=-1).mean(dim=-1) for history in (ours, baseline))
    yield every_seed("success after training", success, above=0.95)
    yield paired("success is within 2 points of GRPO's", success, other, margin=-0.02, share=1.0)
    mine, theirs = spread(ours), spread(baseline)
    curves = {"progrpo": mine, "grpo": theirs}
    axis = "entropy over the right answers, in nats, by step"
    yield paired("entropy over the right answers", mine[:, -1], theirs[:, -1], curves=curves, axis=axis)
    rare, rare_grpo = ((1 - (1 - right(h)[-1, ..., RARE]) ** 8).mean(dim=(-1, -2)) for h in (ours, baseline))
    yield paired("pass@8 of each of the two rare right answers", rare, rare_grpo)


CLAIM = Claim(
    system="progrpo",
    run=run,
    method=progrpo,
    mutation=Mutation("the bonus goes to the confident", favour_the_confident),
    recipe="credit: {name: progrpo, alpha: 0.3}\n",
    quick=True,
)
