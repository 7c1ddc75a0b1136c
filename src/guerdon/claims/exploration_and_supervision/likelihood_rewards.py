"""How likely the policy finds a reference answer after it has reasoned is a reward that needs no verifier. The
probability of a long answer is too small to tell good reasoning from bad; its logarithm is not.

Exactly: the four kinds of reward and JEPO's credit by hand; the gradient of a policy in a table that chooses its
reasoning and gives its answer, against finite differences of the mean reward, with every group of two enumerated; and
answers scored by a small transformer behind its own completions, against one forward pass for each. Then eight ways to
reason in a table, uniform at first: one makes every token of the answer 0.8 likely, the others 0.55, and answers have
1, 5 or 30 tokens. Each kind of reward trains for 600 steps of RLOO in groups of 8, JEPO in groups of 4. The rate of
0.6 per prompt was the first that was tried (on seeds 0 to 2). That reasoning gets shorter at first is not looked at: in
this table it has no length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, equal, every_seed, paired
from guerdon.claims.testbeds.tabular import History, Tabular
from guerdon.credit import rloo
from guerdon.credit.jepo import jepo
from guerdon.engine.reading import read
from guerdon.objectives.answer_term import answer_term
from guerdon.objectives.policy import reinforce
from guerdon.policies.language_sampling import LanguageSampling
from guerdon.policies.tiny_lm import TinyLM
from guerdon.rewards.answer_likelihood import answer_likelihood, log_mean_prob, perplexity
from guerdon.sampling.reference_answer import ReferenceAnswer
from guerdon.sampling.sources import Draw
from guerdon.tasks.base import Starts
from guerdon.tasks.reasoning_gym import ReasoningGym

CHOICES, GOOD, OTHER, LENGTHS = 8, 0.8, 0.55, (1, 5, 30)
STEPS, GROUP, RATE = 600, 8, 0.6
KINDS = ("log_prob", "avg_log_prob", "prob", "avg_prob")
WANTED = {"log_prob": -1.89712, "avg_log_prob": -0.94856, "prob": 0.15, "avg_prob": 0.4}


class Parts(NamedTuple):
    """What is under test: the reward, JEPO's credit, and the second term of the gradient."""

    reward: Callable[..., Any]
    jepo: Callable[..., Any]
    term: Callable[..., Any]


def only_probability(*fields: Tensor, kind: str = "prob") -> Any:
    """The probability of the answer, whatever kind is asked for."""
    return answer_likelihood(*fields, kind="prob")


def scores(method: Parts, logp: Tensor, there: Tensor, kind: str) -> Tensor:
    """Rewards (N,) of answers behind one action of reasoning."""
    one = torch.ones(len(logp), 1, dtype=torch.bool)
    rows = torch.cat([torch.zeros_like(logp[:, :1]), logp], dim=1)
    given = method.reward(rows, torch.cat([one, there], dim=1), torch.cat([~one, there], dim=1), kind=kind)
    return torch.tensor([score.value for score in given], dtype=torch.float64)


