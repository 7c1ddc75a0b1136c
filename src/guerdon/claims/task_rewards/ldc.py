"""Qualities that conflict collapse into one number, and their trade-off is then fixed. LDC draws a control vector for
every prompt, rewards each quality as the vector says, and lets the vector act on the output embeddings through one
low-rank map per quality; at inference any trade-off can be asked for, and a recurrent network can change it from
sentence to sentence.

A tiny language model has learned sentences of four words, which are of kind A, of kind B or neutral; the qualities are
the shares of A and of B. Its weights are frozen and only the controller learns, from the same samples with the
composed reward or with the sum of both qualities. The references for the sentence network turn from A to B half-way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from scipy.stats import spearmanr
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, check, equal, every_seed, paired
from guerdon.credit.group import dr_grpo
from guerdon.inference.guidance import (
    ControlledLM,
    DimensionController,
    SentenceController,
    sentence_embeddings,
    sentence_numbers,
    with_controls,
)
from guerdon.objectives.divergence import kl
from guerdon.objectives.policy import ppo_clip
from guerdon.policies.language_sampling import LanguageSampling
from guerdon.policies.tiny_lm import TinyLM
from guerdon.seeding import derive, numpy_generator
from guerdon.shaping.control import control_sum
from guerdon.tasks.base import Problem, Starts, Task
from guerdon.training.optim import Optimizer, scheduled

A, B, NEUTRAL = "abc", "def", "ghijkl"
WORDS, SENTENCES = 4, 4
LENGTH = SENTENCES * (WORDS + 1) + 1
NAMES, WEIGHTS = ("share of A", "share of B"), torch.ones(2)
SAMPLING = LanguageSampling(max_new_tokens=LENGTH)
SWEEP, TEXTS = torch.linspace(-1, 1, 9), 64


class Sentences(Task):
    """Texts of four sentences; ``turn`` makes the first half of a text rich in A, and the second in B."""

    kind = "language"

    def train_batch(self, n: int, seed: int, *, turn: bool = False) -> list[Problem]:
        """Draw ``n`` texts."""
        generator = numpy_generator(seed, "sentences")
        texts = []
        for _ in range(n):
            odds = [(0.25, 0.25)] * SENTENCES if not turn else [(0.7, 0.05)] * 2 + [(0.05, 0.7)] * 2
            sentences = []
            for a, b in odds:
                kinds = generator.choice(3, WORDS, p=(a, b, 1 - a - b))
                sentences.append("".join(generator.choice(list((A, B, NEUTRAL)[kind])) for kind in kinds) + ".")
            texts.append("".join(sentences))
        return [Problem(0, "", answer=text) for text in texts]

    def eval_problems(self, n: int) -> list[Problem]:
        """The same, under a seed of its own."""
        return self.train_batch(n, -1)


class Method(NamedTuple):
    """What is under test: the controller, and how its vector composes the rewards."""

    controller: Any
    compose: Any


def scalar_sum(
    components: Tensor, component_names: Sequence[str], component_weights: Tensor, metadata: Any, **_: Any
) -> Tensor:
    """The sum of the standardised rewards, whatever the control."""
    ones = [{"control": [1.0] * components.shape[1]} for _ in metadata]
    return control_sum(components, component_names, component_weights, ones)


def shares(text: str, kinds: Sequence[str] = (A, B)) -> list[float]:
    """Share of the words of a text that are of each kind."""
    words = [c for c in text if c != "."]
    return [sum(word in kind for word in words) / max(len(words), 1) for kind in kinds]


def rate(texts: Sequence[str], sentences: slice = slice(None)) -> float:
    """Mean share of A in the given sentences."""
    return sum(shares(".".join(text.split(".")[sentences]))[0] for text in texts) / len(texts)


def well_formed(text: str) -> bool:
    """Whether a text has four sentences of four words."""
    return [len(sentence) for sentence in text.split(".")] == [WORDS] * SENTENCES + [0]


def pretrained(seed: int, *, steps: int = 150, lr: float = 5e-3) -> TinyLM:
    """A small language model that has read the corpus, frozen."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "policy"))
        policy = TinyLM(Sentences(), width=32, layers=1)
    optimizer = Optimizer(policy.trainable())
    for step in range(steps):
        policy.supervised_loss(Sentences().train_batch(32, derive(seed, step)), step).backward()
        optimizer.step(scheduled(lr, step, steps, warmup=10, schedule="cosine"))
    policy.module.requires_grad_(False)
    return policy


