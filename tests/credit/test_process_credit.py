import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon import registry
from guerdon.credit.group import grpo, rloo
from guerdon.credit.process import min_form, min_form_rewards, process_advantage, steps_of, thought_level
from guerdon.errors import RecipeError

quick = settings(derandomize=True, deadline=None, max_examples=60)
SCORE = st.floats(-1, 1).filter(lambda x: abs(x) > 1e-3)
ANSWER = st.tuples(
    st.integers(0, 2),  # group
    st.sampled_from([0.0, 1.0]),  # outcome
    st.lists(st.tuples(st.integers(1, 3), SCORE), max_size=3),  # steps: actions, score
    st.integers(0, 2),  # actions behind the last step
)
ANSWERS = st.lists(ANSWER, min_size=1, max_size=8)


def fields(answers, *, weight=1.0, width=0, garbage=0.0):
    """What a recipe with a per-action reward and an outcome gives a credit."""
    lengths = [sum(n for n, _ in steps) + rest for _, _, steps, rest in answers]
    width = max([1, width, *lengths])
    dense = torch.full((len(answers), width), garbage, dtype=torch.float64)
    mask = torch.zeros(len(answers), width, dtype=torch.bool)
    outcome = torch.tensor([o for _, o, _, _ in answers], dtype=torch.float64)
    for i, (_, o, steps, _) in enumerate(answers):
        mask[i, : lengths[i]] = True
        dense[i, : lengths[i]] = 0.0
        at = 0
        for n, score in steps:
            at += n
            dense[i, at - 1] = score
        if lengths[i]:
            dense[i, lengths[i] - 1] += weight * o
    process = torch.tensor([sum(s for _, s in steps) for _, _, steps, _ in answers], dtype=torch.float64)
    return {
        "dense": dense,
        "group": torch.tensor([9 - g for g, _, _, _ in answers]),
        "mask": mask,
        "components": torch.stack([process, outcome], dim=1),
        "component_names": ("steps", "right"),
        "component_weights": torch.tensor([1.0, weight], dtype=torch.float64),
    }


def softmin(scores, temperature):
    cost = [math.exp(-s / temperature) for s in scores]
    return [s * c / sum(cost) for s, c in zip(scores, cost, strict=True)]


def min_form_by_hand(answers, temperature, baseline):
    """The credit of each action, from lists of steps."""
    rewards = [softmin([s for _, s in steps], temperature) for _, _, steps, _ in answers]
    sizes = [[n if baseline == "token" else 1 for n, _ in steps] for _, _, steps, _ in answers]
    out = []
    for i, (group, outcome, steps, rest) in enumerate(answers):
        others = [j for j, a in enumerate(answers) if a[0] == group and j != i]
        above = outcome - sum(answers[j][1] for j in others) / len(others) if others else 0.0
        length = sum(sum(sizes[j]) for j in others)
        unit = sum(sum(rewards[j]) for j in others) / length if length else 0.0
        mine = []
        for k, (n, _) in enumerate(steps):
            to_come = sum(r - unit * size for r, size in zip(rewards[i][k:], sizes[i][k:], strict=True))
            mine += [(to_come if others else 0.0) + above] * n
        out.append(mine + [above] * rest)
    return out


def at_actions(x, mask):
    return [row[keep].tolist() for row, keep in zip(x, mask, strict=True)]


def close(seen, wanted):
    for got, want in zip(seen, wanted, strict=True):
        assert got == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize(
    ("scores", "returns"), [((0.8, -0.6, 0.9), (-0.6, -0.6, 0.0)), ((0.8, 0.7, 0.9), (0.7425, 0.5467, 0.0810))]
)
def test_returns_by_the_published_numbers(scores, returns):
    rewards = min_form_rewards(torch.tensor([scores], dtype=torch.float64), torch.ones(1, 3).bool())
    assert rewards.flip(1).cumsum(1).flip(1)[0].tolist() == pytest.approx(returns, abs=1e-4)


def test_weights_by_the_published_numbers():
    score = torch.tensor([[0.8, 0.7, 0.9]], dtype=torch.float64)
    weights = min_form_rewards(score, torch.ones(1, 3).bool()) / score
    assert weights[0].tolist() == pytest.approx([0.2447, 0.6652, 0.0900], abs=1e-4)


