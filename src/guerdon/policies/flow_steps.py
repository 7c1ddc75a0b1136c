"""One step of denoising as a Gaussian action: the samplers that give a flow or diffusion policy a log-probability.

Notation: noise time t runs from 1 (pure noise) to 0 (data), x_t = (1 - t) x_0 + t x_1 with x_1 ~ N(0, I), and
the network's output is the velocity v = E[x_1 - x_0 | x_t] (kind ``ddim``: the noise E[x_1 | x_t]). A step goes
from t to t' = t - dt and draws x' ~ N(mean, std^2 I). D is the number of dimensions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from guerdon.errors import RecipeError

StepKind = Literal["flow_sde", "dance_sde", "cps", "ode", "ddim"]
Reduce = Literal["mean", "sum"]
KLKind = Literal["exact", "official", "velocity"]

# Noise scale a of the sources: Flow-GRPO, DanceGRPO, Flow-CPS, deterministic, DDPO (eta).
NOISE_SCALE: dict[str, float] = {"flow_sde": 0.7, "dance_sde": 0.3, "cps": 0.7, "ode": 0.0, "ddim": 1.0}
# Square roots of the noise rate at t = 0 and t = 1: the schedule of Stable Diffusion, which DDPO and DPOK fine-tune.
ROOT_BETA_MIN, ROOT_BETA_MAX = math.sqrt(0.85), math.sqrt(12.0)
TINY = 1e-12


class Step(NamedTuple):
    """What one denoising step gave.

    Attributes:
        x_next: (..., D) the latent after the step, drawn or given.
        logp: (...) its log-probability, reduced over D; 0 where the step is deterministic.
        mean: (..., D) mean of the step.
        std: (...) standard deviation of the step in every dimension.
    """

    x_next: Tensor
    logp: Tensor
    mean: Tensor
    std: Tensor


def alpha_bar(t: Tensor) -> Tensor:
    """Share of signal variance at noise time t, exp(-integral of beta from 0 to t); sqrt(beta) is linear in t.

    Its discretisation into 1000 steps is Stable Diffusion's "scaled linear" schedule: 1 at t = 0, .0048 at t = 1.

    Source: Rombach et al. 2022, arXiv 2112.10752; continuous time as in Song et al. 2021, arXiv 2011.13456.
    """
    low, slope = ROOT_BETA_MIN, ROOT_BETA_MAX - ROOT_BETA_MIN
    return torch.exp(-(low**2 * t + low * slope * t**2 + slope**2 * t**3 / 3))


@dataclass(frozen=True)
class SDEStep:
    """A sampler: the Gaussian from which the latent after each step is drawn.

    With x0 = x - t v, x1 = x + (1 - t) v and the score -x1 / t of the marginal at t:

    - ``flow_sde``: mean = x - (v + sigma^2 / (2 t) x1) dt, std = sigma sqrt(dt), sigma = a sqrt(t / (1 - t));
      at t = 1 the denominator takes the next grid point. Same marginals as the ODE as dt -> 0, with an error of
      order sqrt(dt), for the first step's noise stays a.
    - ``dance_sde``: the same with sigma = a.
    - ``cps``: mean = (1 - t') x0 + sqrt(t'^2 - std^2) x1, std = t' sin(a pi / 2). It keeps the noise level right
      at few steps, but does not keep the marginals as dt -> 0.
    - ``ode``: mean = x - v dt, std = 0, no log-probability.
    - ``ddim``: noise prediction e with signal share A = alpha_bar(t), A' = alpha_bar(t'):
      mean = sqrt(A') x0 + sqrt(1 - A' - std^2) e, x0 = (x - sqrt(1 - A) e) / sqrt(A),
      std = a sqrt((1 - A') / (1 - A)) sqrt(1 - A / A').

    Every kind with a = 0 is its deterministic sampler. Computed in float32 or better.

    Args:
        kind: the sampler.
        a: noise scale (``ddim``: eta), dimensionless; None takes the source's (``NOISE_SCALE``).
        logp_reduce: ``mean`` over D as the released trainers do, which makes a log-ratio 1/D of the true one, or
            ``sum``.

    Raises:
        RecipeError: for a negative scale, or one above 1 with ``cps`` or ``ddim``.

    Source: Flow-GRPO (Liu et al. 2025, arXiv 2505.05470), DanceGRPO (Xue et al. 2025, arXiv 2505.07818),
    Flow-CPS (Wang and Yu 2025, arXiv 2509.05952), DDIM (Song et al. 2021, arXiv 2010.02502), DDPO (Black et al.
    2023, arXiv 2305.13301).
    """

    kind: StepKind = "flow_sde"
    a: float | None = None
    logp_reduce: Reduce = "mean"

    def __post_init__(self) -> None:
        top = 1.0 if self.kind in ("cps", "ddim") else math.inf
        if not 0.0 <= self.scale <= top:
            raise RecipeError(
                f"noise of sampler '{self.kind}' is {self.scale}; want a number from 0 to {top}, "
                f"for example {NOISE_SCALE[self.kind]}"
            )

    @property
    def scale(self) -> float:
        """The noise scale in force."""
        return NOISE_SCALE[self.kind] if self.a is None or self.kind == "ode" else self.a

    def noised(self, x_0: Tensor, x_1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mix data (..., D) with noise (..., D) at time t (...): the network's input and its regression target."""
        t = t.unsqueeze(-1)
        if self.kind == "ddim":
            signal = alpha_bar(t)
            return signal.sqrt() * x_0 + (1 - signal).sqrt() * x_1, x_1
        return (1 - t) * x_0 + t * x_1, x_1 - x_0

    def std(self, t: Tensor, t_next: Tensor, a: Tensor | float | None = None) -> Tensor:
        """Standard deviation of the step from t to t' in every dimension, in the shape of t."""
        a = self._scale(a, t)
        if self.kind == "cps":
            return t_next * torch.sin(a * (math.pi / 2))
        if self.kind == "ddim":
            now, after = alpha_bar(t), alpha_bar(t_next)
            return a * ((1 - after) / (1 - now).clamp(min=TINY) * (1 - now / after)).clamp(min=0).sqrt()
        return self._sigma(a, t, t_next) * (t - t_next).sqrt()

    def step(
        self,
        v: Tensor,
        x: Tensor,
        t: Tensor | float,
        t_next: Tensor | float,
        *,
        a: Tensor | float | None = None,
        noise: Tensor | None = None,
        x_next: Tensor | None = None,
    ) -> Step:
        """Take one step, or score one that was taken.

        logp = -(x' - mean)^2 / (2 std^2) - log std - log(2 pi) / 2, reduced over D; for ``cps`` it is -(x' - mean)^2,
        as its authors release it, so its ratio is not that of the Gaussian.

        Args:
            v: (..., D) output of the network at x and t.
            x: (..., D) latent before the step.
            t: (...) or scalar, noise time before the step, in (0, 1].
            t_next: (...) or scalar, noise time after it, in [0, t].
            a: (...) or scalar, noise scale in place of the sampler's own.
            noise: (..., D) standard normal draw; without it, and without ``x_next``, the step lands on its mean.
            x_next: (..., D) the latent that was reached; it is scored, not drawn.
        """
        v, x = _at_least_float32(v), _at_least_float32(x)
        t, t_next = _time(t, x), _time(t_next, x)
        mean, std = self._mean(v, x, t, t_next, a), self.std(t, t_next, a)
        spread = std.unsqueeze(-1)
        if x_next is None:
            x_next = mean if noise is None else mean + spread * noise
        if self.kind == "cps":
            terms = -((x_next - mean) ** 2)
        else:
            safe = torch.where(spread > 0, spread, 1.0)
            terms = -0.5 * ((x_next - mean) / safe) ** 2 - safe.log() - 0.5 * math.log(2 * math.pi)
        logp = torch.where(std > 0, self._reduce(terms), 0.0)
        return Step(x_next, logp, mean, std)

    def entropy(self, std: Tensor, dimensions: int) -> Tensor:
        """Entropy of a step in nats, log std + log(2 pi e) / 2 per dimension, reduced as logp; 0 where std is 0."""
        one = torch.where(std > 0, std, 1.0).log() + 0.5 * math.log(2 * math.pi * math.e)
        return torch.where(std > 0, one * (dimensions if self.logp_reduce == "sum" else 1), 0.0)

    def step_kl(
        self,
        v: Tensor,
        v_ref: Tensor,
        x: Tensor,
        t: Tensor | float,
        t_next: Tensor | float,
        *,
        a: Tensor | float | None = None,
        kind: KLKind = "exact",
    ) -> Tensor:
        """Divergence of a step under v from the same step under v_ref.

        - ``exact``: the KL divergence of the two Gaussians, |mean - mean_ref|^2 / (2 std^2), summed over D, nats.
        - ``official``: mean over D of (mean - mean_ref)^2 / (2 sigma^2), without the dt of std^2 = sigma^2 dt, as
          Flow-GRPO releases it; ``cps`` and ``ddim`` have no dt and take std for sigma.
        - ``velocity``: mean over D of (v - v_ref)^2, which needs no noise.

        Args:
            v, v_ref: (..., D) outputs of the two networks at x and t.
            x, t, t_next, a: as for ``step``.

        Returns:
            (...), differentiable; the first two are 0 where the step is deterministic.

        Source: Flow-GRPO (Liu et al. 2025, arXiv 2505.05470).
        """
        v, v_ref, x = (_at_least_float32(y) for y in (v, v_ref, x))
        if kind == "velocity":
            return ((v - v_ref) ** 2).mean(dim=-1)
        t, t_next = _time(t, x), _time(t_next, x)
        shift = self._mean(v, x, t, t_next, a) - self._mean(v_ref, x, t, t_next, a)
        std = self.std(t, t_next, a)
        sigma = std / (t - t_next).sqrt() if kind == "official" and self.kind not in ("cps", "ddim") else std
        squares = (shift / torch.where(std > 0, sigma, 1.0).unsqueeze(-1)) ** 2
        total = squares.sum(dim=-1) if kind == "exact" else squares.mean(dim=-1)
        return torch.where(std > 0, total / 2, 0.0)

    def _scale(self, a: Tensor | float | None, t: Tensor) -> Tensor:
        if self.kind == "ode":
            return torch.zeros_like(t)
        return torch.as_tensor(self.scale if a is None else a, dtype=t.dtype, device=t.device).expand_as(t)

    def _sigma(self, a: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        """Diffusion coefficient of the SDE, in the shape of t."""
        if self.kind == "flow_sde":
            return a * (t / (1 - torch.where(t < 1, t, t_next))).sqrt()
        return a

    def _mean(self, v: Tensor, x: Tensor, t: Tensor, t_next: Tensor, a: Tensor | float | None) -> Tensor:
        scale, std = self._scale(a, t).unsqueeze(-1), self.std(t, t_next, a).unsqueeze(-1)
        t, t_next = t.unsqueeze(-1), t_next.unsqueeze(-1)
        if self.kind == "ode":
            return x - v * (t - t_next)
        if self.kind == "cps":
            kept = (t_next**2 - std**2).clamp(min=0).sqrt()
            return (1 - t_next) * (x - t * v) + kept * (x + (1 - t) * v)
        if self.kind == "ddim":
            now, after = alpha_bar(t), alpha_bar(t_next)
            clean = (x - (1 - now).sqrt() * v) / now.sqrt()
            return after.sqrt() * clean + (1 - after - std**2).clamp(min=0).sqrt() * v
        pull = self._sigma(scale, t, t_next) ** 2 / (2 * t)
        return x - (v + pull * (x + (1 - t) * v)) * (t - t_next)

    def _reduce(self, x: Tensor) -> Tensor:
        return x.mean(dim=-1) if self.logp_reduce == "mean" else x.sum(dim=-1)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _time(t: Tensor | float, x: Tensor) -> Tensor:
    """Noise time in the batch shape of x."""
    return torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(x.shape[:-1])
