"""Small transformers, one per seed and all side by side, that add two digits: outright, or counting up on paper.

A prompt is ``a b =``. A short answer is the sum and the end; a worked one counts from a in b steps, checks by counting
anew, and gives the sum after a colon. Whoever has not ended after ``LONGEST`` tokens is cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from guerdon.seeding import torch_generator

EQUALS, END, COLON, AGAIN, PAD = 10, 11, 12, 13, 14
VOCABULARY, PROMPT = 15, 3
MOST = 5  # digits are below it, so that sums are single digits
LONGEST = 2 * (MOST + 1) + 4

Weights = dict[str, Tensor]


def answers(checks: int | None, *, off: int = 0) -> Tensor:
    """(MOST^2, PROMPT + LONGEST) every prompt with its answer, cut where it is too long.

    Args:
        checks: how often the count is repeated; None for the sum outright.
        off: by how much the sum is wrong.
    """
    rows = []
    for a in range(MOST):
        for b in range(MOST):
            count = list(range(a, a + b + 1))
            paper = [] if checks is None else [*count, *[AGAIN, *count] * checks, COLON]
            rows.append([a, b, EQUALS, *paper, (a + b + off) % 10, END] + [PAD] * LONGEST)
    return torch.tensor([row[: PROMPT + LONGEST] for row in rows])


def begin(seeds: Sequence[int], width: int = 24, layers: int = 2) -> Weights:
    """Weights (S,...) of a pre-norm transformer of a single head with learned positions."""
    shapes = {"embed": (VOCABULARY, width), "place": (PROMPT + LONGEST, width), "out": (width, VOCABULARY)}
    for layer in range(layers):
        shapes |= {f"{layer}/qkv": (width, 3 * width), f"{layer}/mix": (width, width)}
        shapes |= {f"{layer}/up": (width, 4 * width), f"{layer}/down": (4 * width, width)}
    weights = {}
    for name, shape in shapes.items():
        scale = 0.3 if name in ("embed", "place") else shape[0] ** -0.5
        drawn = [torch.randn(shape, generator=torch_generator(seed, "worked_sums", name)) * scale for seed in seeds]
        weights[name] = torch.stack(drawn)
    return weights


def read(weights: Weights, tokens: Tensor) -> Tensor:
    """Logits (S,B,T,V) of what follows each of tokens (S,B,T)."""
    seed = torch.arange(len(tokens)).view(-1, 1, 1)
    x = weights["embed"][seed, tokens] + weights["place"][:, None, : tokens.shape[2]]
    width = x.shape[-1]
    layer = 0
    while f"{layer}/qkv" in weights:
        q, k, v = _times(F.rms_norm(x, (width,)), weights[f"{layer}/qkv"]).chunk(3, dim=-1)
        x = x + _times(F.scaled_dot_product_attention(q, k, v, is_causal=True), weights[f"{layer}/mix"])
        x = x + _times(F.silu(_times(F.rms_norm(x, (width,)), weights[f"{layer}/up"])), weights[f"{layer}/down"])
        layer += 1
    return _times(F.rms_norm(x, (width,)), weights["out"])


def _times(x: Tensor, weight: Tensor) -> Tensor:
    return torch.bmm(x.flatten(1, 2), weight).unflatten(1, x.shape[1:3])


class Written(NamedTuple):
    """Prompts with answers (S,B,T), which tokens are the answers' (S,B,T), which answers (S,B) ended, and are right."""

    tokens: Tensor
    mask: Tensor
    ended: Tensor
    right: Tensor


