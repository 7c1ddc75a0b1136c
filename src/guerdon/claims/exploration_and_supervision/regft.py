"""A hard problem gives no right sample, and a reference solution is not how the model would write. ReGFT shows it the
beginning of the reference, keeps those of its own solutions that are right, and imitates them without the hint.

Networks write a + b, a + 2b, ... modulo 7 and are right if they end at a + 4b. They misread b from 3 on, so in four
problems of seven they nearly never end right; a hint lets them read b in four cases of five. The reference has another
style: 4b, nothing, nothing, and the result, so one who imitates it must know a + 4b by heart. Its first 80 % show 4b.
Thirty problems are trained, and all 49 are tried: ReGFT's answers are steps that are good for other problems too. (The
networks stand for a transformer on long additions; the baselines are those of the source: GRPO from the base, after
imitating what plain sampling found (ReFT), and after imitating the reference.)

On seeds 100 to 104: after 400 steps of pretraining 79 % of the training problems were solved by one of 64 answers,
and after GRPO ReGFT had 0.67, the base 0.58, the reference 0.61; after 800 steps these were 57 %, 0.69, 0.58 and 0.63,
and that is the setting. ReFT had 0.57 in both. The default seeds were run once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from guerdon.analysis.inference_cost import pass_at_k
from guerdon.claims.core import Check, Claim, Mutation, check, equal, every_seed, paired
from guerdon.claims.testbeds.sequences import Adam, Networks, Writing
from guerdon.credit.group import grpo
from guerdon.objectives.distill import guided_thought
from guerdon.objectives.policy import reinforce
from guerdon.sampling.reference_hints import hard_rows, partial_reference, spread_evenly, without_copy
from guerdon.seeding import torch_generator

MODULUS, LENGTH, READ, HELP = 7, 4, 3, 0.8
LEARNED, SAMPLES, TAUGHT, STEPS, GROUP, ASKED, RATE = 800, 16, 150, 200, 8, 16, 3e-3
PROMPTS = torch.cartesian_prod(torch.arange(MODULUS), torch.arange(MODULUS))


class Parts(NamedTuple):
    """What is under test."""

    hint: Callable[..., str]
    hard: Callable[..., Tensor]
    keep: Callable[..., list[tuple[int, tuple[int, ...]]]]


METHOD = Parts(partial_reference, hard_rows, spread_evenly)


def writing() -> Writing:
    """Before each symbol: the number so far, a, b, the hint if there is one, and the position."""

    def observe(prompt: Tensor, tokens: Tensor) -> Tensor:
        number = torch.cat([prompt[..., :1], tokens], dim=-1)
        fixed = torch.cat([one_hot(prompt[..., :2], MODULUS).flatten(-2), one_hot(prompt[..., 2], MODULUS + 1)], dim=-1)
        fixed = fixed.unsqueeze(-2).expand(*tokens.shape[:-1], LENGTH + 1, -1)
        places = one_hot(torch.arange(LENGTH + 1), LENGTH + 1).expand(*fixed.shape[:-1], -1)
        return torch.cat([one_hot(number, MODULUS), fixed, places], dim=-1).float()

    return Writing(MODULUS, LENGTH, 4 * MODULUS + 1 + LENGTH + 1, observe)


def own(prompt: Tensor, step: Tensor) -> Tensor:
    """(...,T) the model's style: a + step, a + 2 step, ..., for prompts (...,3) and steps (...)."""
    return (prompt[..., :1] + torch.arange(1, LENGTH + 1) * step.unsqueeze(-1)) % MODULUS


def reference(prompt: Tensor) -> Tensor:
    """(...,T) another style: four times b, nothing, nothing, and the result a + 4 b."""
    four = 4 * prompt[..., 1]
    return torch.stack([four, 0 * four, 0 * four, prompt[..., 0] + four], dim=-1) % MODULUS


def right(prompt: Tensor, tokens: Tensor) -> Tensor:
    """(...) whether the last number is the result."""
    return tokens[..., -1] == (prompt[..., 0] + LENGTH * prompt[..., 1]) % MODULUS


def plain(pairs: Tensor) -> Tensor:
    """Prompts (...,3) without a hint."""
    return torch.cat([pairs, torch.full_like(pairs[..., :1], MODULUS)], dim=-1)


def guided(pairs: Tensor) -> Tensor:
    """Prompts (...,3) whose hint is what 80 % of the reference show, which is its first symbol."""
    return torch.cat([pairs, reference(pairs)[..., :1]], dim=-1)


