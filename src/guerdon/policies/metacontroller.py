"""Codes that steer a frozen model through its residual stream, each for as long as it is of use.

Discovery: from recorded sequences, and knowing how they go on, an encoder proposes codes and a switch learns when to
take a new one. Internal RL: the switch, now all or nothing, asks a policy that knows the past alone for the next code;
the model below writes the actions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from guerdon.seeding import torch_generator

PAPER = "Kobayashi et al. 2025, arXiv 2512.20605"
FIRST_LOG_STD = -1.5  # of proposals, so that what they say is heard before they say much
LOG_STD = (-5.0, 2.0)  # bounds of log sigma, within which exp and its inverse are harmless


class Discovery(NamedTuple):
    """What the encoder made of sequences.

    Attributes:
        controlled: (N,T,D) residuals e' for the upper layers.
        codes: (N,T,C) codes z_t in force.
        gates: (N,T) beta_t, how far each step takes a new code; 1 at the first.
        kl: (N,T) KL of each step's proposal from N(0, I), in nats.
    """

    controlled: Tensor
    codes: Tensor
    gates: Tensor
    kl: Tensor


def gated_codes(proposal: Tensor, gate: Callable[[int, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Keep a code or take the proposed one: z_t = beta_t z~_t + (1 - beta_t) z_{t-1}, beta_1 = 1.

    Args:
        proposal: (N,T,C) z~_t.
        gate: given t and z_{t-1} (N,C), returns beta_t (N,) in [0,1].

    Returns:
        (N,T,C) codes z_t and (N,T) gates.
    """
    z, codes, gates = proposal[:, 0], [proposal[:, 0]], [torch.ones_like(proposal[:, 0, 0])]
    for t in range(1, proposal.shape[1]):
        beta = gate(t, z)
        z = beta.unsqueeze(1) * proposal[:, t] + (1 - beta.unsqueeze(1)) * z
        codes.append(z)
        gates.append(beta)
    return torch.stack(codes, dim=1), torch.stack(gates, dim=1)


def harden(gate: Tensor) -> Tensor:
    """1 where a gate is above 1/2, else 0; the gradient is that of the gate itself."""
    return (gate > 0.5).to(gate.dtype) + (gate - gate.detach())


def standard_normal_kl(mean: Tensor, log_std: Tensor) -> Tensor:
    """KL(N(mu, sigma^2) || N(0, I)) in nats: (...,C) to (...)."""
    return 0.5 * ((2 * log_std).exp() + mean**2 - 1 - 2 * log_std).sum(dim=-1)


def discovery_loss(
    nll: Tensor,
    kl: Tensor,
    mask: Tensor,
    *,
    alpha: float = 0.1,
    gates: Tensor | None = None,
    gate_weighted_kl: bool = False,
) -> Tensor:
    """Negative evidence lower bound, per step: mean_t [-log p(a_t | o_{1:t}, z_{1:t}) + alpha KL_t].

    The divergence counts at every step, whatever the gate: where no new code is taken the proposal is not used, so it
    can sit on the prior for nothing, and only real switches cost. alpha sets how long a code lasts; with 0 a new one at
    every step is free. Raise it from 0 over the first updates, or the codes sink into the prior before they are used.
    ``gate_weighted_kl`` is of an open re-implementation: KL_t becomes beta_t KL_t + beta_t.

    Args:
        nll: (N,T) negative log-likelihood of each action, in nats.
        kl: (N,T) as ``Metacontroller.discover`` gives it.
        mask: (N,T) true on actions; nothing off the mask is read.
        alpha: price of a nat of code.
        gates: (N,T) beta_t, for ``gate_weighted_kl``.
        gate_weighted_kl: weigh each KL by its gate, and add the gates.

    Raises:
        ValueError: when ``gate_weighted_kl`` has no gates.

    Source: Kobayashi et al. 2025, arXiv 2512.20605.
    """
    if gate_weighted_kl:
        if gates is None:
            raise ValueError("gate_weighted_kl weighs each KL by its gate, and gates are missing; give them")
        kl = gates * kl + gates
    mask = mask.bool()
    total = torch.where(mask, nll + alpha * kl, 0.0)
    return total.sum() / mask.sum().clamp(min=1)


