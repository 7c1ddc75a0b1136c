"""In a conversation the user asks for "its height", and a search for that finds nothing. Whether the answer came out
right hardly says why, so ChatR1 also pays, at a weight of 0.2, how well the best query says what the user meant.

An agent searches once or twice in 48 passages by BM25, three at a time. A query is a word for who (the pronoun, the
entity last spoken of, one spoken of before, or none) and a word for what (the one asked for, a vague one, or
another). It sees whether what it found is about the question, and then answers from the first passage, guesses, or
searches again. Texts are written out and scored by the registered rewards; the policy and the critic are tables,
trained by PPO with A = R - V. Eight conversations differ in who and what. With labels of gold passages for 70 % of
them, hit@3 in place of F1 is paid in the labelled conversations alone.

Words of a rewrite as a reward raise what is found and what is answered, over the answer alone. That they beat hit@3
with missing labels does not appear: on seeds 100 to 103 the F1 of answers over training is 0.632 against 0.640, and
0.447 against 0.461 (60 updates) or 0.635 against 0.645 (120 updates, at a rate of 8) where each conversation has a
policy of its own, so that nothing is learned of the unlabelled from the labelled. A hit tells a right query from one
with a pronoun by 1 against a quarter, the words of the rewrite by about 0.5 against 0.25, and seven labels of ten are
enough for the former to say more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, equal, paired
from guerdon.claims.testbeds.episodes import Environment, Episodes, Step
from guerdon.credit.step import gae
from guerdon.rewards.forms import Score
from guerdon.rewards.intent import intent_f1
from guerdon.rewards.ngrams import token_f1
from guerdon.rewards.process import DOCUMENTS, QUERY, cost_aware_f1
from guerdon.seeding import numpy_generator
from guerdon.tasks.agents import Passage, bm25

ENTITIES = ("anvik", "borsa", "celda", "dulin", "embra", "fosto", "gorin", "halve", "ilmar", "jotun", "kelda", "lumen")
RELATIONS = ("height", "founder", "capital", "opening")
TALKS, WHO, WHAT, NONE = 8, 4, 3, 12  # a query is 3 who + what; 12 is none
SAYS_WHO, SAYS_WHAT, DECIDES, AGAIN_WHO, AGAIN_WHAT, ENDS = range(6)
COPY, SEARCH, GUESS = range(3)
ALPHA, UNLABELLED = 0.2, 0.3


@dataclass(frozen=True)
class Talk:
    """What a user meant, in a conversation about two entities."""

    focus: str
    other: str
    relation: str
    elsewhere: str
    labelled: bool

    def query(self, number: int) -> str:
        """Words of a query."""
        who = ("its", self.focus, self.other, "")[number // WHAT]
        return f"{who} {(self.relation, 'details', self.elsewhere)[number % WHAT]}".strip()


def talks(seed: int) -> tuple[list[Talk], tuple[Passage, ...], dict[tuple[str, str], str]]:
    """Conversations, passages, and what each says."""
    random = numpy_generator(seed, "talks")
    facts: dict[tuple[str, str], str] = {
        pair: f"{random.integers(100, 1000)} {random.choice(['old', 'new'])}" for pair in product(ENTITIES, RELATIONS)
    }
    corpus = tuple(Passage(e, f"{e} {r} is {value}. details of its kind.") for (e, r), value in facts.items())
    made = []
    for number in range(TALKS):
        focus, other = random.choice(ENTITIES, 2, replace=False)
        relation, elsewhere = random.choice(RELATIONS, 2, replace=False)
        made.append(Talk(focus, other, relation, elsewhere, number >= round(UNLABELLED * TALKS)))
    order = random.permutation(len(corpus))
    return made, tuple(corpus[i] for i in order), facts


def written(queries: list[str], found: list[list[str]], answer: str) -> str:
    """The whole text of an episode."""
    parts = [f"{q.join(QUERY)}{' '.join(passages).join(DOCUMENTS)}" for q, passages in zip(queries, found, strict=True)]
    return f"<think>{''.join(parts)}</think><answer>{answer}</answer>"


@dataclass(frozen=True)
class Conversation(Environment):
    """state = mixed digits of talk, phase, first query, who of the second, second query.

    Attributes:
        table: (TALKS, 13, 13, 2, 4) rewards by talk, both queries and whether the answer is copied.
        about: (TALKS, 13) whether the first passage that a query finds answers the question.
        weights: of the rewards.
    """

    table: Tensor
    about: Tensor
    weights: tuple[float, ...] = (1.0, ALPHA, 0.0, 0.0)

    turns = 6
    actions = 4
    names = ("answer", "intent", "hit", "labelled_hit")
    states = TALKS * 6 * 13 * 5 * 13
    observations = 6 * 2

    def reset(self, chance: Tensor) -> Tensor:
        """Any of the conversations, with nothing asked."""
        return _state((chance * TALKS).long(), SAYS_WHO, NONE, WHO, NONE)

    def observe(self, state: Tensor) -> Tensor:
        """The phase, and whether the first passage of the last result is about the question."""
        talk, phase, first, _, second = _parts(state)
        seen = torch.where(phase == DECIDES, self.about[talk, first], False)
        seen = torch.where(phase == ENDS, self.about[talk, second], seen)
        return phase * 2 + seen

    def legal(self) -> Tensor:
        """Four words for who, three for what; copy, search or guess; in the end copy or guess."""
        allowed = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 1, 0]])
        return allowed.bool().repeat_interleave(2, dim=0)

    def step(self, state: Tensor, action: Tensor, chance: Tensor) -> Step:
        """The next word of a query, or what to do with what was found."""
        talk, phase, first, who, second = _parts(state)
        names, asks = (phase == SAYS_WHO) | (phase == AGAIN_WHO), (phase == SAYS_WHAT) | (phase == AGAIN_WHAT)
        query = who.clamp(max=WHO - 1) * WHAT + action.clamp(max=WHAT - 1)
        who = torch.where(names, action, WHO)
        first, second = torch.where(phase == SAYS_WHAT, query, first), torch.where(phase == AGAIN_WHAT, query, second)
        done = ~names & ~asks & (action != SEARCH)
        paid = self.table[talk, first, second, (action == COPY).long()] * done.unsqueeze(1)
        return Step(_state(talk, (phase + 1).clamp(max=ENDS), first, who, second), paid, done)


def _state(talk: Any, phase: Any, first: Any, who: Any, second: Any) -> Any:
    return (((talk * 6 + phase) * 13 + first) * 5 + who) * 13 + second


def _parts(state: Tensor) -> tuple[Tensor, ...]:
    return state // (6 * 13 * 65), state // (13 * 65) % 6, state // 65 % 13, state // 13 % 5, state % 13


def conversation(intent: Callable[..., Score], seed: int) -> Conversation:
    """Write out every episode there can be, and score it."""
    made, corpus, facts = talks(seed)
    table = torch.zeros(TALKS, 13, 13, 2, 4, dtype=torch.float64)
    about = torch.zeros(TALKS, 13, dtype=torch.bool)
    for number, talk in enumerate(made):
        asked = [talk.query(q) for q in range(NONE)]
        found = [bm25(corpus, query, 3) for query in asked]
        gold = f"{talk.focus} {talk.relation} is "
        about[number, :NONE] = torch.tensor([bool(texts) and texts[0].startswith(gold) for texts in found])
        answer, meant = facts[talk.focus, talk.relation], {"rewrite": f"what is the {talk.relation} of {talk.focus}?"}
        for first, second, copied in product(range(13), range(13), (0, 1)):
            used = [q for q in (first, second) if q != NONE]
            if not used:
                continue
            passages = found[used[-1]]
            copy = passages[0].partition(" is ")[2].partition(".")[0] if passages else ""
            text = written([asked[q] for q in used], [found[q] for q in used], copy if copied else "500 new")
            hit = float(any(passage.startswith(gold) for q in used for passage in found[q]))
            table[number, first, second, copied] = torch.tensor(
                [
                    cost_aware_f1(text, answer, scale=1.0, cost=0.0).value,
                    intent(text, meant).value,
                    hit,
                    hit * talk.labelled,
                ]
            )
    return Conversation(table, about)


def by_hand(intent: Callable[..., Score]) -> Iterator[Check]:
    """Queries by hand, and the credit of what a tool wrote."""
    meant = {"rewrite": "what is the height of anvik?"}
    found = [["anvik height is 300."]] * 2
    good, poor = "height of anvik", "its height"
    f1 = [token_f1(query, meant["rewrite"]).value for query in (good, poor)]
    yield equal("F1 of two queries", f1, [2 * 3 / 8, 2 * 1 / 7])
    yield equal("the better of two queries counts", intent(written([poor, good], found, "300"), meant).value, f1[0])
    yield equal("in any order", intent(written([good, poor], found, "300"), meant).value, f1[0])
    yield equal("no query", intent(written([], [], "300"), meant).value, 0.0)
    shouted = written(["The HEIGHT, of a Anvik!"], found[:1], "300")
    yield equal("case, articles and punctuation", intent(shouted, meant).value, f1[0])
    mask = torch.tensor([[True, False, False, True]])
    dense, values = torch.tensor([[0.0, 5.0, float("nan"), 1.2]]), torch.tensor([[0.5, 9.0, float("nan"), 0.7]])
    end = torch.zeros(1), torch.ones(1, dtype=torch.bool)
    credit = gae(dense, values, mask, *end, gamma=1.0, lam=1.0, whiten=False)
    yield equal("A = R - V, whatever the tool's tokens hold", credit.advantage, [[0.7, 0.0, 0.0, 0.5]])
    yield equal("the critic's target", credit.returns[mask], [1.2, 1.2])


PPO: dict[str, Any] = {
    "credit": {"name": "gae", "gamma": 1.0, "lam": 1.0, "whiten": False},
    "objective": "ppo_clip",
    "updates": 2,
    "terms": [{"name": "value", "coef": 1.0}],
    "critic_lr": 0.05,
    "group_size": 1,
    "groups": 32,
    "steps": 60,
    "lr": 2.0,
    "episodes": 256,
    "measure": 10,
}


def run(intent: Callable[..., Score], seeds: int, first_seed: int = 0) -> Iterator[Check]:
    """The reward by hand; then conversations, under three sums of rewards."""
    yield from by_hand(intent)
    weights = {"with intent": (1, ALPHA, 0, 0), "answer only": (1, 0, 0, 0), "with hit@3": (1, 0, 0, ALPHA)}
    answer, hit, final = ({name: [] for name in weights} for _ in range(3))
    for seed in range(first_seed, first_seed + seeds):
        played = conversation(intent, seed)
        for name, weight in weights.items():
            bed = Episodes(Conversation(played.table, played.about, tuple(map(float, weight))))
            means = bed.train(seeds=1, first_seed=seed, **PPO).means
            answer[name].append(means["answer"].flatten())
            hit[name].append(float(means["hit"].mean()))
            final[name].append(float(means["answer"].mean()))
    curves = {name: torch.stack(lines) for name, lines in answer.items()}
    better = partial(paired, curves=curves, axis="F1 of the answer, every 10 updates")
    yield better("F1 of the answer over training, against the answer alone", final["with intent"], final["answer only"])
    yield paired("hit@3 over training, against the answer alone", hit["with intent"], hit["answer only"])
    yield paired("F1 of the answer, against hit@3 with 30 % unlabelled", final["with intent"], final["with hit@3"])


def mean_query(text: str, metadata: Any, **options: Any) -> Score:
    """The mean over the queries, so that a second one costs something."""
    scores = [intent_f1(QUERY[0] + part, metadata, **options).value for part in text.split(QUERY[0])[1:]]
    return Score(sum(scores) / max(len(scores), 1))


CLAIM = Claim(
    system="chatr1",
    run=run,
    method=intent_f1,
    mutation=Mutation("the mean query counts, and not the best", mean_query),
    recipe="""\
rewards:
  - {name: cost_aware_f1, scale: 1.0, cost: 0.0, label: answer}
  - {name: intent_f1, weight: 0.2}
""",
)