def base(seeds: list[int]) -> Networks:
    """Networks that write in their own style, misread b from 3 on, and mostly read it rightly where a hint is given."""
    networks = Networks(writing(), seeds)
    optimizer = Adam(networks, 3e-3)
    generators = [torch_generator(seed, "regft base") for seed in seeds]
    pairs = PROMPTS.expand(len(seeds), -1, -1)
    b = pairs[..., 1]
    for _ in range(LEARNED):
        helped = torch.stack([torch.rand(len(PROMPTS), generator=g) < HELP for g in generators])
        misread = torch.where(b < READ, b, b - READ)
        prompt = torch.cat([plain(pairs), guided(pairs)], dim=1)
        answer = torch.cat([own(pairs, misread), own(pairs, torch.where(helped, b, misread))], dim=1)
        optimizer.step(-networks.read(prompt, answer).logp.mean(dim=(1, 2)).sum())
    return networks


def collect(method: Parts, networks: Networks, train: Tensor, *, hints: bool) -> list[tuple[Tensor, Tensor]]:
    """For every seed plain prompts (K,3) and right answers (K,T) to hard problems among ``train``."""
    out = []
    for index, seed in enumerate(networks.seeds):
        one, generator = networks.only(index), torch_generator(seed, "regft collect")
        many = train.repeat_interleave(SAMPLES, dim=0)
        tried = [one.write(kind(many).unsqueeze(0), [generator])[0] for kind in (plain, guided)]
        good = [right(many, tokens).view(-1, SAMPLES) for tokens in tried]
        hard = method.hard(good[0]).tolist()
        kept: list[list[tuple[int, ...]]] = []
        for place in range(len(train)):
            rows = range(place * SAMPLES, (place + 1) * SAMPLES)
            kinds = zip(tried, good, strict=True) if hints else [(tried[0], good[0])]
            found = [tuple(t[r].tolist()) for t, g in kinds for r in rows if g.flatten()[r]]
            kept.append(found if hard[place] else [])
        pairs = method.keep(kept, 4)
        places = torch.tensor([place for place, _ in pairs], dtype=torch.int64)
        answers = torch.tensor([list(answer) for _, answer in pairs], dtype=torch.int64).view(-1, LENGTH)
        out.append((plain(train[places]), answers))
    return out


def imitate(networks: Networks, data: list[tuple[Tensor, Tensor]], batch: int = 64) -> Networks:
    """A copy, fine-tuned by term ``guided_thought``; unchanged on seeds without data."""
    tuned = networks.copy()
    optimizer = Adam(tuned, RATE)
    generators = [torch_generator(seed, "regft imitate") for seed in networks.seeds]
    for _ in range(TAUGHT):
        rows = [
            torch.randint(max(len(p), 1), (batch,), generator=g) for (p, _), g in zip(data, generators, strict=True)
        ]
        known = torch.tensor([len(p) > 0 for p, _ in data])
        prompt = torch.stack([p[r] if len(p) else plain(PROMPTS[r]) for (p, _), r in zip(data, rows, strict=True)])
        answer = torch.stack([a[r] if len(a) else own(PROMPTS[r], 0 * r) for (_, a), r in zip(data, rows, strict=True)])
        logp = tuned.read(prompt, answer).logp
        every = torch.ones_like(logp[0], dtype=torch.bool)
        losses = torch.stack([guided_thought(row, every, every)[0] for row in logp])
        optimizer.step((losses * known).sum())
    return tuned


def reinforced(networks: Networks, train: Tensor) -> Tensor:
    """(steps + 1,S) success in all problems of a copy that learns the plain training problems by GRPO."""
    policy = networks.copy()
    optimizer, seeds = Adam(policy, RATE), len(networks.seeds)
    generators = [torch_generator(seed, "regft grpo") for seed in networks.seeds]
    mask = torch.ones(ASKED * GROUP, LENGTH, dtype=torch.bool)
    group = torch.arange(ASKED).repeat_interleave(GROUP)
    curve = [accuracy(policy)]
    for _ in range(STEPS):
        picks = torch.stack([torch.randint(len(train), (ASKED,), generator=g) for g in generators])
        prompt = plain(train[picks].repeat_interleave(GROUP, dim=1))
        tokens = policy.write(prompt, generators)
        reward, logp = right(prompt, tokens).float(), policy.read(prompt, tokens).logp
        losses = [reinforce(logp[s], grpo(reward[s], group, mask), mask) for s in range(seeds)]
        optimizer.step(torch.stack(losses).sum())
        curve.append(accuracy(policy))
    return torch.stack(curve)


