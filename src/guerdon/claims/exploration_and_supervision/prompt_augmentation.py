"""Trained for long on one template, a policy becomes sure of whatever it does under it. Prompt augmentation draws one
of several templates every time a question is drawn, and pays for the form that each asks for.

Exact are scores of form and where answers are found. Trained are small networks on countdown (from a number to a goal
in four operations), which see their template as one of six further inputs, by GRPO from nothing, 64 answers a step for
600 steps; with one template for all questions, or with six. They are judged under the first template alone.

Not reproduced. Six templates keep no more entropy, once the usual horizon of 120 steps is over, nor gain more accuracy
after it: 0.13 against 0.10, on 5 of 8 seeds. Of the learning rates 0.003, 0.01, 0.02, 0.04 and 0.08 on seeds 100 to
103, 0.04 was taken: at lower ones neither stood still after 500 steps, and six templates learned a little more slowly;
at 0.08 both lost their entropy within 25 steps. On seeds 100 to 105 it looked as published, 0.73 against 0.40 in the
end, for half of the networks with one template stayed where they had begun; the default seeds show that this was
chance, which strikes either. A template is but an input here, and changes nothing about how a question is answered,
which for a language model it does; there an effect may well be that a table of inputs cannot have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from guerdon.claims.core import Check, Claim, Mutation, equal, every_seed, paired
from guerdon.claims.testbeds.sequences import Adam, Countdown, Networks, Writing
from guerdon.credit.group import grpo
from guerdon.objectives.policy import dapo
from guerdon.rewards.template_format import template_format
from guerdon.seeding import derive, torch_generator
from guerdon.tasks.templates import TEMPLATES, Template, draw_templates

BED = Countdown(7, 4)
SURFACES, QUESTIONS, GROUP, STEPS, EVERY, HORIZON, LR = 6, 8, 8, 600, 20, 120, 0.04
Form = Callable[..., float]


def at_least_once(text: str, metadata: dict[str, Any]) -> float:
    """Pay for what stands in a text, however often."""
    marks: Sequence[str] = metadata["template_marks"]
    return sum(mark in text for mark in marks) / len(marks) if marks else 1.0


def by_hand(form: Form) -> Iterator[Check]:
    """What texts earn for their form, and the answers that are found in them."""
    pool = {template.name: template for template in TEMPLATES}
    whole = "<think>2 and 2</think><answer>4</answer>"
    for name, text, wanted in (
        ("think", "4", 0.0),
        ("think", "<think>2 and 2", 0.25),
        ("think", "<think>2 and 2</think><answer>4", 0.75),
        ("think", whole, 1.0),
        ("think", "<think>" + whole, 0.75),
        ("think_opened", whole.removeprefix("<think>"), 1.0),
        ("think_opened", "2 and 2</think>4", 1 / 3),
        ("harness_ending", "The final answer is: 4", 1.0),
        ("harness_ending", "The final answer is: 4. The final answer is: 5", 0.0),
        ("steps", "4", 1.0),
    ):
        seen = form(text, {"template_marks": list(pool[name].marks)})
        yield equal(f"form of {text!r} under template {name}", seen, wanted)
    found = [template.extract(template.demonstrate("4")) == "4" for template in TEMPLATES]
    yield equal("templates in which the answer is found", sum(found), 13)


def writing() -> Writing:
    """Countdown in which a network also sees the number of its template, the third number of a prompt."""
    plain = BED.writing()

    def observe(prompt: Tensor, tokens: Tensor) -> Tensor:
        seen = plain.observe(prompt[..., :2], tokens)
        template = one_hot(prompt[..., 2], SURFACES).unsqueeze(-2).expand(*seen.shape[:-1], -1)
        return torch.cat([seen, template.to(seen)], dim=-1)

    return Writing(plain.symbols, plain.length, plain.size + SURFACES, observe)


def train(templates: int, seeds: int, first_seed: int = 0) -> tuple[Tensor, Tensor]:
    """(points,S) accuracy and entropy of an operation under the first template, every 20 steps."""
    networks = Networks(writing(), range(first_seed, first_seed + seeds), hidden=32)
    optimizer = Adam(networks, LR)
    generators = [torch_generator(seed, "batches") for seed in networks.seeds]
    judges = [torch_generator(seed, "judges") for seed in networks.seeds]
    surfaces = [Template(str(i), "{question}") for i in range(templates)]
    group, mask = torch.arange(QUESTIONS).repeat_interleave(GROUP), torch.ones(QUESTIONS * GROUP, BED.length).bool()
    held = torch.cat([BED.prompt, torch.zeros(len(BED.prompt), 1, dtype=torch.int64)], dim=1)
    held = held.repeat(4, 1).expand(seeds, -1, -1)
    accuracy, entropy = [], []
    for step in range(STEPS):
        chosen = torch.stack([torch.randint(len(BED.prompt), (QUESTIONS,), generator=g) for g in generators])
        drawn = [draw_templates(surfaces, QUESTIONS, derive(seed, "templates", step)) for seed in networks.seeds]
        number = torch.tensor([[int(template.name) for template in row] for row in drawn])
        prompt = torch.cat([BED.prompt[chosen], number.unsqueeze(-1)], dim=-1).repeat_interleave(GROUP, dim=1)
        tokens = networks.write(prompt, generators)
        reward = BED.right(prompt[..., :2], tokens).float()
        logp = networks.read(prompt, tokens).logp
        losses = [
            dapo(logp[s], logp[s].detach(), grpo(reward[s], group, mask), mask)[0] for s in range(len(networks.seeds))
        ]
        optimizer.step(torch.stack(losses).sum())
        if (step + 1) % EVERY == 0:
            with torch.no_grad():
                answers = networks.write(held, judges)
                table = networks.read(held, answers).log_probs
            accuracy.append(BED.right(held[..., :2], answers).double().mean(dim=1))
            entropy.append(-(table.exp() * table).sum(dim=-1).mean(dim=(1, 2)).double())
    return torch.stack(accuracy), torch.stack(entropy)


def run(form: Form, seeds: int) -> Iterator[Check]:
    """Form by hand; then training."""
    yield from by_hand(form)
    names = {"six templates": SURFACES, "one template": 1}
    runs = {name: train(count, seeds) for name, count in names.items()}
    (many, many_entropy), (one, one_entropy) = runs.values()
    usual = HORIZON // EVERY
    what = "entropy of an operation, mean over all steps"
    yield paired(what, many_entropy.mean(dim=0), one_entropy.mean(dim=0))
    yield paired(
        "entropy of an operation, mean over the steps after the usual horizon",
        many_entropy[usual:].mean(dim=0),
        one_entropy[usual:].mean(dim=0),
        curves={name: x[1].T for name, x in runs.items()},
        axis=f"entropy in nats, every {EVERY} steps",
    )
    peak = {name: accuracy.amax(dim=0) for name, (accuracy, _) in runs.items()}
    fallen = {name: peak[name] - accuracy[-5:].mean(dim=0) for name, (accuracy, _) in runs.items()}
    what = "accuracy at five times the usual horizon below its peak, no more than 0.02 beyond one template's"
    yield paired(what, fallen["six templates"], fallen["one template"], better="lower", margin=-0.02)
    gained = [x[-5:].mean(dim=0) - x[usual - 1 : usual + 1].mean(dim=0) for x in (many, one)]
    curves = {name: x[0].T for name, x in runs.items()}
    what = "accuracy gained after the usual horizon"
    yield paired(what, gained[0], gained[1], curves=curves, axis=f"accuracy, every {EVERY} steps")
    what = "accuracy in the end beyond one template's"
    yield every_seed(what, many[-5:].mean(dim=0) - one[-5:].mean(dim=0), above=-0.05, share=0.8)


CLAIM = Claim(
    system="prompt-augmentation",
    run=run,
    method=template_format,
    mutation=Mutation("marks may stand any number of times", at_least_once),
    recipe="""
task:
  name: prompt_augmentation
  task: {name: reasoning_gym, dataset: spell_backward, config: {min_word_len: 3, max_word_len: 6}}
  templates:
    - {name: plain, text: "{question}="}
    - {name: ending, text: "{question} ends with !", marks: ["!"]}
rewards: [task, template_format]
objective: dapo
""",
    seeds=8,
)
