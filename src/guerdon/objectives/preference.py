"""Learning from pairs of answers, one of which is better."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def dpo(chosen: Tensor, rejected: Tensor, *, beta: float = 0.1) -> tuple[Tensor, dict[str, float]]:
    """Direct preference optimisation: the better answer of a pair should gain more on the reference.

    loss = -mean log sigmoid(beta (h_chosen - h_rejected)),  h = log pi(y | x) - log pi_ref(y | x)

    beta h is the reward of which the policy is the optimum under a KL penalty beta, up to a constant of the prompt.

    Args:
        chosen, rejected: (P,) h of the better and of the worse answer of each pair, in nats, differentiable; see
            ``log_ratio_of_answers``.
        beta: strength of the pull towards the reference.

    Returns:
        The loss; the ``accuracy``, the share of pairs in which the better answer has gained more, and the mean
        ``margin`` beta (h_chosen - h_rejected).

    Raises:
        ValueError: when there is no pair, or the numbers of better and worse answers differ.

    Source: Rafailov et al. 2023, arXiv 2305.18290.
    """
    if chosen.shape != rejected.shape or chosen.ndim != 1 or not len(chosen):
        raise ValueError(
            f"chosen has shape {tuple(chosen.shape)}, rejected {tuple(rejected.shape)}; wanted (P,) for both, P > 0"
        )
    margin = beta * (chosen - rejected)
    stats = {"accuracy": (margin > 0).double().mean().item(), "margin": margin.detach().mean().item()}
    return -logsigmoid(margin).mean(), stats


def log_ratio_of_answers(logp: Tensor, ref_logp: Tensor, mask: Tensor) -> Tensor:
    """log pi(y | x) - log pi_ref(y | x) of whole answers: (N,T) summed over actions to (N,).

    No gradient reaches the reference.
    """
    return torch.where(mask.bool(), logp - ref_logp.detach(), 0.0).sum(dim=1)
