"""A reward of single frames from demonstrations: whether what was to be done just now is done."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from guerdon.seeding import torch_generator


class Segments(NamedTuple):
    """Frames (N,T): which are ``positive``, and the number of the ``segment`` each lies in, -1 off the frames."""

    positive: Tensor
    segment: Tensor


def segment_pseudo_labels(
    gripper: Tensor, speed: Tensor, exists: Tensor, *, threshold: float = 0.05, last: int = 1
) -> Segments:
    """Cut demonstrations into segments where the gripper changes or the arm comes to rest; their last frames are done.

    A segment ends with the frame in which the gripper is not as it was the frame before, with the first of several
    frames in a row whose speed is below the threshold, and with the demonstration, which is a success. An arm that
    rests before it first moves ends nothing.

    Args:
        gripper: (N,T) whether it is closed, or a number that says how far.
        speed: (N,T) of the arm.
        exists: (N,T) frames there are, without holes; nothing else is read.
        threshold: below it the arm rests.
        last: frames at the end of each segment that are positive; a shorter segment is positive throughout.

    Returns:
        The labels and the segments.

    Raises:
        ValueError: when ``last`` is below 1.

    Source: Lu et al. 2025, arXiv 2505.18719. (Where segments end is theirs; which frames are positive is inferred.)
    """
    if last < 1:
        raise ValueError(f"last is {last}, wanted 1 or more, or no frame is positive")
    exists = exists.bool()
    rests = exists & (torch.where(exists, speed, 0.0) < threshold)
    before = torch.ones_like(exists[:, :1])
    stops = rests & ~torch.cat([before, rests[:, :-1]], dim=1)
    changed = torch.zeros_like(exists)
    changed[:, 1:] = (gripper[:, 1:] != gripper[:, :-1]) & exists[:, 1:] & exists[:, :-1]
    final = exists & ~torch.cat([exists[:, 1:], torch.zeros_like(before)], dim=1)
    ends = stops | changed | final
    frame = torch.arange(exists.shape[1], device=exists.device)
    following = torch.where(ends, frame, 2 * exists.shape[1] + last).flip(1).cummin(dim=1).values.flip(1)
    segment = ends.long().cumsum(dim=1) - ends.long()
    return Segments(exists & (following - frame < last), torch.where(exists, segment, -1))


class Paid(NamedTuple):
    """Frames (N,T) that complete a subtask for the first time, and how many (N,) each row has completed since."""

    paid: Tensor
    progress: Tensor


def paid_in_order(answer: Tensor, ended: Tensor, progress: Tensor | None = None) -> Paid:
    """Pay each subtask once and in order: of every frame only the subtask that is due is asked about.

    paid_t = answer_{t,k}, then k <- k + 1 if paid; k = 0 again once an episode has ended

    An episode can earn as much as a demonstration shows, whatever it does. Paid for every frame, a policy soon does and
    undoes what the model was trained to notice, and no longer what it was for.

    Args:
        answer: (N,T,K) whether the k-th subtask looks completed in the frame after each step.
        ended: (N,T) steps with which an episode ends; the next one begins another.
        progress: (N,) k before the first step; 0 by default. For episodes that began in an earlier rollout.

    Returns:
        What is paid, and k after the last step, to be handed on.

    Source: none; the subtask in the question of Lu et al. 2025, arXiv 2505.18719, moves on likewise.
    """
    count = answer.shape[2]
    k = torch.zeros(len(answer), dtype=torch.int64, device=answer.device) if progress is None else progress
    paid = torch.zeros_like(ended, dtype=torch.bool)
    for t in range(answer.shape[1]):
        due = answer[:, t].bool().gather(1, k.clamp(max=count - 1).unsqueeze(1)).squeeze(1) & (k < count)
        paid[:, t] = due
        k = torch.where(ended[:, t].bool(), 0, k + due.long())
    return Paid(paid, k)


class FrameReward(nn.Module):
    """Says of a frame whether the present subtask is completed: 1 if it is thought more likely than not, else 0.

    p = sigmoid(f(x)), f with one hidden layer

    It stands for the vision-language model that is asked "is it completed?" about an image, and reads features of the
    frame. Its answer is added to the success of the environment, never put in its place.

    Args:
        width: size D of the features.
        hidden: size of the hidden layer.
        seed: of the first weights.

    Source: Lu et al. 2025, arXiv 2505.18719.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int, *, hidden: int = 64, seed: int = 0) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, 1))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        generator = torch_generator(seed, "frame reward")
        for weight in self.parameters():
            bound = weight.shape[-1] ** -0.5
            nn.init.uniform_(weight, -bound, bound, generator=generator)

    def forward(self, frames: Tensor) -> Tensor:
        """Features (...,D) to logits (...)."""
        return self.layers((frames - self.mean) / self.scale).squeeze(-1)

    @torch.no_grad()
    def answer(self, frames: Tensor) -> Tensor:
        """Features (...,D) to 0 or 1 (...)."""
        return (self(frames) > 0).to(frames.dtype)

    def fit(self, frames: Tensor, positive: Tensor, exists: Tensor, *, steps: int = 300, lr: float = 0.01) -> float:
        """Learn from labelled frames by Adam on the whole batch.

        Args:
            frames: (N,T,D) features.
            positive: (N,T) labels, as ``segment_pseudo_labels`` gives them.
            exists: (N,T) frames there are.
            steps: updates.
            lr: learning rate.

        Returns:
            The last loss, binary cross-entropy in nats per frame.

        Raises:
            ValueError: when there is no frame.
        """
        exists = exists.bool()
        if not bool(exists.any()):
            raise ValueError("there is no frame to learn from; give demonstrations of one frame at least")
        seen, wanted = frames[exists], positive[exists].to(frames.dtype)
        self.mean, self.scale = seen.mean(dim=0), seen.std(dim=0, correction=0).clamp(min=1e-6)
        optimizer = torch.optim.Adam(self.parameters(), lr=lr)
        loss = torch.zeros(())
        for _ in range(steps):
            loss = binary_cross_entropy_with_logits(self(seen), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return float(loss.detach())
