import itertools

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from guerdon.errors import RecipeError
from guerdon.inference.tree import LanguageSteps, value_beam
from guerdon.policies.language_sampling import LanguageSampling
from guerdon.policies.tiny_lm import TinyLM
from guerdon.tasks.base import Problem, Task


class Digits:
    """Words of three digits, one digit a step, every digit offered."""

    def __init__(self, base=3):
        self.base, self.asked = base, []

    def extend(self, states, count, depth):
        self.asked.append((depth, list(states)))
        return [[(*s, d) for d in range(self.base)][:count] for s in states]

    def ended(self, state):
        return len(state) == 3


def test_the_best_word_is_found_when_the_value_of_prefixes_is_right():
    wanted = (2, 0, 1)
    agree = lambda states: [sum(a == b for a, b in zip(s, wanted, strict=False)) - len(s) for s in states]  # noqa: E731
    found = value_beam((), Digits(), agree, width=2, branch=3)
    assert found[0].state == wanted
    assert found[0].value == 0
    assert len(found) == 2


def test_a_wide_beam_is_an_exhaustive_search():
    table = {s: ((hash(s) * 7919) % 101) for n in (1, 2, 3) for s in itertools.product(range(3), repeat=n)}
    found = value_beam((), Digits(), lambda states: [table[s] for s in states], width=27, branch=3)
    best = sorted(itertools.product(range(3), repeat=3), key=lambda s: -table[s])
    assert [f.value for f in found] == [table[s] for s in best]


def test_at_most_width_go_on_and_the_search_stops_at_max_steps():
    steps = Digits()
    found = value_beam((), steps, lambda states: [s[-1] for s in states], width=2, branch=2, max_steps=2)
    assert [len(states) for _, states in steps.asked] == [1, 2]
    assert [depth for depth, _ in steps.asked] == [0, 1]
    assert all(len(f.state) == 2 for f in found)


def test_an_answer_that_has_ended_stays_and_equal_ones_count_once():
    class Short(Digits):
        def extend(self, states, count, depth):
            return [[(*s, 1), (*s, 1), (*s, 0)] for s in states]

        def ended(self, state):
            return bool(state) and (state[-1] == 1 or len(state) == 3)

    found = value_beam((), Short(), lambda states: [len(s) if s[-1] == 0 else 2.5 for s in states], width=3)
    assert [f.state for f in found] == [(0, 0, 0), (1,), (0, 1)]


def test_wrong_settings_and_values_are_named():
    with pytest.raises(ValueError, match="width is 0"):
        value_beam((), Digits(), lambda s: [0.0] * len(s), width=0)
    with pytest.raises(ValueError, match="value gave 1 numbers for 3 answers"):
        value_beam((), Digits(), lambda s: [0.0])


class Lines(Task):
    kind = "language"

    def train_batch(self, n, seed):
        return [Problem(i, "ab", answer="ba\nab\n") for i in range(n)]

    def eval_problems(self, n):
        return self.train_batch(n, 0)


@pytest.fixture(scope="module")
def policy():
    torch.manual_seed(0)
    return TinyLM(Lines(), width=16, layers=1, heads=2, value_head=True)


def test_language_steps_end_at_the_delimiter_the_end_token_or_the_budget(policy):
    steps = LanguageSteps(policy, "ab", LanguageSampling(max_new_tokens=9), seed=3)
    newline = policy.tokenizer.convert_tokens_to_ids("\n")
    states = [state for several in steps.extend([(), (newline,)], 20, 0) for state in several]
    assert {state[0] for state in states[20:]} == {newline}
    endings = set()
    for state in states:
        assert newline not in state[1:-1]
        assert policy.eos not in state[:-1]
        assert len(state) <= 9
        assert state[-1] in (newline, policy.eos) or len(state) == 9
        assert steps.ended(state) == (state[-1] == policy.eos or len(state) == 9)
        endings.add(state[-1])
    assert {newline, policy.eos} <= endings
    assert steps.extend([()], 4, 0) == steps.extend([()], 4, 0)
    assert steps.extend([()], 4, 0) != steps.extend([()], 4, 1)


def plainly_causal(layer, q, k, v, scale):
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale).transpose(0, 1)


def test_values_are_the_critics_before_the_next_token(policy):
    policy.value.weight.data.normal_()
    steps = LanguageSteps(policy, "ab", LanguageSampling(max_new_tokens=9))
    question = policy.encode_prompt("ab")
    tokens = tuple(policy.tokenizer.convert_tokens_to_ids(list("ba\nb")))

    def alone(state):
        ids = torch.tensor([*question, *state])
        return policy.value(policy.model.hidden(ids, torch.arange(len(ids)), plainly_causal)[-1]).item()

    states = [(), tokens[:1], tokens, (*tokens[:2], policy.eos)]
    expected = [alone(s) for s in [*states[:3], tokens[:2]]]
    assert steps.values(states) == pytest.approx(expected, abs=1e-5)


def test_a_beam_over_the_language_policy(policy):
    steps = LanguageSteps(policy, "ab", LanguageSampling(max_new_tokens=9))
    found = value_beam((), steps, steps.values, width=3, branch=4)
    assert all(steps.ended(f.state) for f in found)
    assert [f.value for f in found] == sorted((f.value for f in found), reverse=True)
    assert isinstance(steps.text(found[0].state), str)


def test_without_a_critic_values_are_refused():
    bare = TinyLM(Lines(), width=16, layers=1, heads=2)
    with pytest.raises(RecipeError, match="value_head: true"):
        LanguageSteps(bare, "ab", LanguageSampling()).values([()])