class Metacontroller(nn.Module):
    """Encoder, switch and controllers over the residual stream of a middle layer of a frozen model.

    h_t = GRU(e_t, h_{t-1});  mu_t, log sigma_t = encoder(e_t, h_{t-1}, S_t);  z~_t ~ N(mu_t, sigma_t^2)
    beta_t = sigmoid(switch(e_t, h_{t-1}, z_{t-1}));  e'_t = (I + A(z_t) B(z_t)^T) e_t

    S_t is what a second GRU that reads backward says of e_{t:T}; the source embeds the sequence as one. It knows the
    future, so the encoder is no use once the policy acts: there ``CodePolicy`` takes its place. A and B are linear in
    z, so the code 0 changes nothing. The model below must not move, before discovery nor during it, or the codes
    collapse into it. (A public re-implementation mixes up which way the gate works, leaves the switch untrained, and
    shows it the proposal z~_{t-1}; here it sees z_{t-1}.)

    Args:
        width: D of the residual stream.
        code: C, size of a code.
        rank: of the controllers.
        hidden: size of the GRUs and of the hidden layers.
        seed: of the first weights.
        openness: bias of the switch at the start; above 0 it takes new codes rather than not.

    Source: Kobayashi et al. 2025, arXiv 2512.20605. (What encoder and switch see is partly inferred.)
    """

    def __init__(
        self, width: int, *, code: int = 16, rank: int = 16, hidden: int = 64, seed: int = 0, openness: float = 0.0
    ) -> None:
        super().__init__()
        self.width, self.code, self.rank = width, code, rank
        self.memory = nn.GRU(width, hidden, batch_first=True)
        self.future = nn.GRU(width, hidden, batch_first=True)
        self.encoder = _mlp(width + 2 * hidden, hidden, 2 * code)
        self.switch = _mlp(width + hidden + code, hidden, 1)
        self.left, self.right = (nn.Linear(code, width * rank, bias=False) for _ in range(2))
        _initialise(self, seed)
        switch, encoder = self.switch[-1], self.encoder[-1]
        assert isinstance(switch, nn.Linear)
        assert isinstance(encoder, nn.Linear)
        nn.init.constant_(switch.bias, openness)
        nn.init.constant_(encoder.bias[code:], FIRST_LOG_STD)

    def control(self, residual: Tensor, code: Tensor) -> Tensor:
        """Steer residuals (...,D) by codes (...,C): e + A(z) B(z)^T e."""
        left = self.left(code).unflatten(-1, (self.width, self.rank))
        right = self.right(code).unflatten(-1, (self.width, self.rank))
        inner = torch.einsum("...dr,...d->...r", right, residual)
        return residual + torch.einsum("...dr,...r->...d", left, inner) / self.rank**0.5

    def fires(self, residual: Tensor, memory: Tensor, code: Tensor) -> Tensor:
        """beta (...) from e_t (...,D), h_{t-1} (...,H) and z_{t-1} (...,C)."""
        return self.switch(torch.cat([residual, memory, code], dim=-1)).squeeze(-1).sigmoid()

    def remember(self, residual: Tensor, state: Tensor | None = None) -> Tensor:
        """h_t (N,H) after one more residual (N,D); ``state`` is h_{t-1}, 0 at the start."""
        state = residual.new_zeros(len(residual), self.memory.hidden_size) if state is None else state
        return self.memory(residual.unsqueeze(1), state.unsqueeze(0))[1].squeeze(0)

    def discover(self, residual: Tensor, noise: Tensor | None = None, *, hard: bool = False) -> Discovery:
        """Propose codes for whole sequences, and say which are taken.

        Args:
            residual: (N,T,D) e_t of the frozen model, without gradient.
            noise: (N,T,C) standard normal numbers of the proposals; their means are taken without.
            hard: threshold the gates, with the gradient of the soft ones.
        """
        past = nn.functional.pad(self.memory(residual)[0][:, :-1], (0, 0, 1, 0))
        future = self.future(residual.flip(1))[0].flip(1)
        mean, log_std = self.encoder(torch.cat([residual, past, future], dim=-1)).chunk(2, dim=-1)
        log_std = log_std.clamp(*LOG_STD)
        proposal = mean if noise is None else mean + log_std.exp() * noise

        # What the switch sees of everything but the code is the same whatever was chosen, so it is computed at once.
        first, last = self.switch[0], self.switch[2]
        assert isinstance(first, nn.Linear)
        fixed = self.width + past.shape[2]
        known = nn.functional.linear(torch.cat([residual, past], dim=-1), first.weight[:, :fixed], first.bias)

        def gate(t: int, z: Tensor) -> Tensor:
            beta = last(nn.functional.silu(known[:, t] + z @ first.weight[:, fixed:].T)).squeeze(-1).sigmoid()
            return harden(beta) if hard else beta

        codes, gates = gated_codes(proposal, gate)
        return Discovery(self.control(residual, codes), codes, gates, standard_normal_kl(mean, log_std))


class CodePolicy(nn.Module):
    """Gaussian policy over codes that sees the past alone: pi(z | e_t, h_{t-1}), a memory of its own included.

    Args:
        width: D of the residual stream.
        code: C, size of a code.
        hidden: size of the GRU and the hidden layer.
        seed: of the first weights.

    The last layer begins at 0, so the first codes are drawn from N(0, I), as the encoder's prior has them.

    Source: Kobayashi et al. 2025, arXiv 2512.20605.
    """

    def __init__(self, width: int, *, code: int = 16, hidden: int = 64, seed: int = 0) -> None:
        super().__init__()
        self.memory = nn.GRUCell(width, hidden)
        self.head = _mlp(width + hidden, hidden, 2 * code)
        _initialise(self, seed)
        last = self.head[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)

    def forward(self, residual: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and log sigma (N,C) of the code at e_t (N,D), and the next memory (N,H); ``state`` is 0 at the start."""
        before = residual.new_zeros(len(residual), self.memory.hidden_size) if state is None else state
        mean, log_std = self.head(torch.cat([residual, before], dim=-1)).chunk(2, dim=-1)
        return mean, log_std.clamp(*LOG_STD), self.memory(residual, before)


def gaussian_logp(code: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """log N(z; mu, sigma^2) of codes (...,C), summed over their entries: (...)."""
    return torch.distributions.Normal(mean, log_std.exp(), validate_args=False).log_prob(code).sum(dim=-1)


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, outputs))


def _initialise(module: nn.Module, seed: int) -> None:
    """Weights of scale 1 / sqrt(inputs), biases 0."""
    generator = torch_generator(seed, type(module).__name__)
    for parameter in module.parameters():
        if parameter.ndim == 1:
            nn.init.zeros_(parameter)
        else:
            bound = parameter.shape[1] ** -0.5
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