def accuracy(networks: Networks) -> Tensor:
    """(S,) greedy success in all problems."""
    prompt = plain(PROMPTS).expand(len(networks.seeds), -1, -1)
    return right(prompt, networks.write(prompt)).double().mean(dim=1)


def solvable(networks: Networks, problems: Tensor, k: int = 64) -> Tensor:
    """(S,) share of problems that one of 64 answers solves."""
    prompt = plain(problems).repeat_interleave(k, dim=0).expand(len(networks.seeds), -1, -1)
    generators = [torch_generator(seed, "regft pass") for seed in networks.seeds]
    hits = right(prompt, networks.write(prompt, generators)).view(len(networks.seeds), -1, k).sum(dim=-1)
    return pass_at_k(hits, k, k).mean(dim=1)


def by_hand(method: Parts) -> Iterator[Check]:
    """Where a reference is cut, what is hard, what is kept, and pass@k."""
    text = "First add 3 and 4.\nThat is 7. Then double it.\nSo the answer is 14."
    yield check(
        "80 % of a reference", method.hint(text) == text[:45], expected=repr(text[:45]), seen=repr(method.hint(text))
    )
    early = method.hint(text, "7")
    yield check("the same if the answer is 7", early == text[:18], expected=repr(text[:18]), seen=repr(early))
    said = without_copy("  First add\n3 and 4. So it is 14.", "First add 3 and 4.")
    yield check(
        "a response without its copy of the hint", said == "So it is 14.", expected="'So it is 14.'", seen=repr(said)
    )
    counts = torch.arange(16) < torch.tensor([[0], [3], [4], [16]])
    yield equal("hard: 0, 3, 4, 16 right answers of 16", method.hard(counts), [1, 1, 0, 0])
    kept = method.keep([["a", "a", "b"], [], ["c", "d", "e"]], 2)
    wanted = [(0, "a"), (0, "b"), (2, "c"), (2, "d")]
    yield check("two different answers of each problem", kept == wanted, expected=str(wanted), seen=kept)
    yield equal(
        "pass@4 of 1 in 16, and pass@2 of 2 in 4",
        [pass_at_k(torch.tensor(1), 16, 4), pass_at_k(torch.tensor(2), 4, 2)],
        [0.25, 5 / 6],
    )


def run(method: Parts, seeds: int) -> Iterator[Check]:
    """By hand; then ReGFT and its baselines from one base."""
    yield from by_hand(method)
    order = torch.randperm(len(PROMPTS), generator=torch_generator(0, "regft split"))
    train = PROMPTS[order[:30]]
    networks = base(list(range(seeds)))
    ours, found = collect(method, networks, train, hints=True), collect(method, networks, train, hints=False)
    yield every_seed("problems that only guided sampling solves", guided_only(ours, found), above=0.0)
    hardest = train[train[:, 1] >= READ]
    copied = [(plain(hardest), reference(hardest))] * seeds
    starts = {"regft": ours, "reft": found, "reference": copied}
    tuned = {"raw": networks} | {name: imitate(networks, data) for name, data in starts.items()}
    reach = {name: solvable(policy, train) for name, policy in tuned.items()}
    yield paired("training problems solved by one of 64, ReGFT against the base", reach["regft"], reach["raw"])
    yield paired("and against ReFT", reach["regft"], reach["reft"])
    curves = {name: reinforced(policy, train) for name, policy in tuned.items()}
    end = {name: curve[-20:].mean(dim=0) for name, curve in curves.items()}
    lines, axis = {name: curve.T for name, curve in curves.items()}, "success by step of GRPO"
    yield paired("success after GRPO, ReGFT against the base", end["regft"], end["raw"], curves=lines, axis=axis)
    yield paired("and against ReFT", end["regft"], end["reft"])
    yield paired("and against imitating the reference", end["regft"], end["reference"])


def guided_only(ours: list[tuple[Tensor, Tensor]], found: list[tuple[Tensor, Tensor]]) -> Tensor:
    """(S,) number of problems with a kept answer that have none without hints."""
    both = [[{tuple(p.tolist()) for p in prompts} for prompts, _ in data] for data in (ours, found)]
    return torch.tensor([float(len(a - b)) for a, b in zip(*both, strict=True)])


def easy_rows(right: Tensor, *, below: float = 0.25) -> Tensor:
    """Take the problems that are not hard."""
    return ~hard_rows(right, below=below)


CLAIM = Claim(
    system="regft",
    run=run,
    method=METHOD,
    mutation=Mutation(
        "easy problems are learned instead of hard ones", Parts(partial_reference, easy_rows, spread_evenly)
    ),
    seeds=5,
)
