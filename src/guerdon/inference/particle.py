"""Search with a population of partial answers that is resampled by their scores after every step."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from guerdon.inference.tree import Found, Steps
from guerdon.seeding import torch_generator

State = TypeVar("State")
Annealing = Literal["ess", "entropy", "base", "none"]
Resampling = Literal["systematic", "multinomial"]

CLIP = 1e-7  # scores of exactly 0 and 1 would have infinite log-odds


def score_log_weight(score: Tensor) -> Tensor:
    """Log-odds of a score in (0,1): log q / (1 - q), with q kept 1e-7 away from 0 and 1.

    Args:
        score: (...) of a partial answer, as a process reward model gives it.

    Returns:
        (...) float64.

    Source: Giannone et al. 2025, arXiv 2510.05825.
    """
    return torch.special.logit(score.double(), eps=CLIP)


def effective_sample_size(probs: Tensor) -> Tensor:
    """How many equally likely particles a distribution is worth: 1 / sum p^2.

    Args:
        probs: (...,N) probabilities.

    Returns:
        (...) from 1 to N.
    """
    return 1 / (probs**2).sum(dim=-1)


def annealing_temperature(
    probs: Tensor, progress: float | Tensor, *, mode: Annealing = "ess", threshold: float = 0.5, until: float = 0.5
) -> Tensor:
    """Temperature that keeps early, overconfident scores from killing all particles but one.

    ess:      T = max(1, N / ESS (1 - u))
    entropy:  T = max(1, 1 / (H + (1 - H) u)),  H = - sum p log p / log N
    base:     T = max(1, 2 - u)

    It is 1 unless ESS / N < threshold and u < until. Two particles are never worth less than one, so the default
    threshold leaves them alone. The release divides the entropy by log N for N > 2 only; here it always is.

    Args:
        probs: (...,N) probabilities of the particles.
        progress: u, the part of the steps that is done, from 0 to 1.
        mode: one of the above, or ``none`` for 1.
        threshold: part of N below which the particles count as impoverished.
        until: progress from which scores are trusted.

    Returns:
        (...) temperature, at least 1.

    Source: Giannone et al. 2025, arXiv 2510.05825.
    """
    count = probs.shape[-1]
    u = torch.as_tensor(progress, dtype=probs.dtype, device=probs.device)
    size = effective_sample_size(probs)
    if mode == "ess":
        wanted = count / size * (1 - u)
    elif mode == "entropy":
        evenness = -torch.special.xlogy(probs, probs).sum(dim=-1) / (math.log(count) if count > 1 else 1.0)
        wanted = 1 / (evenness + (1 - evenness) * u).clamp(min=1e-12)
    elif mode == "base":
        wanted = 2 - u
    else:
        wanted = torch.ones_like(size)
    active = (size / count < threshold) & (u < until)
    return torch.where(active, wanted, 1.0).clamp(min=1.0)


def resample(probs: Tensor, uniform: Tensor, *, method: Resampling = "systematic") -> Tensor:
    """Draw N ancestors of N particles.

    systematic:   the k-th is where the cumulated probability passes (k + U) / N; every particle is drawn floor(N p) or
                  ceil(N p) times
    multinomial:  each by a number of its own

    Args:
        probs: (...,N) probabilities.
        uniform: (...,1) uniform numbers in [0,1) for ``systematic``, (...,N) for ``multinomial``.
        method: one of the above.

    Returns:
        (...,N) int64 index of each ancestor.

    Raises:
        ValueError: when there are not as many uniform numbers as the method takes.
    """
    count = probs.shape[-1]
    wanted = 1 if method == "systematic" else count
    if uniform.shape != (*probs.shape[:-1], wanted):
        raise ValueError(
            f"uniform has shape {tuple(uniform.shape)}, wanted {(*probs.shape[:-1], wanted)} for method '{method}'"
        )
    edges = probs.double().cumsum(dim=-1)
    points = uniform.double()
    if method == "systematic":
        points = (torch.arange(count, device=probs.device) + points) / count
    drawn = torch.searchsorted(edges, (points * edges[..., -1:]).contiguous(), right=True)
    last = probs.shape[-1] - 1 - (probs.flip(-1) > 0).int().argmax(dim=-1, keepdim=True)
    return torch.minimum(drawn, last)  # rounding must not draw a particle of probability 0


class FilterStep(NamedTuple):
    """What one step did to the particles of a start.

    Attributes:
        ess: effective sample size of the weights, before the temperature.
        temperature: at which they were resampled.
        survivors: how many of the particles have descendants.
    """

    ess: float
    temperature: float
    survivors: int


@dataclass(frozen=True)
class Filtered(Generic[State]):
    """The particles of a start after the last step.

    Attributes:
        found: states and the score of each, best first.
        steps: what happened on the way.
    """

    found: list[Found[State]]
    steps: list[FilterStep]


def particle_filter(
    starts: Sequence[State],
    steps: Steps[State],
    score: Callable[[Sequence[State]], Sequence[float]],
    *,
    particles: int = 8,
    max_steps: int = 32,
    annealing: Annealing = "ess",
    resampling: Resampling = "systematic",
    lookahead: bool = False,
    sweeps: int = 1,
    seed: int = 0,
) -> list[Filtered[State]]:
    """Extend N particles step by step, and resample them by the score of where they stand.

    log w = logit(score of the present step),  p = softmax(log w / T),  T: ``annealing_temperature``

    The weight is that of the present step alone; earlier ones are not multiplied up. Particles that have ended are
    not extended any more, keep their last weight, and are resampled with the others, until all of a start have.
    Progress after step t of ``max_steps`` is t / max_steps. All particles of all starts are extended in one call and
    scored in one call.

    Args:
        starts: the empty answers; each has a population of its own.
        steps: writes continuations, see ``LanguageSteps``; one is asked of each particle. The number of the step goes
            on rising from sweep to sweep, and is negative where a successor is peeked at, so that no draw is repeated.
        score: of partial and whole answers, n numbers in [0,1] for n.
        particles: N.
        max_steps: a sweep stops here at the latest.
        annealing: mode of the temperature; ``none`` is the plain particle filter.
        resampling: see ``resample``.
        lookahead: resample by the product of a particle's weight and that of one successor, peeked at and thrown away,
            and divide the next weight by the latter (a one-step auxiliary filter; the form is inferred).
        sweeps: further sweeps keep one particle of the sweep before, drawn by its weight, with all of its steps
            (particle Gibbs). It stands in slot 0 and survives each resampling there (the form is inferred).
        seed: of the resampling; ``steps`` has its own.

    Returns:
        For each start the particles of the last sweep, best first, and what every step of it did.

    Raises:
        ValueError: when particles, max_steps or sweeps is below 1, or a state has another number of scores or
            continuations than 1.

    Source: Giannone et al. 2025, arXiv 2510.05825.
    """
    for name, number in (("particles", particles), ("max_steps", max_steps), ("sweeps", sweeps)):
        if number < 1:
            raise ValueError(f"{name} is {number}, wanted 1 or more")
    generator = torch_generator(seed, "particles")
    kept: list[_Particle[State]] = []
    rows: list[_Row[State]] = []
    for sweep in range(sweeps):
        rows = [_Row([_Particle(copy.deepcopy(start)) for _ in range(particles)]) for start in starts]
        for row, reference in zip(rows, kept, strict=False):
            row.reference = reference.past
        remember = sweep + 1 < sweeps
        for step in range(max_steps):
            depth = sweep * max_steps + step
            going = [row for row in rows if row.going(steps, step)]
            if not going:
                break
            _advance(going, steps, score, depth, step, remember)
            left = [row for row in going if step + 1 < max_steps and row.going(steps, step + 1)]
            if left:
                logits = _peek(left, steps, score, depth) if lookahead else _log_weights(left)
                _resample(left, logits, (step + 1) / max_steps, annealing, resampling, generator)
        kept = [row.draw(generator) for row in rows] if remember else []
    return [row.told() for row in rows]


@dataclass
class _Particle(Generic[State]):
    """A state, its score, the log-weight that was peeked at, and how it came about."""

    state: State
    score: float = 0.5
    peeked: float = 0.0
    past: tuple[tuple[State, float], ...] = ()

    def copy(self) -> _Particle[State]:
        return _Particle(copy.deepcopy(self.state), self.score, self.peeked, self.past)

    @property
    def log_weight(self) -> float:
        q = min(max(self.score, CLIP), 1 - CLIP)
        return math.log(q / (1 - q)) - self.peeked


@dataclass
class _Row(Generic[State]):
    """The particles of a start, and the steps of the one that is kept in slot 0."""

    particles: list[_Particle[State]]
    reference: tuple[tuple[State, float], ...] = ()
    trace: list[FilterStep] = field(default_factory=list)

    def going(self, steps: Steps[State], step: int) -> bool:
        return step < len(self.reference) or any(not steps.ended(p.state) for p in self.moving)

    @property
    def moving(self) -> list[_Particle[State]]:
        """Those that are not played back."""
        return self.particles[1:] if self.reference else self.particles

    def draw(self, generator: torch.Generator) -> _Particle[State]:
        probs = torch.tensor([p.log_weight for p in self.particles], dtype=torch.float64).softmax(dim=0)
        return self.particles[int(torch.multinomial(probs, 1, generator=generator))]

    def told(self) -> Filtered[State]:
        found = [Found(p.state, p.score) for p in self.particles]
        return Filtered(sorted(found, key=lambda each: -each.value), self.trace)


def _advance(
    rows: Sequence[_Row[State]],
    steps: Steps[State],
    score: Callable[[Sequence[State]], Sequence[float]],
    depth: int,
    step: int,
    remember: bool,
) -> None:
    """Play back what is kept, and extend and score what has not ended."""
    for row in rows:
        if step < len(row.reference):
            state, value = row.reference[step]
            peeked = row.particles[0].peeked
            row.particles[0] = _Particle(copy.deepcopy(state), value, peeked, row.reference[: step + 1])
    growing = [p for row in rows for p in row.moving if not steps.ended(p.state)]
    for particle, (state, value) in zip(growing, _grow(growing, steps, score, depth), strict=True):
        particle.state, particle.score = state, value
        if remember:
            particle.past = (*particle.past, (copy.deepcopy(state), value))


def _grow(
    particles: Sequence[_Particle[State]],
    steps: Steps[State],
    score: Callable[[Sequence[State]], Sequence[float]],
    depth: int,
) -> list[tuple[State, float]]:
    """One continuation of each, with its score."""
    if not particles:
        return []
    several = steps.extend([p.state for p in particles], 1, depth)
    if [len(states) for states in several] != [1] * len(particles):
        raise ValueError(f"steps gave {[len(s) for s in several]} continuations; wanted one of each particle")
    states = [states[0] for states in several]
    values = [float(v) for v in score(states)]
    if len(values) != len(states):
        raise ValueError(f"score gave {len(values)} numbers for {len(states)} answers; wanted one for each")
    return list(zip(states, values, strict=True))


def _log_weights(rows: Sequence[_Row[State]]) -> Tensor:
    """(B,N)."""
    return torch.tensor([[p.log_weight for p in row.particles] for row in rows], dtype=torch.float64)


def _peek(
    rows: Sequence[_Row[State]],
    steps: Steps[State],
    score: Callable[[Sequence[State]], Sequence[float]],
    depth: int,
) -> Tensor:
    """(B,N) log-weight of one successor of each particle; one that has ended stands for itself."""
    everyone = [p for row in rows for p in row.particles]
    logits = torch.tensor([p.log_weight for p in everyone], dtype=torch.float64)
    ended = [steps.ended(p.state) for p in everyone]
    growing = [p for p, over in zip(everyone, ended, strict=True) if not over]
    seen = iter([value for _, value in _grow([p.copy() for p in growing], steps, score, -depth - 1)])
    ahead = score_log_weight(
        torch.tensor([p.score if over else next(seen) for p, over in zip(everyone, ended, strict=True)])
    )
    for particle, over, value in zip(everyone, ended, ahead.tolist(), strict=True):
        particle.peeked = 0.0 if over else value
    return (logits + ahead).reshape(len(rows), -1)


def _resample(
    rows: Sequence[_Row[State]],
    logits: Tensor,
    progress: float,
    annealing: Annealing,
    resampling: Resampling,
    generator: torch.Generator,
) -> None:
    """Replace the particles of each row by descendants drawn at its temperature."""
    count = logits.shape[1]
    shape = (len(rows), 1 if resampling == "systematic" else count)
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
    probs = logits.softmax(dim=-1)
    heat = annealing_temperature(probs, progress, mode=annealing)
    drawn = resample((logits / heat.unsqueeze(-1)).softmax(dim=-1), uniform, method=resampling).tolist()
    for row, ancestors, size, temperature in zip(
        rows, drawn, effective_sample_size(probs).tolist(), heat.tolist(), strict=True
    ):
        if row.reference:
            ancestors[0] = 0
        row.trace.append(FilterStep(size, temperature, len(set(ancestors))))
        row.particles = _descendants(row.particles, ancestors)


def _descendants(particles: Sequence[_Particle[State]], ancestors: Sequence[int]) -> list[_Particle[State]]:
    """The first descendant takes its ancestor over, further ones get copies."""
    used: set[int] = set()
    out = []
    for ancestor in ancestors:
        out.append(particles[ancestor].copy() if ancestor in used else particles[ancestor])
        used.add(ancestor)
    return out
