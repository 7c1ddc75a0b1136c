"""A beginning that makes the rest of a good chain likelier than placeholders would is on the way, whatever comes of it;
so groups in which no answer is right still teach.

Exactly: the measure by hand, its weights and the hierarchy of rewards; and parts of a small transformer's completions
against one forward pass each. Then running sums in a table: chains of six values, ten of each possible, in which the
value after a right one is right with probability 0.2 and all others are equally likely; success is a chain that is
right throughout, one in 15,000 at first. In every step a good chain is chosen from four that a policy with the answer
in view writes, each value of which is wrong with probability 0.1, by how likely its value before the answer makes the
answer. The faithfulness of beginnings is read from the policy's own table as it is then, and that of placeholders
from a row of its own. Compared at equal rollouts are GRPO on success and P2S.

Settings were found on seeds 100 to 104. With groups of 8 success was 0.35 on average after 600 steps at a rate of 0.02,
and at 0.2 wrong values of early steps were learned for good. The reward goes with how many values are right (rank
correlation 0.65 to 0.73), not with how many are right from the first on (0.06 to 0.27), for later parts weigh more.
Without faithfulness the last part is left, which is the likelihood of the answer: that alone takes success most of the
way (0.77 on the default seeds), so P2S is compared with it too; this check was added after the first run on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from scipy.stats import spearmanr
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, equal, every_seed, paired
from guerdon.claims.testbeds.stepwise import Stepwise, Walks
from guerdon.credit.group import grpo
from guerdon.credit.grouping import center
from guerdon.engine.reading import read
from guerdon.objectives.policy import reinforce
from guerdon.policies.tiny_lm import TinyLM
from guerdon.rewards.path_faithfulness import faithfulness_reward, outcome_or_process, path_faithfulness
from guerdon.sampling.gold_chains import Compared, GoldChains
from guerdon.seeding import torch_generator
from guerdon.tasks.reasoning_gym import ReasoningGym

LENGTH, VALUES, PROMPTS, GROUP, CHAINS = 6, 10, 4, 16, 4
KNOWN, ERRS, STEPS, RATE = 0.2, 0.1, 500, 0.03
BLANK = VALUES  # what stands before a value where the beginning is masked; also before the first
NAMES = ("success", "process")


class Parts(NamedTuple):
    """What is under test: the measure, and which of the rewards counts."""

    measure: Callable[..., Tensor]
    shaping: Callable[..., Any]


def blind(given: Tensor, masked: Tensor, length: Tensor, valid: Tensor | None = None, **options: Any) -> Tensor:
    """Of placeholders, whatever the beginning is."""
    return path_faithfulness(masked, masked, length, valid, **options)


def right_values() -> Tensor:
    """(P,T) the right chain of each prompt; the same for all seeds."""
    return torch.randint(VALUES, (PROMPTS, LENGTH), generator=torch_generator(0, "sums"))


def place(prompt: Tensor, position: Tensor, before: Tensor) -> Tensor:
    """State in which the value at a position is written, after the value before."""
    return (prompt * LENGTH + position) * (VALUES + 1) + before


def table() -> Stepwise:
    """States by prompt, position and value before; the policy knows a little of what follows a right value."""
    truth, prompt = right_values(), torch.arange(PROMPTS)
    states = PROMPTS * LENGTH * (VALUES + 1)
    following = torch.full((states, VALUES), -1)
    initial = torch.full((states, VALUES), 1 / VALUES, dtype=torch.float64)
    for position in range(LENGTH):
        for before in range(VALUES + 1):
            row = place(prompt, torch.tensor(position), torch.tensor(before))
            if position + 1 < LENGTH:
                following[row] = place(prompt.unsqueeze(1), torch.tensor(position + 1), torch.arange(VALUES))
        known = place(prompt, torch.tensor(position), truth[:, position - 1] if position else torch.tensor(BLANK))
        initial[known] = (1 - KNOWN) / (VALUES - 1)
        initial[known, truth[:, position]] = KNOWN
    starts = place(prompt, torch.tensor(0), torch.tensor(BLANK))
    return Stepwise(following, initial, LENGTH, lambda walks: {}, starts=starts)


def good_chains(logp: Tensor, generators: list[torch.Generator]) -> Tensor:
    """(S,P,T) of chains written with the answer in view, the one that makes the answer likeliest."""
    truth, seeds = right_values(), len(logp)
    shape = (PROMPTS, CHAINS, LENGTH)
    wrong = torch.stack([torch.rand(shape, generator=g) < ERRS for g in generators])
    other = torch.stack([torch.randint(VALUES, shape, generator=g) for g in generators])
    chains = torch.where(wrong, other, truth.unsqueeze(1))
    chains[..., -1] = truth[:, -1:]  # the answer, which is in view
    row = place(torch.arange(PROMPTS).view(1, -1, 1), torch.tensor(LENGTH - 1), chains[..., -2])
    score = logp[torch.arange(seeds).view(-1, 1, 1), row, truth[:, -1].view(1, -1, 1)]
    best = score.argmax(dim=2)
    return chains.gather(2, best.view(seeds, PROMPTS, 1, 1).expand(-1, -1, 1, LENGTH)).squeeze(2)


def beginnings(method: Parts, seed: Tensor, prompt: Tensor, written: Tensor, logp: Tensor, chain: Tensor) -> Tensor:
    """(N,T-1) faithfulness of beginnings of one to five values. What follows the first value of an end cancels."""
    i, t = torch.arange(1, LENGTH).view(1, -1, 1), torch.arange(LENGTH)
    seed, prompt = seed.view(-1, 1, 1), prompt.view(-1, 1, 1)
    first = chain[:, t].unsqueeze(1)
    told = logp[seed, place(prompt, i, written.unsqueeze(2)), first]
    blank = logp[seed, place(prompt, i, torch.tensor(BLANK)), first]
    return method.measure(told, blank, LENGTH - t)


def process(method: Parts, walks: Walks, logp: Tensor, gold: Tensor) -> Tensor:
    """(N,) reward of the process: beginnings of one to five values, then the answer."""
    seed, prompt = walks.seed, walks.prompt
    parts = beginnings(method, seed, prompt, walks.actions[:, :-1], logp, gold[seed, prompt])
    answer = right_values()[prompt, -1]
    last = logp[seed, place(prompt, torch.tensor(LENGTH - 1), walks.actions[:, -2]), answer]
    whole = torch.cat([parts, last.unsqueeze(1)], dim=1)
    return faithfulness_reward(whole, torch.full((len(whole),), LENGTH))


def solved(walks: Walks) -> Tensor:
    """(N,) 1 where every value is right."""
    return (walks.actions == right_values()[walks.prompt]).all(dim=1).double()


def success(bed: Stepwise, logp: Tensor) -> Tensor:
    """(S,) exact chance of a right chain, mean over prompts."""
    truth, prompt = right_values(), torch.arange(PROMPTS).unsqueeze(1)
    before = torch.cat([torch.full((PROMPTS, 1), BLANK), truth[:, :-1]], dim=1)
    return logp[:, place(prompt, torch.arange(LENGTH), before), truth].sum(dim=-1).exp().mean(dim=-1)


def train(method: Parts | None, seeds: int, first_seed: int = 0) -> Tensor:
    """Success (steps + 1, S) with GRPO on success, or on P2S's reward."""
    bed = table()
    logits = bed.initial.log().expand(seeds, -1, -1).clone().requires_grad_(True)
    update = torch.optim.SGD([logits], lr=RATE * LENGTH * PROMPTS * GROUP)
    generators = [torch_generator(first_seed + s, "p2s") for s in range(seeds)]
    helpers = [torch_generator(first_seed + s, "chains") for s in range(seeds)]
    curve = [success(bed, logits.detach().log_softmax(dim=-1))]
    for step in range(STEPS):
        logp = logits.log_softmax(dim=-1)
        walks = bed.write(logp.detach().exp(), GROUP, generators)
        group, reward = walks.seed * PROMPTS + walks.prompt, solved(walks)
        if method is not None:
            reward = rewarded(method, walks, logp.detach(), good_chains(logp.detach(), helpers), group, step)
        credit = grpo(reward, group, walks.mask)
        chosen = logp[walks.seed.unsqueeze(1), walks.states, walks.actions]
        loss = reinforce(chosen, credit, walks.mask, aggregate="sum_over_max_length", max_length=LENGTH) * seeds
        update.zero_grad()
        loss.backward()
        update.step()
        curve.append(success(bed, logits.detach().log_softmax(dim=-1)))
    return torch.stack(curve)


