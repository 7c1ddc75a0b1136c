"""A class-conditional flow or diffusion policy: it draws a sample in T denoising steps, each an action."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import pydantic
import torch
from torch import Tensor, nn

from guerdon.errors import RecipeError
from guerdon.policies.base import Evaluation, Policy, SamplingOptions
from guerdon.policies.flow_steps import KLKind, Reduce, SDEStep, StepKind
from guerdon.registry import register
from guerdon.rollouts import Rollouts, make_rollouts
from guerdon.seeding import torch_generator
from guerdon.tasks.base import Kind, Problem, Starts, Task

# Sinusoidal time features: frequencies spread geometrically from 1 to this many radians per unit of noise time.
TIME_FEATURES, TOP_FREQUENCY = 32, 200.0


@runtime_checkable
class FlowTask(Protocol):
    """What a flow policy must know of its task; starts are integers from 0 to ``classes`` - 1."""

    @property
    def dimensions(self) -> int:
        """Size D of a sample."""
        ...

    @property
    def classes(self) -> int:
        """Number of conditions."""
        ...


class FlowSampling(SamplingOptions):
    """How rollouts of a flow policy are drawn.

    Attributes:
        same_latent: start the members of a group from one x_1, so that they differ by the noise of the steps only.
        window: add noise at this many consecutive steps, drawn anew for every batch, and train those only (the fast
            window of Flow-GRPO-Fast and MixGRPO); at every step by default.
        timestep_fraction: share of the steps, from the noisiest on, that is trained; .99 leaves out the last.
    """

    same_latent: bool = False
    window: int | None = pydantic.Field(default=None, ge=1)
    timestep_fraction: float = pydantic.Field(default=0.99, gt=0, le=1)


class VelocityNet(nn.Module):
    """A residual perceptron v(x, t, c); noise time and condition scale and shift the features of every block."""

    def __init__(self, dimensions: int, classes: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.inward = nn.Linear(dimensions, hidden)
        self.time = nn.Sequential(nn.Linear(2 * TIME_FEATURES, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.label = nn.Embedding(classes + 1, hidden)
        self.blocks = nn.ModuleList(_Block(hidden) for _ in range(layers))
        self.outward = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, dimensions))

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """Output (M,D) at latents x (M,D), noise times t (M,) and conditions label (M,); ``classes`` means none."""
        frequency = torch.logspace(0, math.log10(TOP_FREQUENCY), TIME_FEATURES, dtype=x.dtype, device=x.device)
        phase = t.unsqueeze(-1) * frequency
        condition = self.time(torch.cat([phase.sin(), phase.cos()], dim=-1)) + self.label(label)
        h = self.inward(x)
        for block in self.blocks:
            h = block(h, condition)
        return self.outward(h)


class _Block(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden, elementwise_affine=False)
        self.modulate = nn.Linear(hidden, 2 * hidden)
        self.change = nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden))

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.modulate(nn.functional.silu(condition)).chunk(2, dim=-1)
        return h + self.change(self.norm(h) * (1 + scale) + shift)


@register("policy", "flow", paper="Liu et al. 2025, arXiv 2505.05470")
class FlowPolicy(Policy):
    """Draw a sample of the wanted class by denoising it in T steps; every step is a Gaussian action.

    The rollouts' payload: ``latents`` (N,T+1,D) from noise to sample, ``times`` (N,T+1) from 1 to 0, ``noise``
    (N,T) scale of each step, ``label`` (N,) condition, and ``sample`` (N,D), the clean sample that rewards read.

    Args:
        task: a task of kind ``flow``.
        hidden: width of the network.
        layers: residual blocks of the network.
        kind: sampler, see ``SDEStep``; with ``ddim`` the network predicts the noise instead of the velocity.
        noise: noise scale of the sampler; the source's by default.
        steps: denoising steps T of a sampled trajectory.
        eval_steps: denoising steps of a greedy, noise-free trajectory.
        logp_reduce: mean or sum of the log-probability over dimensions.
        guidance: weight w of classifier-free guidance, v = v_null + w (v_label - v_null) with v_null detached; none
            by default, which is w = 1.
        label_dropout: share of warm-start examples that lose their condition, from which v_null learns.

    Raises:
        RecipeError: for a task that is not for flow policies, steps below 1, or a sampler without noise.

    Source: flow matching (Lipman et al. 2023, arXiv 2210.02747), Flow-GRPO (Liu et al. 2025, arXiv 2505.05470),
    classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598).
    """

    kind: ClassVar[Kind] = "flow"
    Sampling: ClassVar[type[SamplingOptions]] = FlowSampling

    def __init__(
        self,
        task: Task,
        *,
        hidden: int = 256,
        layers: int = 3,
        kind: StepKind = "flow_sde",
        noise: float | None = None,
        steps: int = 10,
        eval_steps: int = 40,
        logp_reduce: Reduce = "mean",
        guidance: float | None = None,
        label_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if not isinstance(task, FlowTask):
            raise RecipeError(
                f"policy 'flow' needs a task with 'dimensions' and 'classes', which '{type(task).__name__}' (kind "
                f"'{getattr(task, 'kind', '?')}') does not have; use task 'digits'"
            )
        for name, value in (("steps", steps), ("eval_steps", eval_steps)):
            if value < 1:
                raise RecipeError(f"policy 'flow': '{name}' is {value}; want at least 1")
        self.dimensions, self.classes = task.dimensions, task.classes
        self.sampler = SDEStep(kind, noise, logp_reduce)
        self.noise_free = SDEStep("ddim", 0.0) if kind == "ddim" else SDEStep("ode")
        grid = torch.linspace(1, 0, steps + 1)
        if not (self.sampler.std(grid[:-1], grid[1:]) > 0).any():
            raise RecipeError(
                f"policy 'flow': sampler '{kind}' with noise {self.sampler.scale:g} is deterministic, so its steps "
                "have no log-probability to train; use kind 'flow_sde' (evaluation is noise-free anyway)"
            )
        self.steps, self.eval_steps = steps, eval_steps
        self.guidance, self.label_dropout = guidance, label_dropout
        self.module = VelocityNet(self.dimensions, self.classes, hidden, layers)

    @classmethod
    def supplied_fields(cls, options: Mapping[str, Any]) -> frozenset[str]:
        """The caption of each start is kept as its prompt."""
        return frozenset({"prompt"})

    # Acting -----------------------------------------------------------------------------------------------

    def velocity(self, x: Tensor, t: Tensor | float, label: Tensor) -> Tensor:
        """Output of the network with guidance: velocity, or noise with ``ddim``; differentiable.

        Args:
            x: (M,D) latents.
            t: (M,) or scalar, noise time.
            label: (M,) int64 condition; ``classes`` stands for none.

        Returns:
            (M,D).
        """
        t = torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(len(x))
        wanted = self.module(x, t, label)
        if self.guidance is None or self.guidance == 1:
            return wanted
        with torch.no_grad():
            null = self.module(x, t, torch.full_like(label, self.classes))
        return null + self.guidance * (wanted - null)

    def complete(self, x: Tensor, t: Tensor | float, label: Tensor, steps: int) -> Tensor:
        """Carry latents x (M,D) from noise time t (M,) to the clean sample (M,D) in equal noise-free steps.

        Latents at t = 0 come back unchanged. Differentiable; wrap it in ``torch.no_grad`` where no gradient is wanted.
        """
        t = torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(len(x))
        for k in range(steps):
            now, after = t * (1 - k / steps), t * (1 - (k + 1) / steps)
            x = self.noise_free.step(self.velocity(x, now, label), x, now, after).mean
        return x

    @torch.no_grad()
    def sample(self, starts: Starts, options: FlowSampling, *, seed: int, greedy: bool = False) -> Rollouts:
        """Draw one sample per start; greedy follows the noise-free path in ``eval_steps``, with nothing to train.

        The noise of a trajectory depends on ``seed``, its group and its place in the group only.

        Raises:
            RecipeError: when a start is not a class of the task.
        """
        label = self._labels(starts.problems)
        times = torch.linspace(1, 0, (self.eval_steps if greedy else self.steps) + 1)
        if greedy:
            scale, trained = torch.zeros(self.eval_steps), torch.zeros(self.eval_steps, dtype=torch.bool)
        else:
            scale, trained = self._plan(times, options, seed)
        latents, logp = self._draw(starts.group, label, times, scale, options.same_latent, seed)
        n = len(starts)
        payload = {
            "latents": latents,
            "times": times.repeat(n, 1),
            "noise": scale.repeat(n, 1),
            "label": label,
            "sample": latents[:, -1],
        }
        return make_rollouts(
            starts.group,
            starts.task_id,
            trained.repeat(n, 1),
            logp,
            done=torch.ones(n, dtype=torch.bool),
            truncated=torch.zeros(n, dtype=torch.bool),
            payload=payload,
            version=starts.version,
            prompt=[p.prompt for p in starts.problems],
            metadata=[p.metadata for p in starts.problems],
        )

    def evaluation_options(self, options: FlowSampling) -> FlowSampling:
        """Evaluation starts every trajectory from a latent of its own."""
        return FlowSampling()

    def evaluate(self, rollouts: Rollouts, *, logits: bool = False) -> Evaluation:
        """Log-probability and entropy of the stored steps under the current weights, in one call of the network."""
        x, t, t_next, a, label, x_next = self._stored(rollouts)
        step = self.sampler.step(self.velocity(x, t, label), x, t, t_next, a=a, x_next=x_next)
        entropy = self.sampler.entropy(step.std, self.dimensions)
        return Evaluation(_scatter(step.logp, rollouts.mask), _scatter(entropy, rollouts.mask))

    def step_kl(self, rollouts: Rollouts, snapshot: str = "ref", kind: KLKind = "exact") -> Tensor:
        """Divergence of each stored step from the same step under a snapshot; (N,T), differentiable, 0 off the mask.

        Args:
            rollouts: batch that this policy sampled.
            snapshot: name of the weights to compare with.
            kind: see ``SDEStep.step_kl``.
        """
        x, t, t_next, a, label, _ = self._stored(rollouts)
        with torch.no_grad(), self.using(snapshot):
            v_ref = self.velocity(x, t, label)
        kl = self.sampler.step_kl(self.velocity(x, t, label), v_ref, x, t, t_next, a=a, kind=kind)
        return _scatter(kl, rollouts.mask)

    def supervised_loss(self, problems: list[Problem], seed: int) -> Tensor:
        """Conditional flow matching on the problems' answers: mean over examples and dimensions of (v - (x_1 - x_0))^2.

        Noise time is uniform in [0, 1]; a share ``label_dropout`` of the examples loses its condition.

        Raises:
            RecipeError: when a problem has no sample of the task's size as its answer.
        """
        x_0, label = self._examples(problems), self._labels(problems)
        generator = torch_generator(seed, "flow matching")
        x_1 = torch.randn(x_0.shape, generator=generator)
        t = torch.rand(len(x_0), generator=generator)
        dropped = torch.rand(len(x_0), generator=generator) < self.label_dropout
        x, target = self.sampler.noised(x_0, x_1, t)
        v = self.module(x, t, torch.where(dropped, self.classes, label))
        return ((v - target) ** 2).mean()

    # Parts ------------------------------------------------------------------------------------------------

    def _plan(self, times: Tensor, options: FlowSampling, seed: int) -> tuple[Tensor, Tensor]:
        """Noise scale of each step and whether it is trained, both (T,)."""
        order = torch.arange(len(times) - 1)
        scale = torch.full((len(order),), self.sampler.scale)
        trained = self.sampler.std(times[:-1], times[1:]) > 0
        trained &= order < max(1, int(len(order) * options.timestep_fraction))
        if options.window is None:
            return scale, trained
        spare = int(trained.sum()) - options.window
        if spare < 0:
            raise RecipeError(
                f"sampling 'window' is {options.window}, but only {int(trained.sum())} of {len(order)} steps can be "
                "trained; lower 'window' or raise the policy's 'steps'"
            )
        first = torch.randint(spare + 1, (), generator=torch_generator(seed, "window"))
        inside = (order >= first) & (order < first + options.window)
        return torch.where(inside, scale, 0.0), trained & inside

    def _draw(
        self, group: Tensor, label: Tensor, times: Tensor, scale: Tensor, same_latent: bool, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Latents (N,T+1,D) and log-probabilities (N,T); what the members of a group share is computed once."""
        steps = len(scale)
        member = _place_in_group(group)
        names = list(zip(group.tolist(), member.tolist(), strict=True))
        step_noise = torch.stack([self._normal(steps, seed, "steps", g, m) for g, m in names])
        if same_latent:
            leaders = (member == 0).nonzero().flatten()
            leaders = leaders[group[leaders].argsort()]
            follows = torch.unique(group, return_inverse=True)[1]
            noisy = scale.nonzero().flatten().tolist()
            branch = noisy[0] if noisy else steps
        else:
            leaders = follows = torch.arange(len(group))
            branch = 0
        start = torch.cat([self._normal(1, seed, "latent", *names[i]) for i in leaders.tolist()])
        prefix, quiet = self._walk(start, label[leaders], times[: branch + 1], scale[:branch], None)
        prefix, quiet = prefix[follows], quiet[follows]
        suffix, logp = self._walk(prefix[:, -1], label, times[branch:], scale[branch:], step_noise[:, branch:])
        return torch.cat([prefix[:, :-1], suffix], dim=1), torch.cat([quiet, logp], dim=1)

    def _walk(
        self, x: Tensor, label: Tensor, times: Tensor, scale: Tensor, noise: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Denoise x (M,D) along ``times`` (S+1,): latents (M,S+1,D) and log-probabilities (M,S)."""
        latents, logp = [x], []
        for k in range(len(scale)):
            v = self.velocity(x, times[k], label)
            drawn = None if noise is None else noise[:, k]
            step = self.sampler.step(v, x, times[k], times[k + 1], a=scale[k], noise=drawn)
            x = step.x_next
            latents.append(x)
            logp.append(step.logp)
        return torch.stack(latents, dim=1), torch.stack(logp, dim=1) if logp else x.new_zeros(len(x), 0)

    def _normal(self, rows: int, seed: int, *path: int | str) -> Tensor:
        return torch.randn(rows, self.dimensions, generator=torch_generator(seed, *path))

    def _stored(self, rollouts: Rollouts) -> tuple[Tensor, ...]:
        """x, t, t', noise scale, condition and x' of the M trained steps, flat."""
        payload, mask = rollouts.payload, rollouts.mask
        latents, times = payload["latents"], payload["times"]
        label = payload["label"].unsqueeze(1).expand(mask.shape)
        befores = (latents[:, :-1], times[:, :-1], times[:, 1:], payload["noise"], label, latents[:, 1:])
        return tuple(x[mask] for x in befores)

    def _labels(self, problems: list[Problem]) -> Tensor:
        for problem in problems:
            if not isinstance(problem.start, int) or not 0 <= problem.start < self.classes:
                raise RecipeError(
                    f"policy 'flow' got start {problem.start!r} (task_id {problem.task_id}); want a class from 0 to "
                    f"{self.classes - 1}"
                )
        return torch.tensor([p.start for p in problems], dtype=torch.int64)

    def _examples(self, problems: list[Problem]) -> Tensor:
        for problem in problems:
            shape = tuple(getattr(problem.answer, "shape", ()))
            if shape != (self.dimensions,):
                raise RecipeError(
                    f"policy 'flow' cannot imitate the answer of problem {problem.task_id}: it has shape {shape}, want "
                    f"({self.dimensions},); use a task whose answers are samples, or remove 'warm_start'"
                )
        return torch.stack([p.answer for p in problems])


def _place_in_group(group: Tensor) -> Tensor:
    """How many rows of its group come before each row: (N,)."""
    seen: Counter[int] = Counter()
    places = []
    for key in group.tolist():
        places.append(seen[key])
        seen[key] += 1
    return torch.tensor(places, dtype=torch.int64)


def _scatter(values: Tensor, mask: Tensor) -> Tensor:
    """Put one value per true entry of the mask (N,T) in its place; 0 elsewhere."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)
