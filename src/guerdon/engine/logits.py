"""From hidden states to log-probabilities of tokens, without ever holding the logits of a whole batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Logits held at a time: 64 MiB in float32. A vocabulary of 49,000 then takes some 340 states at once, enough for a
# matrix product at full speed.
ROOM = 2**24


def token_logp(
    project: Callable[[Tensor], Tensor], states: Tensor, tokens: Tensor, temperature: Tensor, *, room: int = ROOM
) -> tuple[Tensor, Tensor]:
    """Log-probability of one token after each state, and the entropy of its distribution; differentiable.

    logits = project(state) / temperature,  logp = logits[token] - logsumexp(logits),  H = -sum_v p_v ln p_v

    States are taken in chunks. If there is more than one, the logits of a chunk are dropped and computed again for the
    gradient, so no more than one chunk is held at any time.

    Args:
        project: gives the logits (M,V) of states (M,D).
        states: (M,D).
        tokens: (M,) int64.
        temperature: (M,).
        room: most logits to hold.

    Returns:
        (M,) and (M,), in float32 or more.
    """
    if not len(states):
        return states.new_zeros(0, dtype=torch.float32), states.new_zeros(0, dtype=torch.float32)
    vocabulary = project(states[:1].detach()).shape[-1]
    rows = max(1, room // vocabulary)
    chunks = [slice(start, start + rows) for start in range(0, len(states), rows)]

    def of_chunk(states: Tensor, tokens: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
        logits = project(states)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return _LogpEntropy.apply(logits / temperature.unsqueeze(1), tokens)  # type: ignore[return-value]

    if len(chunks) == 1:
        return of_chunk(states, tokens, temperature)
    pieces: list[Any] = [
        checkpoint(of_chunk, states[part], tokens[part], temperature[part], use_reentrant=False) for part in chunks
    ]
    return torch.cat([logp for logp, _ in pieces]), torch.cat([entropy for _, entropy in pieces])


class _LogpEntropy(torch.autograd.Function):
    """log p and H of logits (M,V), with two arrays of that size for the gradient instead of seven.

    d logp / d logits = onehot - p,  dH / d logits_v = -p_v (ln p_v + H)
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        total = logits.logsumexp(dim=1, keepdim=True)
        logp = logits.gather(1, tokens.unsqueeze(1)).sub_(total).squeeze(1)
        log_p = logits - total
        p = log_p.exp()
        # An impossible token has p = 0 and ln p = -inf, and adds nothing.
        entropy = -p.mul_(log_p.clamp_(min=torch.finfo(log_p.dtype).min)).sum(dim=1)
        ctx.save_for_backward(logits, tokens, total, entropy)
        ctx.set_materialize_grads(False)
        return logp, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None]:
        logits, tokens, total, entropy = ctx.saved_tensors
        of_logp, of_entropy = grads
        log_p = logits - total
        p = log_p.exp()
        if of_entropy is None:
            slope = p
            if of_logp is None:
                return None, None
            slope.mul_(of_logp.neg().unsqueeze(1))
        else:
            log_p.clamp_(min=torch.finfo(log_p.dtype).min).add_(entropy.unsqueeze(1)).mul_(of_entropy.unsqueeze(1))
            if of_logp is not None:
                log_p.add_(of_logp.unsqueeze(1))
            slope = p.mul_(log_p.neg_())
        if of_logp is not None:
            slope.scatter_add_(1, tokens.unsqueeze(1), of_logp.unsqueeze(1))
        return slope, None
