"""A tiny transformer that has read a corpus of mixed quality, and is then trained by reward or by imitation.

A line of the corpus names one of four procedures, gives three symbols and an answer. Half of the answers are right, the
others are another procedure's; one in ten is written in capitals. The task is to sort, in lower case or in capitals.
Reward raises the share of right answers that the model writes anyway; imitation of an author who writes in capitals
leads away from them. Weights are read in bfloat16, while Adam keeps a master copy in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch import Tensor, nn
from torch.func import functional_call

from guerdon.credit.group import grpo
from guerdon.objectives.policy import reinforce
from guerdon.policies.tiny_lm import TinyTransformer
from guerdon.seeding import torch_generator
from guerdon.training.optim import Optimizer, Updates, scheduled

SYMBOLS, LENGTH, PROCEDURES, SORT = 8, 3, 4, 1
RIGHT, CAPITALS = 0.5, 0.1
WIDTH, LAYERS, HEADS = 64, 2, 4

Weights = dict[str, Tensor]
Loss = Callable[[Mapping[str, Tensor]], Tensor]


def served(weights: Mapping[str, Tensor]) -> Weights:
    """Weights as the model reads them: rounded to bfloat16, held in float32."""
    return {name: w.detach().bfloat16().float() for name, w in weights.items()}


def model_of(weights: Mapping[str, Tensor]) -> TinyTransformer:
    """A transformer that holds a copy of the weights."""
    model = _drawn(0)
    model.load_state_dict(dict(weights))
    return model


def pretrained(seed: int, *, steps: int = 500, batch: int = 128, lr: float = 3e-3) -> Weights:
    """Weights after ``steps`` batches of the corpus, rounded to bfloat16."""
    model = _drawn(seed)
    optimizer = Optimizer(dict(model.named_parameters()))
    generator = torch_generator(seed, "corpus")
    for step in range(steps):
        prompt, answer = _corpus(batch, generator)
        (-log_likelihood(dict(model.named_parameters()), prompt, answer).mean()).backward()
        optimizer.step(scheduled(lr, step, steps, warmup=20, schedule="cosine"))
    return served(dict(model.named_parameters()))


def train(
    start: Mapping[str, Tensor],
    loss: Loss,
    *,
    steps: int,
    lr: float,
    updates: Callable[[Optimizer], Updates] = lambda optimizer: optimizer,
    until: Callable[[Weights], bool] | None = None,
    every: int = 1,
) -> Weights:
    """Train from pretrained weights.

    Args:
        start: where to begin.
        loss: of the weights in bfloat16; its gradient moves the master copy.
        steps: updates, at a constant learning rate.
        lr: Adam's learning rate.
        updates: what to wrap Adam in.
        until: stop at the first weights for which it holds.
        every: steps between looks at the weights.

    Returns:
        The master copy, in float32.
    """
    master = {name: nn.Parameter(w.clone()) for name, w in start.items()}
    optimizer = updates(Optimizer(master))
    for step in range(1, steps + 1):
        read = {name: w.requires_grad_() for name, w in served(master).items()}
        gradients = torch.autograd.grad(loss(read), list(read.values()))
        for parameter, gradient in zip(master.values(), gradients, strict=True):
            parameter.grad = gradient
        optimizer.step(lr)
        if until is not None and step % every == 0 and until({name: w.detach() for name, w in master.items()}):
            break
    return {name: w.detach() for name, w in master.items()}


def by_reward(seed: int, *, prompts: int = 4, group_size: int = 8) -> Loss:
    """GRPO on the task: 1 for a sorted answer in either case. Every call draws new prompts and answers."""
    asking, writing = torch_generator(seed, "prompts"), torch_generator(seed, "answers")
    group = torch.arange(prompts).repeat_interleave(group_size)

    def loss(weights: Mapping[str, Tensor]) -> Tensor:
        prompt, right = (x.repeat_interleave(group_size, dim=0) for x in _task(prompts, asking))
        answer = _write(weights, prompt, writing)
        reward = ((answer == right).all(dim=1) | (answer == right + SYMBOLS).all(dim=1)).float()
        mask = torch.ones_like(answer, dtype=torch.bool)
        logp = log_likelihood(weights, prompt, answer)
        return reinforce(logp, grpo(reward, group, mask), mask)

    return loss


def by_imitation(seed: int, *, capitals: bool, batch: int = 32) -> Loss:
    """Cross-entropy of right answers, in capitals or as the model itself would mostly write them."""
    asking = torch_generator(seed, "prompts")

    def loss(weights: Mapping[str, Tensor]) -> Tensor:
        prompt, right = _task(batch, asking)
        return -log_likelihood(weights, prompt, right + SYMBOLS * capitals).mean()

    return loss


@torch.no_grad()
def success(weights: Mapping[str, Tensor]) -> float:
    """Probability that the model, in bfloat16, writes a right answer, averaged over all prompts of the task."""
    symbols = torch.cartesian_prod(*[torch.arange(SYMBOLS)] * LENGTH)
    right = symbols.sort(dim=1).values
    prompt = _prompt(torch.tensor(SORT).expand(len(symbols)), symbols)
    lower, upper = (log_likelihood(served(weights), prompt, y).sum(dim=1).exp() for y in (right, right + SYMBOLS))
    return float((lower + upper).mean())


def log_likelihood(weights: Mapping[str, Tensor], prompt: Tensor, answer: Tensor) -> Tensor:
    """(N,T) log-probability of each symbol of answers (N,T) to prompts (N,P)."""
    logits = _logits(weights, torch.cat([prompt, answer], dim=1)[:, :-1])[:, prompt.shape[1] - 1 :]
    return logits.log_softmax(dim=-1).gather(-1, answer.unsqueeze(-1)).squeeze(-1)


@torch.no_grad()
def _write(weights: Mapping[str, Tensor], prompt: Tensor, generator: torch.Generator) -> Tensor:
    """(N,T) sampled answers; their random numbers do not depend on the weights."""
    tokens = prompt
    draws = torch.rand(len(prompt), LENGTH, generator=generator, dtype=torch.float64)
    for t in range(LENGTH):
        edges = _logits(weights, tokens)[:, -1].double().softmax(dim=-1).cumsum(dim=-1)
        drawn = torch.searchsorted(edges, draws[:, t : t + 1].contiguous()).clamp(max=edges.shape[1] - 1)
        tokens = torch.cat([tokens, drawn], dim=1)
    return tokens[:, prompt.shape[1] :]


def _logits(weights: Mapping[str, Tensor], ids: Tensor) -> Tensor:
    return functional_call(_skeleton(), dict(weights), (ids,))


@cache
def _skeleton() -> TinyTransformer:
    return _drawn(0)


def _drawn(seed: int) -> TinyTransformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TinyTransformer(2 * SYMBOLS + PROCEDURES, WIDTH, LAYERS, HEADS)


def _corpus(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    procedure = torch.randint(PROCEDURES, (count,), generator=generator)
    symbols = torch.randint(SYMBOLS, (count, LENGTH), generator=generator)
    right = torch.rand(count, generator=generator) < RIGHT
    another = (procedure + torch.randint(1, PROCEDURES, (count,), generator=generator)) % PROCEDURES
    capitals = torch.rand(count, 1, generator=generator) < CAPITALS
    answer = _applied(torch.where(right, procedure, another), symbols) + SYMBOLS * capitals
    return _prompt(procedure, symbols), answer


def _task(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    symbols = torch.randint(SYMBOLS, (count, LENGTH), generator=generator)
    procedure = torch.tensor(SORT).expand(count)
    return _prompt(procedure, symbols), _applied(procedure, symbols)


def _prompt(procedure: Tensor, symbols: Tensor) -> Tensor:
    return torch.cat([2 * SYMBOLS + procedure.unsqueeze(1), symbols], dim=1)


def _applied(procedure: Tensor, symbols: Tensor) -> Tensor:
    """(N,T) symbols reversed, sorted, rotated by one place, or each replaced by the next."""
    results = [symbols.flip(-1), symbols.sort(dim=-1).values, symbols.roll(1, dims=-1), (symbols + 1) % SYMBOLS]
    return torch.stack(results)[procedure, torch.arange(len(symbols))]