def gradients(method: Parts, kind: str) -> tuple[Tensor, Tensor]:
    """Expected gradient of credit, objective and term over all groups of two; finite differences of the mean reward.

    Parameters are three logits of the reasoning and, for each, those of two answer tokens out of four.
    """
    theta = torch.randn(3 + 3 * 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    groups = torch.tensor(list(product(range(3), repeat=2)))
    rows, key = groups.reshape(-1), torch.arange(len(groups)).repeat_interleave(2)
    one = torch.ones(len(rows), 1, dtype=torch.bool)
    there = torch.ones(len(rows), 2, dtype=torch.bool)
    mask, external = torch.cat([one, there], dim=1), torch.cat([~one, there], dim=1)

    def log_probs(x: Tensor) -> Tensor:
        answers = x[3:].view(3, 2, 4).log_softmax(dim=-1)[..., 1]
        return torch.cat([x[:3].log_softmax(dim=0).unsqueeze(1), answers], dim=1)[rows]

    def mean_reward(x: Tensor) -> Tensor:
        logp = log_probs(x)
        chance = logp[:, 0].view(-1, 2).sum(dim=1).exp()
        if kind == "jepo":
            value = log_mean_prob(logp[:, 1:].sum(dim=1), key)[::2] / 2
        else:
            p = logp[:, 1:]
            value = {
                "log_prob": p.sum(1),
                "avg_log_prob": p.mean(1),
                "prob": p.sum(1).exp(),
                "avg_prob": p.exp().mean(1),
            }[kind]
            value = value.view(-1, 2).mean(dim=1)
        return (chance * value).sum()

    x = theta.clone().requires_grad_(True)
    logp = log_probs(x)
    reward = scores(method, logp.detach()[:, 1:], there, "log_prob" if kind == "jepo" else kind)
    credit = method.jepo(reward, key, mask)[0] if kind == "jepo" else rloo(reward, key, mask)
    chance = logp.detach()[:, 0].view(-1, 2).sum(dim=1).exp()
    total = torch.zeros((), dtype=torch.float64)
    for group, weight in enumerate(chance):
        mine = slice(2 * group, 2 * group + 2)
        loss = reinforce(logp[mine, :1], credit[mine, :1], one[mine], aggregate="sum_over_max_length", max_length=1)
        term, _ = method.term(logp[mine], mask[mine], key[mine], external[mine], kind=kind)
        total = total - weight * (loss + term)
    (ours,) = torch.autograd.grad(total, x)
    steps = 1e-5 * torch.eye(len(theta), dtype=torch.float64)
    return ours, torch.stack([(mean_reward(theta + s) - mean_reward(theta - s)) / 2e-5 for s in steps])


def scored_apart(method: Parts) -> tuple[Tensor, Tensor]:
    """Rewards of references behind a transformer's completions, together and by one forward pass each."""
    torch.manual_seed(0)
    task = ReasoningGym(dataset="spell_backward", config={"min_word_len": 3, "max_word_len": 6})
    policy = TinyLM(task, width=32, layers=2)
    starts = Starts.repeat(task.train_batch(4, 0), 2)
    draw = Draw(policy, task, [], LanguageSampling(max_new_tokens=5), starts, None, None, 0, 0, 0)
    rollouts = ReferenceAnswer(form=" is {}.").draw(draw)
    assert rollouts.tokens is not None
    assert rollouts.external is not None
    given = method.reward(rollouts.old_logp, rollouts.mask, rollouts.external, kind="log_prob")
    apart = []
    for row, problem in enumerate(starts.problems):
        own = rollouts.mask[row] & ~rollouts.external[row]
        answer = policy.encode(f"{problem.answer}.")
        history = [*policy.encode_prompt(problem.prompt), *rollouts.tokens[row][own].tolist(), *policy.encode(" is ")]
        ids = torch.tensor([[*history, *answer]])
        there = torch.ones_like(ids, dtype=torch.bool)
        with torch.no_grad():
            logp = policy.model.project(read(policy.model, ids, there, there)).log_softmax(dim=-1)
        apart.append(logp[torch.arange(len(answer)) + len(history) - 1, torch.tensor(answer)].sum())
    return torch.tensor([score.value for score in given]), torch.stack(apart)


def bed(method: Parts, kind: str) -> Tabular:
    """One prompt for each length of the answer; the first choice is the good one."""
    lengths = torch.tensor(LENGTHS)

    def rewarded(actions: Tensor, prompt: Tensor) -> Tensor:
        p = torch.where(actions == 0, GOOD, OTHER).double()
        there = torch.arange(max(LENGTHS)) < lengths[prompt].unsqueeze(1)
        return scores(method, p.log().expand(-1, max(LENGTHS)), there, kind)

    return Tabular(torch.full((len(LENGTHS), CHOICES), 1 / CHOICES, dtype=torch.float64), rewarded)


def run(method: Parts, seeds: int) -> Iterator[Check]:
    """Numbers by hand, gradients, readings; then four rewards and JEPO on answers of three lengths."""
    logp = torch.tensor([[0.3, 0.5, 9.0]], dtype=torch.float64).log()
    there = torch.tensor([[True, True, False]])
    for kind in KINDS:
        yield equal(f"{kind} of two tokens of 0.3 and 0.5", scores(method, logp, there, kind), [WANTED[kind]], tol=1e-5)
    pair = torch.tensor([0.2, 0.6], dtype=torch.float64).log()
    credit, _ = method.jepo(pair, torch.zeros(2).long(), torch.ones(2, 1).bool())
    yield equal("JEPO's credit of answers of 0.2 and 0.6", credit[:, 0], [-0.40547, 0.69315], tol=1e-5)
    yield equal(
        "perplexity of two answers whose tokens have 1/2 and 1/8", perplexity(torch.tensor([0.5, 0.125]).log()), 4
    )
    long = torch.tensor([-800.0, -801.0])
    yield equal(
        "log-prob-MC of answers of e^-800 and e^-801", log_mean_prob(long, torch.zeros(2).long())[0], -800.3799, 1e-3
    )
    for kind in (*KINDS, "jepo"):
        ours, finite = gradients(method, kind)
        yield equal(f"two-term gradient of {kind}, against finite differences", ours, finite, tol=1e-7)
    together, apart = scored_apart(method)
    yield equal("log-probability of references behind completions, against one pass each", together, apart, tol=1e-4)

    settings: dict[str, Any] = {"seeds": seeds, "steps": STEPS, "group_size": GROUP, "lr": RATE * len(LENGTHS)}
    runs: dict[str, History] = {k: bed(method, k).train(credit="rloo", **settings) for k in KINDS}
    runs["jepo"] = bed(method, "log_prob").train(credit=method.jepo, **{**settings, "group_size": 4})
    good = {kind: history.probs[..., 0, 0] for kind, history in runs.items()}  # (steps + 1, S, lengths)
    for place, n in enumerate(LENGTHS[:-1]):
        for kind in good:
            yield every_seed(f"good reasoning, answers of {n}, {kind}", good[kind][-1, :, place], above=0.9)
    for kind in ("log_prob", "avg_log_prob", "avg_prob", "jepo"):
        yield every_seed(f"good reasoning, answers of {LENGTHS[-1]}, {kind}", good[kind][-1, :, -1], above=0.9)
    yield every_seed(f"good reasoning, answers of {LENGTHS[-1]}, prob", good["prob"][-1, :, -1], below=0.2)
    yield paired(
        f"good reasoning for answers of {LENGTHS[-1]} tokens, log_prob against prob",
        good["log_prob"][-1, :, -1],
        good["prob"][-1, :, -1],
        margin=0.5,
        share=1.0,
        curves={kind: x[..., -1].T for kind, x in good.items()},
        axis="good reasoning by step",
    )


CLAIM = Claim(
    system="likelihood-rewards",
    run=run,
    method=Parts(answer_likelihood, jepo, answer_term),
    mutation=Mutation("every kind is the probability", Parts(only_probability, jepo, answer_term)),
    recipe="""
sampling: {prompts: 64, group_size: 8, max_new_tokens: 8, sources: [reference_answer]}
rewards: [answer_likelihood, {name: task, watch: true}]
credit: rloo
objective: {name: reinforce, aggregate: sum_over_max_length}
terms: [{name: answer_term, aggregate: sum_over_max_length}]
""",
)