def rewarded(method: Parts, walks: Walks, logp: Tensor, gold: Tensor, group: Tensor, step: int) -> Tensor:
    """(N,) success or process, as the hierarchy says."""
    both = torch.stack([solved(walks), process(method, walks, logp, gold)], dim=1)
    return method.shaping(both, NAMES, group, step, outcome="success", process="process")[0]


def first_ranks(method: Parts, seeds: int) -> tuple[list[float], list[float]]:
    """Before training: rank correlation of credit and right values within groups; share that success gives credit."""
    bed, size = table(), 128
    generators = [torch_generator(s, "ranks") for s in range(seeds)]
    logp = bed.initial.log().expand(seeds, -1, -1)
    walks = bed.write(logp.exp(), size, generators)
    group = torch.arange(len(walks.seed)) // 8
    credit = grpo(rewarded(method, walks, logp, good_chains(logp, generators), group, 0), group, walks.mask)[:, 0]
    right = center((walks.actions == right_values()[walks.prompt]).sum(dim=1).double(), group)
    plain = grpo(solved(walks), group, walks.mask)[:, 0]
    ranks, spoken = [], []
    for s in range(seeds):
        mine = walks.seed == s
        flat = float(credit[mine].std()) == 0
        ranks.append(0.0 if flat else float(spearmanr(credit[mine].numpy(), right[mine].numpy()).statistic))  # type: ignore[attr-defined]
        spoken.append(float((plain[mine] != 0).double().mean()))
    return ranks, spoken


