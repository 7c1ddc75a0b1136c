"""Variance-reduced policy gradients: momentum that stays an estimate of the gradient where the policy is now.

Plain momentum averages gradients of old policies. Both methods here correct for how far the policy has moved since,
without importance ratios and without large batches: one by sampling from an extrapolated policy, the other by adding a
Hessian-vector product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from guerdon.training.optim import Optimizer

Draw = Callable[[], tuple[Tensor, Tensor]]


class NPGIGT:
    """Normalised policy gradient with implicit gradient transport.

    point_t = theta_t + (1 - eta_t) / eta_t (theta_t - theta_{t-1});  d_t = (1 - eta_t) d_{t-1} + eta_t g(point_t)
    theta_{t+1} = theta_t + gamma_t d_t / |d_t|;  eta_t = (2 / (t + 2))^power,  gamma_t = lr / (t + 2)

    Momentum is biased towards gradients of past policies. A gradient taken at the extrapolated point cancels that bias
    to first order: where the gradient is linear in theta, d_t has the mean of the gradient at theta_t. The trainable
    weights hold ``point_t``, so that batches are sampled and their gradients taken there; theta_t is part of the state
    and comes to the fore inside ``settled``. With one update per batch only, for the next one is at another point.

    Args:
        parameters: what is trained, by name.
        power: decay of eta; 4/5 gives the rate of the source.

    Source: Fatkhullin et al. 2023, arXiv 2302.01734.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], *, power: float = 0.8) -> None:
        self.parameters, self.power = dict(parameters), power
        self.forget()

    def forget(self) -> None:
        """Start over from the weights as they stand."""
        self.steps = 0
        self.theta: dict[str, Tensor] = {}
        self.direction: dict[str, Tensor] = {}
        self.point: dict[str, Tensor] = {}

    def eta(self, step: int) -> float:
        """Weight of the gradient of update ``step``; 1 for the first."""
        return (2 / (step + 2)) ** self.power

    @torch.no_grad()
    def step(self, lr: float) -> float:
        """Update from the gradients, move the weights to the next point; return the norm of the gradient.

        Gradients are of a loss, so the step is against them. One that is not finite changes nothing.
        """
        gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in self.parameters.items()}
        norm = _norm(gradients.values())
        if math.isfinite(norm):
            self._advance(gradients, lr / (self.steps + 2))
        for p in self.parameters.values():
            p.grad = None
        return norm

    def _advance(self, gradients: Mapping[str, Tensor], length: float) -> None:
        if not self.theta:
            self.theta = {name: p.detach().clone() for name, p in self.parameters.items()}
            self.direction = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        now, ahead = self.eta(self.steps), self.eta(self.steps + 1)
        for name, d in self.direction.items():
            d.lerp_(gradients[name], now)
        size = _norm(self.direction.values())
        for name, p in self.parameters.items():
            move = self.direction[name] * (-length / size if size > 0 else 0.0)
            self.theta[name] = self.theta[name] + move
            p.copy_(self.theta[name] + (1 - ahead) / ahead * move)
            self.point[name] = p.data
        self.steps += 1

    @contextmanager
    def settled(self) -> Iterator[None]:
        """The trainable weights are theta inside the block: what training has arrived at."""
        for name, theta in self.theta.items():
            self.parameters[name].data = theta
        try:
            yield
        finally:
            for name, point in self.point.items():
                self.parameters[name].data = point

    def moments(self) -> Iterator[tuple[str, Tensor]]:
        """What has accumulated of each parameter's gradients."""
        yield from self.direction.items()

    def warm(self) -> Optimizer:
        """AdamW, for steps of a fixed length that decay from the start make a poor imitator."""
        return Optimizer(self.parameters)

    def state_dict(self) -> dict[str, Tensor]:
        """Iterate, direction and point of each parameter, and the number of updates."""
        if not self.theta:
            return {}
        slots = {"theta": self.theta, "direction": self.direction, "point": self.point}
        state = {f"{name}/{slot}": value for slot, values in slots.items() for name, value in values.items()}
        return state | {"steps": torch.tensor(self.steps)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state_dict`` gave, and put the weights where the next batch is to be sampled."""
        self.forget()
        if not state:
            return
        self.steps = int(state["steps"])
        for name, p in self.parameters.items():
            self.theta[name], self.direction[name] = state[f"{name}/theta"].clone(), state[f"{name}/direction"].clone()
            p.copy_(state[f"{name}/point"])
            self.point[name] = p.data


class HARPG:
    """Hessian-aided recursive policy gradient: the old estimate is carried along by a Hessian-vector product.

    hat = u theta_t + (1 - u) theta_{t-1}, u uniform in [0, 1];  v = H(hat) (theta_t - theta_{t-1})
    d_t = (1 - eta_t) (d_{t-1} + v) + eta_t g(theta_t);  theta_{t+1} = theta_t + gamma_t d_t, or gamma_t d_t / |d_t|
    eta_t = 2 / (t + 2),  gamma_t = lr / (t + 2)^decay

    Averaged over u the product is the difference of the two gradients, so d_t is unbiased about as far as d_{t-1} was.
    It needs two batches per update, one sampled at theta_t and one at a random point before it, and second derivatives
    of the latter's log-probabilities. A training loop samples once, at the weights as they stand, and hands over first
    derivatives; therefore this is no optimiser of a recipe but takes a function that samples.

    Args:
        parameters: what is trained, changed in place.
        draw: samples trajectories from the policy at the parameters as they stand, and returns two differentiable
            tensors (B,), one number per trajectory: ``phi`` = sum_t (sum_{h >= t} gamma^h r_h) log pi(a_t | s_t), with
            the returns detached, and ``logp`` = sum_t log pi(a_t | s_t).
        normalise: take steps of length gamma_t.
        decay: how fast the steps shrink.
        generator: source of u.

    Source: Fatkhullin et al. 2023, arXiv 2302.01734.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        draw: Draw,
        *,
        normalise: bool = False,
        decay: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        self.parameters, self.draw = list(parameters), draw
        self.normalise, self.decay, self.generator = normalise, decay, generator
        self.steps = 0
        self.before = [p.detach().clone() for p in self.parameters]
        self.direction = [torch.zeros_like(p) for p in self.parameters]

    def step(self, lr: float) -> float:
        """Sample twice (once at first), update the parameters; return the norm of the gradient estimate."""
        now = [p.detach().clone() for p in self.parameters]
        eta = 2 / (self.steps + 2)
        if self.steps:
            carried = self._carried(now)
            self.direction = [d + v for d, v in zip(self.direction, carried, strict=True)]
        phi, _ = self.draw()
        gradient = torch.autograd.grad(phi.mean(), self.parameters, materialize_grads=True)
        self.direction = [torch.lerp(d, g, eta) for d, g in zip(self.direction, gradient, strict=True)]
        size = _norm(self.direction)
        rate = lr / (self.steps + 2) ** self.decay
        rate = rate / size if self.normalise and size > 0 else rate
        self._place([x + rate * d for x, d in zip(now, self.direction, strict=True)])
        self.before, self.steps = now, self.steps + 1
        return size

    def _carried(self, now: Sequence[Tensor]) -> list[Tensor]:
        """Estimate of how the gradient changed over the last step, from a random point on the way."""
        u = float(torch.rand((), generator=self.generator))
        moved = [x - y for x, y in zip(now, self.before, strict=True)]
        self._place([y + u * m for y, m in zip(self.before, moved, strict=True)])
        phi, logp = self.draw()
        product = hessian_vector(self.parameters, phi, logp, moved)
        self._place(now)
        return product

    @torch.no_grad()
    def _place(self, where: Sequence[Tensor]) -> None:
        for p, x in zip(self.parameters, where, strict=True):
            p.copy_(x)


def hessian_vector(parameters: Sequence[Tensor], phi: Tensor, logp: Tensor, vector: Sequence[Tensor]) -> list[Tensor]:
    """Estimate the Hessian of the expected return, times a vector, without forming a matrix.

    mean_b [grad phi_b <grad logp_b, x> + grad <grad phi_b, x>]; its mean over trajectories is the Hessian times x

    Args:
        parameters: what the derivatives are taken in.
        phi, logp: (B,) as ``HARPG.draw`` gives them.
        vector: x, shaped like the parameters.

    Returns:
        The product, shaped like the parameters.
    """
    weight = torch.ones_like(logp, requires_grad=True)
    # A gradient is linear in the weights of its outputs, so its derivative in them is a directional derivative.
    scores = torch.autograd.grad(logp, parameters, weight, create_graph=True, materialize_grads=True)
    (along,) = torch.autograd.grad(_dot(scores, vector), weight, retain_graph=True, materialize_grads=True)
    gradient = torch.autograd.grad(phi.mean(), parameters, create_graph=True, materialize_grads=True)
    total = (along.detach() * phi).mean() + _dot(gradient, vector)
    return list(torch.autograd.grad(total, parameters, materialize_grads=True))


def _dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    return torch.stack([(x * y).sum() for x, y in zip(left, right, strict=True)]).sum()


def _norm(tensors: Iterable[Tensor]) -> float:
    return float(nn.utils.get_total_norm(list(tensors)))
