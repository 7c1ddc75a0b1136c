import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon.inference.particle import (
    annealing_temperature,
    effective_sample_size,
    particle_filter,
    resample,
    score_log_weight,
)

GOLDEN = torch.tensor([0.9, 0.05, 0.03, 0.02], dtype=torch.float64)
distributions = st.lists(st.floats(-8, 8), min_size=1, max_size=12).map(
    lambda logits: torch.tensor(logits, dtype=torch.float64).softmax(dim=0)
)


class Counting:
    """States are tuples of the numbers of the draws that made them."""

    def __init__(self, length=4):
        self.length, self.calls, self.drawn = length, [], 0

    def extend(self, states, count, depth):
        self.calls.append((depth, list(states)))
        out = []
        for state in states:
            out.append([(*state, self.drawn)])
            self.drawn += 1
        return out

    def ended(self, state):
        return len(state) >= self.length


def flat(states):
    return [0.5] * len(states)


def test_golden_temperatures():
    assert effective_sample_size(GOLDEN).item() == pytest.approx(1.2288, abs=1e-4)
    heat = annealing_temperature(GOLDEN, 0.1)
    assert heat.item() == pytest.approx(2.9297, abs=1e-3)
    again = (GOLDEN.log() / heat).softmax(0)
    assert again.tolist() == pytest.approx([0.511, 0.190, 0.160, 0.139], abs=1e-3)
    assert effective_sample_size(again).item() == pytest.approx(2.93, abs=1e-2)
    assert annealing_temperature(GOLDEN, 0.6).item() == 1.0


@pytest.mark.parametrize("mode", ["ess", "entropy", "base", "none"])
def test_temperature_is_1_where_the_particles_are_even_or_late(mode):
    even = torch.full((3, 4), 0.25, dtype=torch.float64)
    assert annealing_temperature(even, 0.0, mode=mode).tolist() == [1.0] * 3
    assert annealing_temperature(GOLDEN, 0.5, mode=mode).item() == 1.0
    assert annealing_temperature(torch.ones(1, dtype=torch.float64), 0.0, mode=mode).item() == 1.0


def test_entropy_of_two_particles_is_divided_by_log_2():
    p = torch.tensor([0.99, 0.01], dtype=torch.float64)
    h = -(0.99 * math.log(0.99) + 0.01 * math.log(0.01)) / math.log(2)
    assert annealing_temperature(p, 0.25, mode="entropy", threshold=0.6).item() == pytest.approx(
        1 / (h + (1 - h) * 0.25)
    )
    assert annealing_temperature(p, 0.25, mode="base", threshold=0.6).item() == 1.75
    assert annealing_temperature(p, 0.25, mode="entropy").item() == 1.0  # two are never worth less than one


@given(distributions, st.floats(0, 1), st.sampled_from(["ess", "entropy", "base", "none"]))
def test_temperature_is_at_least_1_and_finite_and_blind_to_order(p, u, mode):
    heat = annealing_temperature(p, u, mode=mode)
    assert heat >= 1
    assert heat.isfinite()
    assert annealing_temperature(p.flip(0), u, mode=mode).item() == pytest.approx(heat.item())


@given(st.integers(0, 1000), st.floats(0, 0.999), st.integers(1, 12))
def test_systematic_counts_are_floor_or_ceil(seed, start, count):
    p = torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul(3).softmax(0)
    drawn = resample(p, torch.tensor([start]))
    counts = torch.bincount(drawn, minlength=count)
    assert ((counts - count * p).abs() < 1 + 1e-9).all()


def test_multinomial_follows_its_uniform_numbers():
    p = torch.tensor([[0.5, 0.25, 0.0, 0.25]])
    drawn = resample(p, torch.tensor([[0.0, 0.49, 0.6, 0.9]]), method="multinomial")
    assert drawn.tolist() == [[0, 0, 1, 3]]
    many = resample(GOLDEN.expand(20000, 4), torch.rand(20000, 4), method="multinomial")
    share = torch.bincount(many.flatten(), minlength=4) / many.numel()
    assert share.tolist() == pytest.approx(GOLDEN.tolist(), abs=0.01)


def test_a_particle_of_probability_0_is_never_drawn():
    p = torch.tensor([0.3, 0.7, 0.0])
    almost = torch.tensor([1.0, 0.9999999, 0.0], dtype=torch.float64)
    assert resample(p, almost, method="multinomial").tolist() == [1, 1, 0]
    assert resample(torch.tensor([0.0, 1.0]), torch.tensor([0.0])).tolist() == [1, 1]


def test_wrong_numbers_are_named():
    with pytest.raises(ValueError, match=r"uniform has shape \(4,\), wanted \(1,\)"):
        resample(GOLDEN, torch.rand(4))
    with pytest.raises(ValueError, match="particles is 0"):
        particle_filter([()], Counting(), flat, particles=0)
    with pytest.raises(ValueError, match="score gave 1 numbers for 8"):
        particle_filter([()], Counting(), lambda states: [0.5])


def test_scores_of_0_and_1_have_finite_weights():
    weight = score_log_weight(torch.tensor([0.0, 0.5, 0.8, 1.0]))
    assert weight.tolist() == pytest.approx([-16.118, 0.0, math.log(4), 16.118], abs=1e-3)


def test_every_step_extends_all_particles_of_all_starts_in_one_call():
    steps = Counting()
    found = particle_filter([(), ()], steps, flat, particles=3, max_steps=10)
    assert [depth for depth, _ in steps.calls] == [0, 1, 2, 3]
    assert all(len(states) == 6 for _, states in steps.calls)
    assert [len(each.found) for each in found] == [3, 3]
    assert all(len(f.state) == 4 for each in found for f in each.found)
    assert len(found[0].steps) == 3  # nothing is resampled after the last step