def by_hand(method: Parts) -> Iterator[Check]:
    """The measure, the weights, and the hierarchy."""
    given = torch.tensor([[[-1.0, -0.5], [-2.0, -3.0]]], dtype=torch.float64)
    masked = torch.tensor([[[-4.0, -2.0], [-2.0, -3.0]]], dtype=torch.float64)
    seen = method.measure(given, masked, torch.tensor([6, 1]))
    yield equal("a beginning that helps two ends of 6 tokens and 1, and one that is its mask", seen, [[1.5, 0.0]])
    undivided = method.measure(given, masked, torch.tensor([6, 1]), normalise=False)
    yield equal("the same where ends are not divided by their length", undivided, [[3.0, 0.0]])
    parts = torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    weight = torch.sigmoid(10 * (torch.tensor([0.25, 0.5, 0.75, 1.0], dtype=torch.float64) - 0.5))
    share = faithfulness_reward(parts, torch.tensor([4]))
    yield equal("share of the last of four parts", share, [float(weight[3] / weight.sum())])
    columns = torch.tensor([[0.0, 0.3, 1], [1.0, 0.2, 1], [0.0, 0.5, 1], [0.0, 0.1, 1], [0.0, 0.9, 0]])
    key, names = torch.tensor([0, 0, 1, 1, 1]), ("success", "process", "form")
    options = {"outcome": "success", "process": "process", "form": "form"}
    value, _ = method.shaping(columns, names, key, 5, **options)
    yield equal("a group with a success, one without, and bad form", value, [0, 1, 0.5, 0.1, -1])
    value, _ = method.shaping(columns, names, key, 5, begin=6, **options)
    yield equal("the same while form alone is rewarded", value, [0, 0, 0, 0, -1])


