from types import SimpleNamespace

import pytest
import torch

from guerdon.registry import get
from guerdon.sampling.thought_buffer import CorrectedThoughts, ThoughtBuffer, repetition
from guerdon.tasks.base import Problem, Starts


def test_repetition_is_the_share_of_repeated_ngrams():
    assert repetition("a b c d", 2) == 0
    assert repetition("a b a b a", 2) == pytest.approx(0.5)
    assert repetition("a a a a", 3) == pytest.approx(0.5)
    assert repetition("a", 3) == 0


@pytest.mark.parametrize(
    ("thought", "action", "why"),
    [
        ("I see a 3", "say 4", ""),
        ("so I say 4 then", "say 4", "action"),
        ("so I say 41 then", "say 4", ""),
        ("the digit 4", "", ""),
        ("", "say 4", "form"),
        ("  \n", "say 4", "form"),
        ("on and on and on and on and on and on", "say 4", "repetition"),
        ("costs (a+b)", "(a+b)", "action"),
    ],
)
def test_pairs_are_filtered(thought, action, why):
    buffer = ThoughtBuffer()
    assert buffer.flaw(thought, action) == why
    assert buffer.add(["o"], [thought], [action]) == (not why)
    assert dict(buffer.refused) == ({why: 1} if why else {})


def test_the_form_is_matched_as_a_whole_and_missing_ones_are_counted():
    buffer = ThoughtBuffer(form=r"I see .*")
    assert buffer.add(["o"] * 3, ["I see it", "well, I see it", None], ["x"] * 3) == 1
    assert buffer.refused == {"form": 1, "missing": 1}


def test_observations_that_come_often_weigh_no_more():
    buffer = ThoughtBuffer(per_observation=3)
    buffer.add(["early"] * 99, [f"t{i}" for i in range(99)], [""] * 99)
    buffer.add(["late"], ["only"], [""])
    assert buffer.known == {"early": ["t96", "t97", "t98"], "late": ["only"]}
    drawn = buffer.draw(20_000, 0)
    assert sum(o == "late" for o, _ in drawn) / 20_000 == pytest.approx(0.5, abs=0.02)
    assert sum(h == "t97" for _, h in drawn) / 20_000 == pytest.approx(1 / 6, abs=0.02)
    assert buffer.draw(5, 3) == buffer.draw(5, 3)
    assert ThoughtBuffer().draw(5, 0) == []


def test_what_a_corrector_mostly_says_stays_the_majority():
    buffer = ThoughtBuffer(per_observation=10)
    buffer.add(["o"] * 10, ["right"] * 8 + ["wrong", "odd"], [""] * 10)
    drawn = buffer.draw(5000, 1)
    assert sum(h == "right" for _, h in drawn) / 5000 == pytest.approx(0.8, abs=0.03)


def test_the_oldest_observations_go_first_and_memory_is_restored():
    buffer = ThoughtBuffer(capacity=2)
    buffer.add(["a", "b", "a", "c"], ["1", "2", "3", "4"], [""] * 4)
    assert list(buffer.known) == ["a", "c"]
    assert len(buffer) == 3
    other = ThoughtBuffer(capacity=2)
    other.load_state_dict(buffer.state_dict())
    assert other.known == buffer.known
    assert other.draw(9, 1) == buffer.draw(9, 1)


class Scribe:
    """Stands for a policy: tokens are characters, and what it is asked to replay is kept."""

    def encode(self, text):
        return [ord(c) for c in text]

    def replay(self, starts, actions, options):
        self.seen = [(p.prompt, "".join(map(chr, a))) for p, a in zip(starts.problems, actions, strict=True)]
        self.groups = starts.group
        return self.seen


def test_the_source_corrects_the_batch_and_replays_thoughts_alone():
    asked = []

    def corrector(prompts, texts):
        asked.append((list(prompts), list(texts)))
        return [f"it is {prompt}" if prompt != "two" else None for prompt in prompts]

    source = CorrectedThoughts(corrector=corrector, rows=6)
    assert (source.when, source.external) == ("credit", True)
    problems = [Problem(1, "one"), Problem(2, "two"), Problem(3, "it is")]
    starts = Starts(problems, torch.tensor([4, 5, 6]))
    text = ["<think>hm</think>go", "<think>hm</think> stay", "<think>x</think>it is it is"]
    rollouts = SimpleNamespace(group=torch.tensor([4, 5, 6]), text=text)
    policy = Scribe()
    draw = SimpleNamespace(rollouts=rollouts, starts=starts, policy=policy, sampling=None, seed=0, step=0)
    source.draw(draw)
    assert asked == [(["one", "two", "it is"], text)]
    assert policy.seen == [("one", "<think>it is one</think>")] * 6
    assert policy.groups.tolist() == [7, 8, 9, 10, 11, 12]
    assert source.buffer.refused == {"missing": 1, "action": 1}
    again = CorrectedThoughts(corrector=corrector)
    again.load_state_dict(source.state_dict())
    assert again.buffer.known == source.buffer.known
    empty = CorrectedThoughts(corrector=lambda prompts, texts: [None] * len(prompts))
    assert empty.draw(draw) is None


def test_it_is_registered():
    assert get("source", "thought_buffer").target is CorrectedThoughts
