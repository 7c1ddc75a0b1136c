"""Learned together from scratch, searching and reasoning are each judged by what the other spoils. So reasoning is
learned first, with the right source given, then searching, with the reasoning there is, then both together.

A question has one right source out of eight, the content of a source decides which of eight rules holds, and the answer
earns 1 only if source and rule are right: one time in 64 at first. One network with shared weights makes both choices.
All stages learn from the answer alone; they differ in what is given and in which of the two segments is trained. The
gain needs that: where searches earn a reward of their own from the start (2.5 for the right source), training both
together comes as far as the stages (0.96 and 0.95 on seeds 100 to 109).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from guerdon.claims.core import Check, Claim, Mutation, above, equal, every_seed, paired
from guerdon.claims.testbeds.searching import SEGMENTS, gradient_of, searched_rows
from guerdon.claims.testbeds.sequences import Adam, Networks, Writing
from guerdon.credit.group import grpo
from guerdon.objectives.policy import ppo_clip
from guerdon.rewards.evidence import evidence_found
from guerdon.rewards.process import DOCUMENTS, QUERY
from guerdon.rewards.reasoning_graph import GraphMatch, GraphReasoning, match_graphs
from guerdon.seeding import torch_generator
from guerdon.shaping.stages import OTHER, Stage, Stages, Until, mark_segments

TOPICS, CHOICES, GROUP = 8, 8, 4
NETWORKS = 16  # of a seed, whose mean counts: one topic that is lost is an eighth of a network's success
UPDATES, LR = 90, 1e-2
TOPIC = torch.arange(TOPICS)
SOURCE = (3 * TOPIC + 1) % CHOICES  # the right one of each topic
CONTENT = torch.stack([torch.randperm(CHOICES, generator=torch_generator(t, "content")) for t in range(TOPICS)])
RULE = torch.randperm(CHOICES, generator=torch_generator(0, "rule"))  # that holds for each content
TEXT = ["[source]", "rule"]  # what the two actions are parts of
GIVEN = "given"  # the stage in which the right source is there already


class Parts(NamedTuple):
    """How graphs are compared, and how actions are told apart."""

    match: Callable[..., GraphMatch]
    segments: Callable[..., dict[str, Tensor]]


def observe(prompt: Tensor, tokens: Tensor) -> Tensor:
    """The topic before the source is chosen, and its content before the rule is."""
    topic = one_hot(prompt[..., 0], TOPICS)
    content = one_hot(CONTENT[prompt[..., 0], tokens[..., 0]], CHOICES)
    before = torch.cat([topic, torch.zeros_like(content)], dim=-1)
    after = torch.cat([torch.zeros_like(topic), content], dim=-1)
    return torch.stack([before, after, torch.zeros_like(after)], dim=-2).float()


def written(content: int, rule: int) -> str:
    """A thought that searches, and its answer."""
    search = f"{'case'.join(QUERY)}{f'content{content}'.join(DOCUMENTS)}"
    return (
        f"<think>{search}\ncontent{content} -> calls for -> rule{rule}\nfor that is what it says there</think>"
        f"<answer>rule{rule} for content{content}</answer>"
    )


def table() -> Tensor:
    """(TOPICS, CHOICES, CHOICES) what the registered reward gives the answer to each topic, by source and rule."""
    reward = GraphReasoning(weight=0.0, penalty=0.0)
    values = torch.zeros(TOPICS, CHOICES, CHOICES)
    for topic in range(TOPICS):
        right = int(CONTENT[topic, SOURCE[topic]])
        answer = f"rule{int(RULE[right])} for content{right}"
        graphs = {"graphs": [{"triples": [[f"content{right}", "calls for", f"rule{int(RULE[right])}"]], "text": ""}]}
        for source in range(CHOICES):
            for rule in range(CHOICES):
                text = written(int(CONTENT[topic, source]), rule)
                values[topic, source, rule] = reward(text, answer, graphs, "case?").value
    return values


def train(parts: Parts, stages: Sequence[Stage], seeds: int, first_seed: int = 0) -> Tensor:
    """Train some networks per seed; return (UPDATES, S, 3): their success, and the chance of each right choice."""
    names = range(NETWORKS * first_seed, NETWORKS * (first_seed + seeds))
    networks = Networks(Writing(CHOICES, 2, TOPICS + CHOICES, observe), names)
    optimizer, generators = Adam(networks, LR), [torch_generator(seed, "med_r3") for seed in names]
    values, control = table(), Stages(stages)
    topic = TOPIC.repeat_interleave(GROUP).expand(len(names), -1)
    prompt = topic.unsqueeze(-1)
    group = (torch.arange(len(names)).unsqueeze(1) * TOPICS + topic).flatten()
    acted = torch.ones(len(group), 2, dtype=torch.bool)
    marks = {name: x.expand_as(acted) for name, x in parts.segments([TEXT], acted[:1], SEGMENTS).items()}
    history = []
    for _ in range(UPDATES):
        stage = control.current
        tokens = choose(networks, prompt, generators, given=stage.name == GIVEN)
        reward = values[topic, tokens[..., 0], tokens[..., 1]].flatten()
        trained = acted if stage.train is None else torch.stack([marks[name] for name in stage.train]).any(dim=0)
        logp = networks.read(prompt, tokens).logp.flatten(0, 1)
        loss, _ = ppo_clip(logp, logp.detach(), grpo(reward, group, trained), trained)
        optimizer.step(loss * len(names))
        control.update({})
        history.append(chances(networks))
    return torch.stack(history).unflatten(1, (seeds, NETWORKS)).mean(dim=2)


@torch.no_grad()
def choose(networks: Networks, prompt: Tensor, generators: Sequence[torch.Generator], *, given: bool) -> Tensor:
    """(S,B,2) a source and a rule for every prompt; the right source where it is given."""
    tokens = torch.zeros(*prompt.shape[:2], 2, dtype=torch.int64)
    for place in range(2):
        draws = torch.stack([torch.rand(prompt.shape[1], 1, generator=g) for g in generators])
        edges = networks.read(prompt, tokens).log_probs[:, :, place].exp().cumsum(dim=-1)
        tokens[..., place] = torch.searchsorted(edges, draws).squeeze(-1).clamp(max=CHOICES - 1)
        if given and place == 0:
            tokens[..., 0] = SOURCE[prompt[..., 0]]
    return tokens


@torch.no_grad()
def chances(networks: Networks) -> Tensor:
    """(S,3) chance that both choices are right, that the source is, and that the rule is behind the right source."""
    prompt = TOPIC.view(1, -1, 1).expand(len(networks.seeds), -1, -1)
    right = torch.stack([SOURCE, RULE[CONTENT[TOPIC, SOURCE]]], dim=-1).expand(len(networks.seeds), -1, -1)
    each = networks.read(prompt, right).logp.exp()
    return torch.cat([each.prod(dim=-1, keepdim=True), each], dim=-1).mean(dim=1)


def edges(text: str) -> list[tuple[str, str, str]]:
    """Triples of letters: ``a1b`` leads from a to b by 1."""
    return [(word[0], word[1], word[2]) for word in text.split()]


def exact(method: Parts) -> Iterator[Check]:
    """Graphs, rewards and masks by hand."""
    match = method.match(edges("a1b b2c"), edges("a1b"), semantic=1.0)
    yield equal(
        "logic, entities and score of a -> b -> c against a -> b", [*match[::2], match.score], [0.5, 2 / 3, 13 / 18]
    )
    branching = method.match(edges("a1b b2c b3d"), edges("a1b b2c"), semantic=1.0)
    yield equal("logic where the second hop branches", branching.logic, 2 / 3)
    meeting = method.match(edges("a1b a2c b3d c4d d5e"), edges("a1b b3d d5e"), semantic=1.0)
    yield equal("logic where two paths meet and go on", meeting.logic, 1 / 2)
    yield equal(
        "a cycle beside itself", method.match(edges("a1b b2c c3a"), edges("a1b b2c c3a"), semantic=1.0).score, 1.0
    )

    graphs = {"graphs": [{"triples": [["a", "1", "b"]], "text": ""}]}

    def scored(thought: str, answer: str, **options: Any) -> float:
        reward = GraphReasoning(similarity=lambda a, b: 1.0 if "->" in a else 0.0, **options)
        return reward(f"<think>{thought}</think><answer>{answer}</answer>", "b", graphs, "who?").value

    yield equal("right answer, the graph above", scored("a -> 1 -> b\nb -> 2 -> c", "b"), 1 + 0.8 * 13 / 18)
    perfect, rough = "a -> 1 -> b", "nothing of the kind"
    seen = [scored(perfect, "z"), scored(rough, "b or so"), scored(perfect, "z", gate=True)]
    yield equal("wrong with a perfect graph, roughly right without, and the former gated", seen, [0.8, 0.4, 0.0])
    known = {"relevant": ["trial 7", "guideline 2"], "levels": {"guideline 2": 1.0, "trial 7": 0.6}}
    found = f"{'q'.join(QUERY)}{'trial 7'.join(DOCUMENTS)}"
    yield equal(
        "one of two relevant documents found, a trial", evidence_found(found, known).value, 0.5 + 0.6 + 1.0 - 0.05
    )
    again = f"{found}{'r'.join(QUERY)}{'trial 7'.join(DOCUMENTS)}"
    yield equal("found again by another query", evidence_found(again, known).value, 0.5 + 0.6 + 0.5 - 0.1)

    rows = searched_rows()
    marks = method.segments(rows.token_text, rows.rollouts.mask, SEGMENTS)
    gradient = gradient_of(rows, rows.rollouts.mask & marks["query"])
    queries = mark_segments(rows.token_text, rows.rollouts.mask, SEGMENTS)["query"]
    yield above("actions of queries in rows of a small model", float(queries.sum()), 100)
    yield equal("gradient by everything else, where queries are trained", gradient[~queries].abs().amax(), 0.0, tol=0.0)
    yield above("the same by the queries", gradient[queries].abs().amin(), 0.0)


def run(method: Parts, seeds: int) -> Iterator[Check]:
    """Exact checks, then stages against training both together from scratch, for as many updates."""
    yield from exact(method)

    def staged(*shares: int) -> Tensor:
        plan = [
            Stage(GIVEN, train=[OTHER], until=Until(steps=shares[0])),
            Stage("searching", train=["query"], until=Until(steps=shares[1])),
            Stage("both"),
        ]
        return train(method, plan, seeds)

    three, two = staged(UPDATES // 3, UPDATES // 3), staged(UPDATES // 2, UPDATES // 2)
    joint = train(method, [Stage("both")], seeds)
    success = three[-1, :, 0]
    yield every_seed("success after three stages", success, above=0.9, share=0.8)
    yield paired(
        "success, three stages against both from scratch",
        success,
        joint[-1, :, 0],
        curves={"three stages": three[..., 0].T, "two stages": two[..., 0].T, "from scratch": joint[..., 0].T},
        axis="chance that source and rule are right, by update",
    )
    yield paired("success, three stages against the first two for as long", success, two[-1, :, 0], margin=-0.01)
    kept = three[2 * UPDATES // 3 - 1, :, 2] - three[UPDATES // 3 - 1, :, 2]
    yield every_seed(
        "reasoning gained or lost while only searching is trained, the right source given", kept, above=-0.1
    )


def one_edge_per_node(
    triples: Sequence[Sequence[str]], reference: Sequence[Sequence[str]], *, semantic: float = 1.0
) -> GraphMatch:
    """A search that follows one edge of every node."""
    cut = [list({triple[0]: triple for triple in graph}.values()) for graph in (triples, reference)]
    return match_graphs(cut[0], cut[1], semantic=semantic)


def everything(
    token_text: Sequence[Sequence[str]], mask: Tensor, segments: Mapping[str, Sequence[str]]
) -> dict[str, Tensor]:
    """No segment is told from another."""
    return {name: mask.clone() for name in [*segments, OTHER]}


CLAIM = Claim(
    system="med-r3",
    run=run,
    method=Parts(match_graphs, mark_segments),
    mutation=Mutation(
        "paths follow one edge of every entity, and every stage trains everything", Parts(one_edge_per_node, everything)
    ),
    recipe="""
task: {name: graph_qa, hops: [1, 2], entities: 20, relations: [b, f, r], shallow: 0.5}
sampling: {prompts: 16, group_size: 8, max_new_tokens: 300, tool: {name: task, max_calls: 4}}
segments: {query: ["<|begin_of_query|>", "<|end_of_query|>"]}
rewards:
  - {name: graph_reasoning, gate: true, label: reasoning}
  - {name: retrieval_bonus, label: searching, weight: 0}
stages:
  - {name: reason, train: [other], until: {steps: 100}}
  - {name: retrieve, train: [query], rewards: {searching: {weight: 1}}, until: {steps: 100}, fresh: [optimizer]}
  - {name: both, rewards: {searching: {weight: 0.2}}, fresh: [optimizer]}
terms: [{name: kl, beta: 0.05}]
evaluation: {every: 50, problems: 32}
""",
    seeds=5,
)