def read_apart() -> tuple[Tensor, Tensor, list[float]]:
    """Parts of a transformer's text, by the source and by one pass each; and of beginnings of the good chain itself."""
    torch.manual_seed(0)
    task = ReasoningGym(dataset="spell_backward", config={"min_word_len": 6, "max_word_len": 6})
    policy = TinyLM(task, width=32, layers=2)
    for step in range(30):
        loss = policy.supervised_loss(task.train_batch(32, step), step)
        grads = torch.autograd.grad(loss, list(policy.trainable().values()))
        with torch.no_grad():
            for weight, grad in zip(policy.trainable().values(), grads, strict=True):
                weight.sub_(grad, alpha=0.3)
    problem = task.train_batch(1, 99)[0]
    prompt, chain = policy.encode_prompt(problem.prompt), policy.encode("abcdef")
    written, source = policy.encode("abcxyz"), GoldChains(parts=3)

    def logp(before: list[int], after: list[int]) -> float:
        ids = torch.tensor([[*before, *after]])
        there = torch.ones_like(ids, dtype=torch.bool)
        with torch.no_grad():
            scores = policy.model.project(read(policy.model, ids, there, there)).log_softmax(dim=-1)
        return float(scores[torch.arange(len(after)) + len(before) - 1, torch.tensor(after)].sum())

    together = source.faithfulness(policy, [Compared(prompt, written, chain, str(problem.answer))])[0]
    apart = []
    for cut in (2, 4):
        gains = [
            (logp([*prompt, *written[:cut]], chain[t:]) - logp([*prompt, *[policy.pad] * cut], chain[t:])) / (6 - t)
            for t in (0, 2, 4)
        ]
        apart.append(max(gains))
    answer = policy.encode(str(problem.answer))
    apart.append(logp([*prompt, *written], answer) / len(answer))
    masked = source.faithfulness(policy, [Compared(prompt, [policy.pad] * 6, chain, str(problem.answer))])[0]
    return torch.tensor(together), torch.tensor(apart), masked[:2]


def run(method: Parts, seeds: int) -> Iterator[Check]:
    """Numbers by hand, readings of a transformer, then running sums."""
    yield from by_hand(method)
    together, apart, masked = read_apart()
    yield equal("faithfulness of three parts of a text, against one pass each", together, apart, tol=1e-4)
    yield equal("of parts that are their own mask", masked, [0.0, 0.0], tol=1e-5)
    truth, logp = right_values(), table().initial.log().unsqueeze(0)
    written = torch.arange(VALUES).view(-1, 1, 1).expand(-1, PROMPTS, LENGTH - 1).reshape(-1, LENGTH - 1)
    prompt = torch.arange(PROMPTS).repeat(VALUES)
    seen = beginnings(method, torch.zeros_like(prompt), prompt, written, logp, truth[prompt])
    best = seen.view(VALUES, PROMPTS, LENGTH - 1)
    yield equal("value with which a beginning is most faithful, of ten", best.argmax(dim=0), truth[:, :-1])
    ranks, spoken = first_ranks(method, seeds)
    yield every_seed("share of first answers to which success gives credit", spoken, below=0.05)
    yield every_seed("rank correlation of P2S's first credit and right values", ranks, above=0.5)
    plain, ours = train(None, seeds), train(method, seeds)
    yield every_seed("success after training with P2S", ours[-1], above=0.5)
    yield paired(
        "success after training, at equal rollouts",
        ours[-1],
        plain[-1],
        margin=0.3,
        curves={"p2s": ours.T, "grpo on success": plain.T},
        axis="success by step",
    )
    alone = train(Parts(blind, outcome_or_process), seeds)
    yield paired("the same, against the answer's likelihood alone", ours[-1], alone[-1])


CLAIM = Claim(
    system="p2s",
    run=run,
    method=Parts(path_faithfulness, outcome_or_process),
    mutation=Mutation("beginnings are masked on both sides", Parts(blind, outcome_or_process)),
    recipe="""
sampling: {prompts: 64, group_size: 8, max_new_tokens: 8, sources: [{name: gold_chains, hint: "{prompt}{answer}"}]}
rewards: [task, path_faithfulness]
shaping: [{name: outcome_or_process, outcome: task, process: path_faithfulness}]
credit: grpo
""",
)