def test_a_certain_particle_takes_over_and_its_weight_is_of_the_present_step():
    """The first particle scores high at the first step; at the second all are alike, so nothing is multiplied up."""
    steps = Counting(3)
    score = lambda states: [1.0 if len(s) == 1 and s[0] == 0 else 0.5 for s in states]  # noqa: E731
    [found] = particle_filter([()], steps, score, particles=4, annealing="none")
    assert {f.state[0] for f in found.found} == {0}
    assert [s.survivors for s in found.steps] == [1, 4]
    assert found.steps[1].ess == pytest.approx(4.0)
    [mild] = particle_filter([()], Counting(3), score, particles=4, max_steps=10)
    assert mild.steps[0].temperature == pytest.approx(4 * 0.9, abs=1e-4)


def test_ended_particles_keep_their_score_and_are_resampled():
    class Short(Counting):
        def ended(self, state):
            return bool(state) and (state[0] == 0 or len(state) == 3)

    steps = Short()
    [found] = particle_filter([()], steps, lambda states: [0.9 if s == (0,) else 0.1 for s in states], particles=2)
    assert found.found[0] == ((0,), 0.9)
    assert all(state != (0,) for _, states in steps.calls for state in states)


def test_a_start_that_is_done_is_left_alone_while_others_go_on():
    class Mixed(Counting):
        def ended(self, state):
            return len(state) > 1 and (state[0] == "a" or len(state) == 4)

    found = particle_filter([("a",), ("b",)], Mixed(), flat, particles=2, max_steps=8)
    assert [len(each.steps) for each in found] == [0, 2]
    assert [len(f.state) for f in found[0].found] == [2, 2]


def test_states_are_not_shared_by_descendants():
    class Lists:
        def extend(self, states, count, depth):
            for state in states:
                state.append(depth)
            return [[state] for state in states]

        def ended(self, state):
            return len(state) == 3

    start = []
    [found] = particle_filter([start], Lists(), lambda s: [0.99, *[0.01] * (len(s) - 1)], particles=3, annealing="none")
    assert start == []
    assert [f.state for f in found.found] == [[0, 1, 2]] * 3
    assert len({id(f.state) for f in found.found}) == 3


def test_looking_ahead_resamples_by_the_product_and_divides_afterwards():
    """What is peeked at turns the choice: the particle that is best now has no future."""

    class Future(Counting):
        def extend(self, states, count, depth):
            self.calls.append((depth, list(states)))
            if states[0] == ():
                return [[(i,)] for i in range(len(states))]
            return [[(*s, "good" if s[0] == 1 else "bad")] for s in states]

        def ended(self, state):
            return len(state) == 3

    def score(states):
        return [(0.99 if s[0] == 0 else 0.5) if len(s) == 1 else (0.999 if s[-1] == "good" else 0.001) for s in states]

    steps = Future()
    [found] = particle_filter([()], steps, score, particles=2, annealing="none", lookahead=True)
    assert {f.state[0] for f in found.found} == {1}
    assert [depth for depth, _ in steps.calls] == [0, -1, 1, -2, 2]
    # Both descend from the one that was peeked at with .999, and both are divided by it.
    assert found.steps[1].ess == pytest.approx(2.0)
    [plain] = particle_filter([()], Future(), score, particles=2, annealing="none")
    assert {f.state[0] for f in plain.found} == {0}


def test_the_next_weight_is_divided_by_what_was_peeked_at():
    class Pair(Counting):
        def extend(self, states, count, depth):
            return [[(*s, i if s == () else s[0])] for i, s in enumerate(states)]

    ahead = iter([[0.5, 0.5], [0.6, 0.55], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])
    [found] = particle_filter([()], Pair(3), lambda s: next(ahead), particles=2, annealing="none", lookahead=True)
    assert found.steps[0].survivors == 2
    odds = torch.tensor([0.4 / 0.6, 0.45 / 0.55])
    assert found.steps[1].ess == pytest.approx(effective_sample_size(odds / odds.sum()).item())


def test_a_kept_particle_survives_weights_that_speak_against_it():
    steps = Counting(3)

    def score(states):
        late = len(steps.calls) > 3
        return [0.999999 if late else 0.5 if s[0] == 0 else 1e-6 for s in states]

    [found] = particle_filter([()], steps, score, particles=2, max_steps=3, annealing="none", sweeps=2)
    assert sorted(f.state[0] == 0 for f in found.found) == [False, True]
    assert [step.survivors for step in found.steps] == [2, 2]
    assert found.found[-1] == ((0, *found.found[-1].state[1:]), 0.5)


def test_a_further_sweep_keeps_one_particle_with_its_steps():
    steps = Counting(3)
    first = lambda states: [0.999999 if s[0] == 0 else 1e-6 for s in states]  # noqa: E731
    [found] = particle_filter([()], steps, first, particles=3, max_steps=3, annealing="none", sweeps=2)
    # In the second sweep nobody else can have drawn number 0 first.
    assert {f.state[0] for f in found.found} == {0}
    assert steps.calls[3][1] == [(), ()]
    assert [depth for depth, _ in steps.calls] == [0, 1, 2, 3, 4, 5]


@given(st.integers(0, 100), st.integers(1, 5))
def test_the_same_seed_gives_the_same_particles(seed, particles):
    score = lambda states: [0.2 + 0.1 * (s[-1] % 7) for s in states]  # noqa: E731
    one, two = (
        particle_filter([(), ()], Counting(), score, particles=particles, seed=seed, resampling="multinomial")
        for _ in range(2)
    )
    assert one == two