@given(st.integers(0, 999), st.sampled_from([0.01, 0.1, 1.0]))
def test_the_sum_from_any_step_to_the_worst_is_within_the_scores(seed, temperature):
    g = torch.Generator().manual_seed(seed)
    score, ends = 2 * torch.rand(5, 6, generator=g).double() - 1, torch.rand(5, 6, generator=g) < 0.6
    rewards = min_form_rewards(score.masked_fill(~ends, float("nan")), ends, temperature=temperature)
    assert (rewards[~ends] == 0).all()
    for row, keep, given_row in zip(rewards, ends, score, strict=True):
        if keep.any():
            assert given_row[keep].min() - 1e-9 <= row.sum() <= given_row[keep].max() + 1e-9
    sharp = min_form_rewards(score, ends, temperature=1e-4).sum(dim=1)
    least = torch.where(ends, score, float("inf")).amin(dim=1)
    assert torch.allclose(sharp, torch.where(ends.any(dim=1), least, 0.0), atol=1e-3)


@quick
@given(ANSWERS, st.sampled_from(["token", "step"]), st.sampled_from([0.1, 1.0]), st.sampled_from([1.0, 0.5]))
def test_min_form_is_what_lists_of_steps_say(answers, baseline, temperature, weight):
    given_fields = fields(answers, weight=weight)
    credit, stats = min_form(**given_fields, temperature=temperature, baseline=baseline, outcome="right")
    close(at_actions(credit, given_fields["mask"]), min_form_by_hand(answers, temperature, baseline))
    assert stats["steps"] == pytest.approx(sum(len(s) for _, _, s, _ in answers) / len(answers))


@quick
@given(ANSWERS, st.sampled_from([float("nan"), float("inf"), -3.0]), st.integers(0, 99))
def test_padding_garbage_and_order_do_not_matter(answers, garbage, seed):
    order = torch.randperm(len(answers), generator=torch.Generator().manual_seed(seed)).tolist()
    plain, wide = fields(answers), fields([answers[i] for i in order], width=12, garbage=garbage)
    for method in (min_form, thought_level):
        credit, spread = method(**plain, outcome="right")[0], method(**wide, outcome="right")[0]
        assert (spread[~wide["mask"]] == 0).all()
        close(at_actions(spread, wide["mask"]), [at_actions(credit, plain["mask"])[i] for i in order])


def test_an_outcome_at_the_end_of_a_step_is_told_from_its_score():
    given_fields = fields([(0, 1.0, [(2, 0.3), (1, -0.4)], 0), (0, 0.0, [(1, 0.3)], 2)], weight=3.0)
    names = {key: given_fields[key] for key in ("components", "component_names", "component_weights")}
    steps = steps_of(given_fields["dense"], given_fields["mask"], **names, outcome="right")
    assert torch.allclose(steps.score, torch.tensor([[0.0, 0.3, -0.4], [0.3, 0.0, 0.0]]).double())
    assert steps.ends.tolist() == [[False, True, True], [True, False, False]]
    assert steps.outcome.tolist() == [1.0, 0.0]
    assert steps.actions(given_fields["mask"]).tolist() == [[0, 2, 1], [1, 0, 0]]


def test_an_outcome_that_does_not_apply_counts_as_0():
    given_fields = fields([(0, 0.0, [(1, 0.3)], 1), (0, 0.0, [(2, -0.4)], 0)])
    plain = min_form(**given_fields, outcome="right")[0]
    given_fields["components"][0, 1] = float("nan")
    assert torch.equal(min_form(**given_fields, outcome="right")[0], plain)


def test_rounding_makes_no_step():
    dense = torch.tensor([[0.0, 0.7 * 3 - 2.1 + 1.7]], dtype=torch.float32)
    dense[0, 1] += 1e-6
    components = torch.tensor([[1.7]])
    steps = steps_of(dense, torch.ones(1, 2).bool(), components, ["right"], outcome="right")
    assert not steps.ends.any()


def test_outcomes_alone_are_rloo():
    answers = [(0, 1.0, [], 3), (0, 0.0, [], 1), (0, 0.0, [], 2), (1, 1.0, [], 1)]
    given_fields = fields(answers)
    credit, stats = min_form(**given_fields, outcome="right")
    wanted = rloo(given_fields["components"][:, 1], given_fields["group"], given_fields["mask"])
    assert torch.allclose(credit, wanted)
    assert stats == {"steps": 0.0, "worst": 0.0}
    assert torch.allclose(min_form(**given_fields, outcome="right", outcome_weight=0.5)[0], 0.5 * wanted)


