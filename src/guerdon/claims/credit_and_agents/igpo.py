"""IGPO pays each turn for how much likelier it made the reference answer, so that groups whose rollouts all fail still
teach, and the turn that found the evidence is the one that is paid.

Exactly: the gains of the source's example, and answers scored before every turn of real episodes of the search task by
a small transformer, against one forward pass for each. Then a question of two hops in a table: each of two turns asks
one of twelve queries, the second is of use only after the right first, and the answer is right with the probability
that the reference answer has by then (0.001, 0.05, 0.9). Nearly no rollout is right at first. GRPO has nothing to learn
from, and IGPO finds the first hop, then the second. In the table the answer's probability is given and does not learn;
with a transformer it must first be one that can read an answer off a passage.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, check, equal, every_seed, paired
from guerdon.claims.testbeds.tabular import History, Tabular
from guerdon.credit.belief import igpo
from guerdon.credit.group import grpo
from guerdon.engine.reading import read
from guerdon.policies.language_sampling import LanguageSampling
from guerdon.policies.likelihoods import answer_logp
from guerdon.policies.tiny_lm import TinyLM
from guerdon.tasks.agents import Search
from guerdon.tasks.base import Starts

QUERIES, PROMPTS, STEPS = 12, 8, 150
BELIEF = torch.tensor([0.001, 0.05, 0.9], dtype=torch.float64)  # with no, one and two hops done


def hops(tokens: Tensor) -> Tensor:
    """(N,3) how many hops are done before each of the two queries and before the answer."""
    first = (tokens[:, 0] == 0).long()
    second = first * (tokens[:, 1] == 0).long()
    return torch.stack([torch.zeros_like(first), first, first + second], dim=1)


def in_table(credit: Callable[..., tuple[Tensor, dict[str, float]]]) -> Callable[..., Tensor]:
    """The credit on the table's episodes, of one action per turn."""

    def by_turn(reward: Tensor, tokens: Tensor, group: Tensor, mask: Tensor) -> Tensor:
        turn = torch.arange(tokens.shape[1]).expand(tokens.shape)
        return credit(reward, BELIEF.log()[hops(tokens)], group, turn, mask)[0]

    return by_turn


def accuracy(history: History) -> Tensor:
    """(steps + 1, S) exact chance of a right answer, mean over prompts."""
    first, second = history.probs[..., 0, 0], history.probs[..., 1, 0]
    chance = (1 - first) * BELIEF[0] + first * (1 - second) * BELIEF[1] + first * second * BELIEF[2]
    return chance.mean(dim=-1)


def late(
    reward: Tensor, answer_logp: Tensor, group: Tensor, turn: Tensor, mask: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """Pay the turn after the one that told something."""
    return igpo(reward, torch.cat([answer_logp[:, :1], answer_logp[:, :-1]], dim=1), group, turn, mask)


def scored_apart() -> tuple[Tensor, Tensor]:
    """Scores of a policy's answers before the turns of searches, together and one at a time."""
    torch.manual_seed(0)
    task = Search(entities=8, shallow=0.0)
    policy = TinyLM(task, width=32, layers=2, tokenizer="word")
    for seed in range(40):  # enough to write searches
        loss = policy.supervised_loss(task.train_batch(16, seed), seed)
        gradients = torch.autograd.grad(loss, list(policy.trainable().values()))
        with torch.no_grad():
            for weight, gradient in zip(policy.trainable().values(), gradients, strict=True):
                weight.sub_(gradient, alpha=0.5)
    sampling = LanguageSampling(max_new_tokens=5).bound_to(task)
    rollouts = policy.sample(Starts.repeat(task.train_batch(4, 0), 2), sampling, seed=0)
    together = answer_logp(policy, rollouts, task.answer_form)
    assert rollouts.tokens is not None
    apart = torch.zeros_like(together)
    width = rollouts.mask.shape[1]
    for row, turn in (together != 0).nonzero().tolist():
        prompt = rollouts.payload["prompt_tokens"][row][rollouts.payload["attention"][row][:-width]].tolist()
        begin = int((rollouts.turn[row] == turn).nonzero()[0])
        answer = policy.encode(str((rollouts.answer or [])[row]))
        history = [*prompt, *rollouts.tokens[row, :begin].tolist(), *policy.encode("answer")]
        ids = torch.tensor([[*history, *answer]])
        there = torch.ones_like(ids, dtype=torch.bool)
        with torch.no_grad():
            logp = policy.model.project(read(policy.model, ids, there, there)).log_softmax(dim=-1)
        apart[row, turn] = logp[torch.arange(len(answer)) + len(history) - 1, torch.tensor(answer)].mean()
    return together, apart


def run(method: Callable[..., tuple[Tensor, dict[str, float]]], seeds: int) -> Iterator[Check]:
    """The example, the scores of answers, then two hops in a table."""
    belief = torch.tensor([[0.1, 0.4, 0.4], [0.1, 0.1, 0.3]]).log()
    turn, group, mask = torch.arange(3).expand(2, 3), torch.zeros(2).long(), torch.ones(2, 3).bool()
    credit, _ = method(torch.zeros(2), belief, group, turn, mask)
    gains = torch.tensor([0.3, 0.0, 0.0, 0.2])
    z = ((gains - gains.mean()) / gains.std()).view(2, 2)
    wanted = torch.cat([z + torch.stack([z[:, 1], torch.zeros(2)], dim=1), torch.zeros(2, 1)], dim=1)
    yield equal("credit of the example's turns, both of whose answers are wrong", credit, wanted, tol=1e-4)
    yield equal("credit of the same by GRPO", grpo(torch.zeros(2), group, mask), torch.zeros(2, 3))
    together, apart = scored_apart()
    yield equal("log-probability of answers before every turn, together and apart", together, apart, tol=1e-5)
    yield check("turns scored", int((together != 0).sum()) > 8, expected="> 8", seen=f"{int((together != 0).sum())}")

    bed = Tabular(
        torch.full((PROMPTS, 3, QUERIES), 1 / QUERIES, dtype=torch.float64),
        lambda tokens, prompt, uniform: (uniform < BELIEF[hops(tokens)[:, 2]]).double(),
    )
    shared: dict[str, Any] = {"seeds": seeds, "steps": STEPS, "group_size": 8, "lr": 3.0}
    ours, theirs = bed.train(credit=in_table(method), **shared), bed.train(**shared)
    yield every_seed(f"accuracy after {STEPS} steps", accuracy(ours)[-1], above=0.5, share=0.8)
    yield every_seed("accuracy of GRPO", accuracy(theirs)[-1], below=0.2, share=0.8)
    yield paired(
        "steps to an accuracy of 50 %, at equal rollouts",
        History.first(accuracy(ours), 0.5),
        History.first(accuracy(theirs), 0.5),
        better="lower",
        curves={"igpo": accuracy(ours).T, "grpo": accuracy(theirs).T},
        axis="accuracy by step",
    )
    behind = bed.train(credit=in_table(late), **shared)
    yield paired(
        "the same against gains that are paid a turn late",
        History.first(accuracy(ours), 0.5),
        History.first(accuracy(behind), 0.5),
        better="lower",
    )


CLAIM = Claim(
    system="igpo",
    run=run,
    method=igpo,
    mutation=Mutation("the turn after the one that told something is paid", late),
)