@torch.no_grad()
def write(weights: Weights, prompts: Tensor, generators: Sequence[torch.Generator]) -> Written:
    """Answers to prompts (S,B,PROMPT), drawn token by token."""
    seeds, rows = prompts.shape[:2]
    chance = torch.stack([torch.rand(rows, LONGEST, generator=g) for g in generators])
    tokens, going = prompts, torch.ones(seeds, rows, dtype=torch.bool)
    masks = []
    for t in range(LONGEST):
        edges = read(weights, tokens)[:, :, -1].softmax(-1).cumsum(-1)[..., :-1]
        drawn = (chance[:, :, t : t + 1] > edges).sum(-1)
        tokens = torch.cat([tokens, torch.where(going, drawn, PAD).unsqueeze(2)], dim=2)
        masks.append(going)
        going = going & (drawn != END)
        if not going.any():
            break
    mask = torch.stack(masks, dim=2)
    length = mask.sum(dim=2, keepdim=True)
    last = tokens.gather(2, (PROMPT + length - 2).clamp(min=PROMPT))[..., 0]
    right = ~going & (length[..., 0] > 1) & (last == prompts[..., 0] + prompts[..., 1])
    mask = torch.cat([torch.zeros(seeds, rows, PROMPT, dtype=torch.bool), mask], dim=2)
    return Written(tokens, mask, ~going, right)


def log_probs(weights: Weights, tokens: Tensor) -> Tensor:
    """(S,B,T) log-probability of each token but the first, for which it is 0."""
    said = read(weights, tokens[:, :, :-1]).log_softmax(-1).gather(3, tokens[:, :, 1:].unsqueeze(3))[..., 0]
    return F.pad(said, (1, 0))


def imitate(
    weights: Weights, corpus: Tensor, *, steps: int, lr: float, seeds: Sequence[int], path: str, batch: int = 32
) -> Weights:
    """The weights after some steps of Adam on the answers of random rows (R,T) of a corpus."""
    weights = {name: x.clone().requires_grad_(True) for name, x in weights.items()}
    optimizer = torch.optim.Adam(weights.values(), lr=lr, betas=(0.9, 0.98))
    generators = [torch_generator(seed, "worked_sums", path) for seed in seeds]
    for step in range(steps):
        rows = torch.stack([torch.randint(len(corpus), (batch,), generator=g) for g in generators])
        tokens = corpus[rows]
        tokens = tokens[:, :, : int((tokens != PAD).sum(dim=2).max())]
        mask = (tokens != PAD) & (torch.arange(tokens.shape[2]) >= PROMPT)
        loss = -(log_probs(weights, tokens) * mask).sum(dim=(1, 2)) / mask.sum(dim=(1, 2))
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps)
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    return {name: x.detach() for name, x in weights.items()}


class Learned(NamedTuple):
    """(steps, S) in training: mean length of the answers, and the share of right ones."""

    length: Tensor
    right: Tensor


def reinforce(
    weights: Weights,
    loss: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    *,
    steps: int,
    lr: float,
    noise: float,
    seeds: Sequence[int],
    prompts: int = 8,
    group_size: int = 8,
) -> Learned:
    """Train by Adam on whether answers are right, as somebody sees it who errs with the chance ``noise``.

    Args:
        weights: where training starts.
        loss: of one seed, from log-probabilities (B,T), rewards (B,), groups (B,) and the mask (B,T).
        steps: updates.
        lr: learning rate.
        noise: chance that a reward is turned round, whatever the answer's length.
        seeds: one per policy.
        prompts, group_size: of a batch.
    """
    weights = {name: x.clone().requires_grad_(True) for name, x in weights.items()}
    optimizer = torch.optim.Adam(weights.values(), lr=lr)
    generators = [torch_generator(seed, "worked_sums", "reinforce") for seed in seeds]
    group = torch.arange(prompts).repeat_interleave(group_size)
    lengths, rights = [], []
    for _ in range(steps):
        asked = torch.stack([torch.randint(MOST, (prompts, 2), generator=g) for g in generators])
        asked = F.pad(asked, (0, 1), value=EQUALS).repeat_interleave(group_size, dim=1)
        turned = torch.stack([torch.rand(len(group), generator=g) for g in generators]) < noise
        out = write(weights, asked, generators)
        lengths.append(out.mask.sum(dim=2).double().mean(dim=1))
        rights.append(out.right.double().mean(dim=1))
        reward, logp = (out.right ^ turned).float(), log_probs(weights, out.tokens)
        total = torch.stack([loss(logp[s], reward[s], group, out.mask[s]) for s in range(len(seeds))]).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    return Learned(torch.stack(lengths), torch.stack(rights))