def test_outcomes_from_minus_one_to_zero_are_those_from_zero_to_one():
    given_fields = fields([(0, 1.0, [(2, 0.3)], 0), (0, 0.0, [(1, -0.4)], 0)])
    shifted = fields([(0, 0.0, [(2, 0.3)], 0), (0, -1.0, [(1, -0.4)], 0)])
    assert torch.allclose(min_form(**given_fields, outcome="right")[0], min_form(**shifted, outcome="right")[0])


def test_an_answer_without_steps_counts_as_the_worst_if_asked():
    given_fields = fields([(0, 0.0, [], 3), (0, 0.0, [(2, 0.5), (1, 0.4)], 0)])
    unchecked, checked = (min_form(**given_fields, outcome="right", least_steps=n)[0] for n in (0, 1))
    assert unchecked[0].tolist() == [0.0, 0.0, 0.0]
    worst = sum(softmin([0.5, 0.4], 0.1))
    assert checked[0].tolist() == pytest.approx([-1.0 - worst] * 3)
    assert checked[1, 0] == pytest.approx(worst + 1.0)


def test_ends_of_steps_may_go_without_credit():
    given_fields = fields([(0, 1.0, [(2, 0.5), (1, 0.4)], 0), (0, 0.0, [(2, -0.3)], 0)])
    plain, skipping = (min_form(**given_fields, outcome="right", skip_ends=skip)[0] for skip in (False, True))
    assert torch.equal(skipping[:, 0], plain[:, 0])
    assert skipping[0, 1:].tolist() == [1.0, 1.0]
    assert skipping[1, 1] == -1.0


def test_the_baseline_per_step_favours_long_steps():
    """Two answers with the same scores, one with twice as many actions per step."""
    given_fields = fields([(0, 0.0, [(1, 0.5), (1, 0.5)], 0), (0, 0.0, [(2, 0.5), (2, 0.5)], 0)])
    credit = {b: min_form(**given_fields, outcome="right", baseline=b)[0][:, 0] for b in ("token", "step")}
    assert credit["step"].tolist() == pytest.approx([0.0, 0.0])
    assert credit["token"][0] > 0 > credit["token"][1]