def controlled(policy: TinyLM, method: Method, seed: int, *, steps: int = 40, beta: float = 0.2) -> ControlledLM:
    """Train a controller with a control vector per prompt."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "controller"))
        model = ControlledLM(policy, method.controller(2, 32, rank=4))
    optimizer = Optimizer(dict(model.controller.named_parameters()))
    for step in range(steps):
        problems = with_controls([Problem(0, "")] * 16, 2, seed=derive(seed, step, "controls"))
        starts = Starts.repeat(problems, 8)
        rollouts = model.sample(starts, SAMPLING, seed=derive(seed, step, "sample"))
        components = torch.tensor([shares(text) for text in rollouts.text or []])
        reward = method.compose(components, NAMES, WEIGHTS, rollouts.metadata)
        mask, now = rollouts.mask, model.evaluate(rollouts)
        loss, _ = ppo_clip(now.logp, now.logp.detach(), dr_grpo(reward, starts.group, mask), mask)
        penalty, _ = kl(now.logp, policy.evaluate(rollouts).logp, mask, beta=beta)
        (loss + penalty).backward()
        optimizer.step(1e-2)
    return model


def written(model: ControlledLM, control: Tensor, planner: SentenceController | None = None) -> list[str]:
    """Texts under controls (K,) or (S,K); the same random numbers for all."""
    starts = Starts.repeat([Problem(0, "")], TEXTS)
    given = control.expand(TEXTS, *control.shape)
    return list(model.sample(starts, SAMPLING, seed=0, control=given, planner=planner).text or [])


def planned(model: ControlledLM, seed: int, *, steps: int = 150, lr: float = 1e-2) -> SentenceController:
    """A sentence network that has read references which turn from A to B."""
    policy, references = model.policy, Sentences().train_batch(64, derive(seed, "references"), turn=True)
    actions = [policy.encode_answer(str(problem.answer)) for problem in references]
    starts = Starts(references, torch.arange(len(references)))
    rollouts = policy.replay(starts, actions, SAMPLING)
    assert rollouts.tokens is not None
    sentence = sentence_numbers(rollouts.tokens, model.ends)
    embeddings, present = sentence_embeddings(policy.features(rollouts), sentence, rollouts.mask & (sentence < 4))
    scores = [[shares(part) for part in str(p.answer).split(".")[:SENTENCES]] for p in references]
    control = 2 * torch.tensor(scores) - 0.5  # a text of the corpus has a quarter of each kind: 0 of a scale of -1 to 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "planner"))
        planner = SentenceController(2, 32)
    optimizer = Optimizer(dict(planner.named_parameters()))
    for _ in range(steps):
        planner.loss(embeddings, control, present).backward()
        optimizer.step(lr)
    return planner


def identical(what: str, seen: Tensor, wanted: Tensor) -> Check:
    """Tensors that must be the same to the last bit."""
    apart = (seen - wanted).abs().max().item()
    return check(
        what, torch.equal(seen, wanted), expected="those of the model", seen=f"they differ by {apart:g} at most"
    )


def by_hand(method: Method) -> Iterator[Check]:
    """The two formulas."""
    components = torch.tensor([[1.0, 30.0], [2.0, 10.0], [3.0, 20.0]])
    vectors = ([1.0, 0.0], [-0.5, 1.0], [0.0, -2.0])
    reward = method.compose(components, NAMES, WEIGHTS, [{"control": list(vector)} for vector in vectors])
    yield equal("reward of three texts under their controls", reward, [-1.0, -1.0, 0.0], tol=1e-4)

    torch.manual_seed(0)
    policy, controller = TinyLM(Sentences(), width=32, layers=1), method.controller(2, 32, rank=4, limit=2.0)
    states, project = torch.randn(6, 32), policy.model.project
    plain = project(states)

    def logits(*control: float) -> Tensor:
        return project(controller(states, torch.tensor(control).expand(6, 2))).detach()

    yield identical("logits under an untrained controller", logits(1, -1), plain)
    with torch.no_grad():
        controller.up.normal_()
    yield identical("logits under a control of 0", logits(0, 0), plain)
    parts = plain + 0.5 * (logits(1, 0) - plain) - 1.5 * (logits(0, 1) - plain)
    yield equal("logits are linear in the control", logits(0.5, -1.5) / 10, parts.detach() / 10, tol=1e-5)


def corners(model: ControlledLM) -> float:
    """Share of well-formed texts at the extremes of the controls."""
    texts = [text for x in (-1.0, 1.0) for y in (-1.0, 1.0) for text in written(model, torch.tensor([x, y]))]
    return sum(map(well_formed, texts)) / len(texts)


def run(method: Method, seeds: int) -> Iterator[Check]:
    """By hand, then one model per seed under both rewards."""
    yield from by_hand(method)
    seen: dict[str, list[float]] = defaultdict(list)
    same = []
    for seed in range(seeds):
        policy = pretrained(seed)
        ours, summed = (controlled(policy, m, seed) for m in (method, method._replace(compose=scalar_sum)))
        rates = [rate(written(ours, torch.tensor([x, 0.0]))) for x in SWEEP.tolist()]
        flat = [rate(written(summed, torch.tensor([x, 0.0]))) for x in (-1.0, 1.0)]
        agreement: Any = spearmanr(SWEEP, rates)
        seen["rank"].append(float(agreement.statistic))
        seen["rise"].append(rates[-1] - rates[0])
        seen["rise of the sum"].append(flat[-1] - flat[0])
        seen["formed"].append(corners(ours))
        seen["formed without kl"].append(corners(controlled(policy, method, seed, beta=0.0)))
        switch = torch.tensor([[-1.0, 0.0]] * 2 + [[1.0, 0.0]] * 2)
        steady, switched = written(ours, switch[0]), written(ours, switch)
        same += [a.split(".")[:2] == b.split(".")[:2] for a, b in zip(steady, switched, strict=True)]
        for name, texts in (("steady", steady), ("switched", switched)):
            seen[name].append(rate(texts, slice(2, 4)))
        for name, planner in (("planned", planned(ours, seed)), ("unplanned", None)):
            texts = written(ours, torch.tensor([1.0, -1.0]), planner)
            seen[name].append(rate(texts, slice(0, 2)) - rate(texts, slice(2, 4)))
    yield check("sentences before a switch", all(same), expected="the same words", seen=f"{sum(same)} of {len(same)}")
    yield every_seed("rank correlation of control and share of A", seen["rank"], above=0.9 - 1e-9, share=0.8)
    what = "rise of the share of A from control -1 to 1"
    yield paired(f"{what}, against the sum of rewards", seen["rise"], seen["rise of the sum"])
    yield every_seed(f"{what}, under the sum of rewards", [abs(x) for x in seen["rise of the sum"]], below=0.1)
    yield paired("well-formed texts at the extremes, against no KL", seen["formed"], seen["formed without kl"])
    yield paired("share of A after a switch from -1 to 1, against no switch", seen["switched"], seen["steady"])
    yield paired("fall of the share of A half-way, against no sentence network", seen["planned"], seen["unplanned"])


CLAIM = Claim(
    system="ldc",
    run=run,
    method=Method(DimensionController, control_sum),
    mutation=Mutation("the control does not enter the reward", Method(DimensionController, scalar_sum)),
    seeds=5,
)
