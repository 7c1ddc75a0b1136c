"""Batches for rewards that look at texts."""

import torch

from guerdon.rollouts import make_rollouts


def batch_of(text, group=None, **fields):
    """A batch with these texts, one action each, and further fields; all in one group unless told otherwise."""
    n = len(text)
    group = torch.zeros(n, dtype=torch.int64) if group is None else group
    return make_rollouts(
        group,
        group,
        torch.ones(n, 1, dtype=torch.bool),
        torch.zeros(n, 1),
        done=torch.ones(n, dtype=torch.bool),
        truncated=torch.zeros(n, dtype=torch.bool),
        payload={},
        text=text,
        **fields,
    )