def test_gradients_are_finite_through_the_softmin():
    score = torch.tensor([[0.5, -0.5, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    ends = torch.tensor([[True, True, False], [False, False, False]])
    min_form_rewards(score, ends).sum().backward()
    assert torch.isfinite(score.grad).all()


def labelled(labels, outcome, rest=0, group=0):
    return (group, outcome, [(1, float(label)) for label in labels], rest)


def thoughts(answers, **options):
    given_fields = fields(answers)
    return at_actions(thought_level(**given_fields, outcome="right", **options)[0], given_fields["mask"])


def test_thoughts_by_the_published_numbers():
    """Right and wrong with -1 and 1 give v = 1 for the population's deviation; half are right, so r_c is 0.5."""
    right, wrong = labelled([1, 1, -1, -1, -1, 1], 1.0), labelled([1, -1], -1.0)
    out = thoughts([right, wrong], eps=0.0, ddof=0)
    assert out[0] == pytest.approx([1.0, 1.0, 0.5, 0.5, 0.5, 1.0])
    assert out[1] == pytest.approx([0.0, -1.0])


def test_adding_up_labels_would_distort_the_credit():
    """Cumulative scores of 1 and -1 give the first right steps less than the last one; thoughts don't."""
    labels = torch.tensor([[1.0, 1, -1, -1, -1, 1]])
    summed = labels.flip(1).cumsum(1).flip(1)
    assert summed[0, 0] < summed[0, -1]
    assert summed[0].tolist() == [0.0, -1.0, -2.0, -1.0, 0.0, 1.0]


@given(st.lists(st.sampled_from([1, -1]), min_size=1, max_size=6), st.floats(0.1, 1.0))
def test_the_closed_form_is_the_cumulative_one(labels, alpha):
    """Thoughts earn r_c or -r_c at their ends, whatever makes the sum to come right; the last one the outcome."""
    right, wrong = labelled(labels, 1.0, rest=1), labelled([], 0.0, rest=1)
    seen = thoughts([right, wrong], eps=0.0, ddof=0, alpha=alpha)[0]
    merged = [x for i, x in enumerate([*labels, 1]) if i == 0 or x != [*labels, 1][i - 1]]
    penalty, earned = alpha / 2, [0.0] * len(merged)
    earned[-1] = 1.0
    for k in range(len(merged) - 1):
        earned[k] = penalty if merged[k] == 1 else -penalty
    to_come = [sum(earned[k:]) for k in range(len(merged))]
    place, spread = 0, []
    for i, x in enumerate([*labels, 1]):
        place += i > 0 and x != [*labels, 1][i - 1]
        spread.append(to_come[place])
    assert seen == pytest.approx(spread)


def test_thoughts_of_wrong_answers():
    """What leads to the wrong answer and the answer itself are pushed down; the rest is left alone, never rewarded."""
    out = thoughts([labelled([1, -1, 1], 0.0, rest=2), labelled([1, 1], 0.0), labelled([1], 1.0)], eps=0.0)
    down = -1 / math.sqrt(3)
    assert out[0] == pytest.approx([0.0, down, 0.0, down, down])
    assert out[1] == [0.0, 0.0]


def test_groups_that_agree():
    assert thoughts([labelled([1, -1], 0.0), labelled([-1], 0.0)]) == [[0.0, 0.0], [0.0]]
    # All right: nothing but the penalty on what was wrong.
    assert thoughts([labelled([1, -1, 1], 1.0), labelled([1], 1.0)], alpha=0.3)[0] == pytest.approx([0, -0.3, 0])
    assert thoughts([labelled([1, -1], 0.0)]) == [[0.0, 0.0]]


def test_the_penalty_follows_the_share_of_right_answers():
    answers = [labelled([-1, 1], 1.0)] + [labelled([1], 0.0)] * 7
    credit = thoughts(answers)[0]
    assert credit[1] - credit[0] == pytest.approx(1 / 8)
    fixed = thoughts(answers, adaptive=False)[0]
    assert fixed[1] - fixed[0] == pytest.approx(1.0)


def test_without_labels_it_is_grpo():
    answers = [(0, 1.0, [], 2), (0, 0.0, [], 3), (1, 1.0, [], 1), (1, 0.0, [], 1)]
    given_fields = fields(answers)
    credit, stats = thought_level(**given_fields, outcome="right")
    assert torch.equal(credit, grpo(given_fields["components"][:, 1], given_fields["group"], given_fields["mask"]))
    assert stats == {"marked_right": 0.0, "marked_wrong": 0.0}


@pytest.mark.parametrize("method", [min_form, thought_level])
def test_an_unknown_outcome_is_refused(method):
    with pytest.raises(RecipeError, match="no reward is called 'rigth'.*right"):
        method(**fields([labelled([1], 1.0)]), outcome="rigth")


@pytest.mark.parametrize("method", [min_form, thought_level])
def test_empty_batches_and_answers_without_actions(method):
    for n, width in ((0, 3), (2, 1)):
        out, _ = method(
            torch.zeros(n, width),
            torch.zeros(n).long(),
            torch.zeros(n, width).bool(),
            torch.zeros(n, 1),
            ("right",),
            torch.ones(1),
            outcome="right",
        )
        assert out.shape == (n, width)


def test_process_advantage_counts_actions():
    dense = torch.tensor([[0.0, 0.8, 0.0, -0.6], [0.4, 0.0, 0.0, 0.0]], dtype=torch.float64)
    mask = torch.ones(2, 4).bool()
    steps = steps_of(dense, mask)
    out = process_advantage(dense, steps, torch.zeros(2).long(), mask)
    # The other answer earns 0.4 in one action; this one 0.2 in four.
    assert out[0].tolist() == pytest.approx([0.2 - 1.6, 0.2 - 1.6, -0.6 - 0.8, -0.6 - 0.8])
    assert out[1].tolist() == pytest.approx([0.4 - 0.05, 0.0, 0.0, 0.0])


def test_recipes_find_them():
    assert registry.get("credit", "min_form").requires == ("dense", "group", "mask")
    assert "outcome" in registry.get("credit", "thought_level").options.model_fields
