import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.registry import get
from guerdon.rewards.bracket import TOPOLOGIES, bracket
from guerdon.rewards.judge import Referee, rubric_score, tournament
from guerdon.rewards.judges import JudgeError, ScriptedJudge

quick = settings(derandomize=True, deadline=None, max_examples=25)
KNOCKOUT = ["single_elimination", "double_elimination", "swiss"]


def by_skill(skill):
    """A judge that sees skills exactly."""
    skill = torch.as_tensor(skill, dtype=torch.float64)
    return lambda first, second: torch.stack([5 + skill[first], 5 + skill[second]], dim=1)


def ranked(skill, topology, group=None):
    group = torch.zeros(len(skill)).long() if group is None else torch.as_tensor(group)
    return tournament(by_skill(skill), group, topology=topology)


def test_seeds_stand_so_that_the_best_meet_last():
    assert bracket(1) == [0]
    assert bracket(8) == [0, 7, 3, 4, 1, 6, 2, 5]
    assert sorted(bracket(5)) == list(range(8))
    for size in (2, 4, 8, 16):
        order = bracket(size)
        while len(order) > 1:
            assert all(sum(pair) == len(order) - 1 for pair in zip(order[::2], order[1::2], strict=True))
            order = [min(pair) for pair in zip(order[::2], order[1::2], strict=True)]


@pytest.mark.parametrize(
    ("topology", "count"), [("anchor", 15), ("single_elimination", 30), ("round_robin", 120), ("swiss", 32)]
)
def test_comparisons(topology, count):
    assert ranked(range(16), topology).comparisons == count


def test_by_hand_anchor():
    # own scores 7, 5, 7 against the anchor's 6, 6, 6: the anchor is third of four
    assert ranked([1.0, 2.0, 0.0, 2.0], "anchor").reward.tolist() == pytest.approx([1 / 3, 1.0, 0.0, 1.0])


def test_by_hand_round_robin():
    beats = {(0, 1), (1, 2), (2, 0), (0, 3), (1, 3)}  # 2 and 3 draw

    def judge(first, second):
        rows = [(a, b) for a, b in zip(first.tolist(), second.tolist(), strict=True)]
        return torch.tensor([[6.0 if p in beats else 5.0, 6.0 if p[::-1] in beats else 5.0] for p in rows])

    # points 2, 2, 1.5, 0.5: ranks 0, 0, 2, 3
    seen = tournament(judge, torch.zeros(4).long(), topology="round_robin").reward
    assert seen.tolist() == pytest.approx([1.0, 1.0, 1 / 3, 0.0])


def test_by_hand_single_elimination():
    # 3 of 4 loses to the favourite in the first round with a better mean score than the other loser.
    # Seeds by score against row 0: rows 1, 2, 0, 3; bracket (1,3), (2,0); final 1 against 2.
    seen = ranked([0.0, 3.0, 2.0, -1.0], "single_elimination").reward
    assert seen.tolist() == pytest.approx([1 / 3, 1.0, 2 / 3, 0.0])


def test_an_upset_in_the_final_of_a_double_elimination_needs_two_wins():
    asked = []

    def judge(first, second):
        asked.extend(zip(first.tolist(), second.tolist(), strict=True))
        meeting = asked.count((0, 1))
        return torch.tensor([[6.0, 5.0] if meeting < 2 else [5.0, 6.0]] * len(first))

    assert tournament(judge, torch.zeros(2).long(), topology="double_elimination").reward.tolist() == [0.0, 1.0]
    assert asked == [(0, 1)] * 3


@quick
@given(st.integers(2, 17), st.integers(1, 4), st.randoms(use_true_random=False), st.sampled_from(list(TOPOLOGIES)))
def test_whatever_the_size_a_flawless_judge_puts_the_best_first(size, groups, random, topology):
    skill = [float(x) for _ in range(groups) for x in random.sample(range(size), size)]
    group = [g for g in range(groups) for _ in range(size)]
    reward = ranked(skill, topology, group).reward.reshape(groups, size)
    truth = torch.tensor(skill).reshape(groups, size)
    assert ((reward >= 0) & (reward <= 1)).all()
    if topology != "anchor":  # there the anchor is measured by its mean score, not by who it beats
        assert (reward.argmax(dim=1) == truth.argmax(dim=1)).all()
        assert (reward.amax(dim=1) == 1).all() or topology == "swiss"
    if topology == "round_robin":
        torch.testing.assert_close(reward, truth / (size - 1))
    if topology in KNOCKOUT:
        assert reward.sum(dim=1).tolist() == pytest.approx([size / 2] * groups), "places are shared, not lost"


@quick
@given(st.integers(2, 17), st.randoms(use_true_random=False))
def test_swiss_never_repeats_a_meeting_and_gives_everyone_a_game_or_one_bye(size, random):
    skill = torch.tensor([random.choice([0.0, 1.0, 2.0]) for _ in range(size)])
    met = []

    def judge(first, second):
        met.append([frozenset(p) for p in zip(first.tolist(), second.tolist(), strict=True)])
        return by_skill(skill)(first, second)

    tournament(judge, torch.zeros(size).long(), topology="swiss")
    assert len(met) == math.ceil(math.log2(size))
    meetings = [pair for turn in met for pair in turn]
    assert len(set(meetings)) == len(meetings)
    played = [sum(row in pair for pair in meetings) for row in range(size)]
    assert min(played) >= len(met) - size % 2
    assert all(len(frozenset().union(*turn)) == size - size % 2 for turn in met)


def test_swiss_by_hand():
    # Round 1: 0-1, 2-3, won by 0 and 2. Round 2: 0-2, 1-3, won by 0 and 1. Points 2, 1, 1, 0; those of the opponents
    # of 1 are 2 + 0, of 2 they are 2 + 0 as well: both share ranks 1 and 2.
    assert ranked([9.0, 1.0, 2.0, 0.0], "swiss").reward.tolist() == pytest.approx([1.0, 0.5, 0.5, 0.0])


def test_swiss_bye_counts_a_point():
    # Three: 0-1 and a bye for 2, then 0-2, who both have a point, and a bye for 1. Who lost to 0 once has one point.
    assert ranked([2.0, 0.0, 1.0], "swiss").reward.tolist() == pytest.approx([1.0, 0.25, 0.25])


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_ragged_groups_are_ranked_as_they_would_be_alone(topology):
    group = torch.tensor([4, 9, 4, 4, 9, 1, 9, 4, 9, 9, 6, 6])
    skill = torch.randn(12, generator=torch.Generator().manual_seed(3))
    together = ranked(skill, topology, group).reward
    for key in group.unique():
        own = group == key
        alone = ranked(skill[own], topology).reward
        assert together[own].tolist() == alone.tolist()
    assert together[group == 1].tolist() == [0.0]


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_draws_only_teach_nothing(topology):
    group = torch.tensor([0] * 6 + [1] * 6)
    reward = ranked([1.0] * 6 + [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], topology, group).reward
    assert reward[:6].tolist() == [0.0] * 6
    assert reward[6:].std() > 0


def test_rounds_are_asked_at_once_for_all_groups():
    sizes = []

    def judge(first, second):
        sizes.append(len(first))
        return by_skill(torch.arange(32.0))(first, second)

    tournament(judge, torch.arange(32) // 8, topology="single_elimination")
    assert sizes == [28, 16, 8, 4]


def test_both_orders_cancel_what_the_first_place_is_worth():
    def judge(first, second):
        return torch.stack([4.0 + first.float() / 10 + 2, 4.0 + second.float() / 10], dim=1)

    fair, naive = Referee(judge), Referee(judge, both_orders=False)
    rows = torch.tensor([0, 1]), torch.tensor([1, 0])
    assert fair(*rows).flatten().tolist() == pytest.approx([10.0, 10.2, 10.2, 10.0])
    assert naive(*rows).flatten().tolist() == pytest.approx([6.0, 4.1, 6.1, 4.0])
    assert (fair.comparisons, fair.questions, naive.questions) == (2, 4, 2)


def test_what_the_judge_fails_to_answer_is_a_draw():
    answers = [(9.0, 1.0), None, (math.nan, 3.0), (11.0, 1.0), (-1.0, 1.0), (10.0, 0.0)]
    referee = Referee(lambda first, second: answers, both_orders=False)
    seen = referee(torch.arange(6), torch.arange(6))
    assert seen.tolist() == [[9.0, 1.0], [5.0, 5.0], [5.0, 5.0], [5.0, 5.0], [5.0, 5.0], [10.0, 0.0]]
    assert referee.failures == 4


def test_without_draws_a_pair_that_was_not_judged_in_both_orders_has_no_score():
    heard = {(0, 1): (9.0, 1.0), (1, 0): (2.0, 8.0), (2, 3): (9.0, 1.0)}
    referee = Referee(
        lambda first, second: [heard.get(p) for p in zip(first.tolist(), second.tolist(), strict=True)], draws=False
    )
    seen = referee(torch.tensor([0, 2, 4]), torch.tensor([1, 3, 5]))
    assert seen[0].tolist() == [17.0, 3.0]
    assert seen[1:].isnan().all()
    assert (referee.failures, referee.heard) == (3, {0, 1, 2, 3})


def test_orders_that_name_different_winners_disagree():
    # In order and reversed: agree, disagree, a tie in one order, no answer in one order, ties in both.
    there, back = [(6, 4), (6, 4), (5, 5), (6, 4), (5, 5)], [(4, 6), (6, 4), (6, 4), None, (5, 5)]
    referee = Referee(lambda first, second: [*there, *back])
    referee(torch.arange(5), torch.arange(5, 10))
    assert referee.disagreements == 1
    assert referee.stats() == {"comparisons": 5.0, "failures": 1.0, "order_disagreement": 0.2}
    once = Referee(lambda first, second: there, both_orders=False)
    once(torch.arange(5), torch.arange(5, 10))
    assert once.stats() == {"comparisons": 5.0, "failures": 0.0}


def test_two_criteria_are_weighted():
    answers = [None, ((10.0, 0.0), (5.0, 5.0))]
    referee = Referee(lambda first, second: answers, both_orders=False)
    assert referee(torch.arange(2), torch.arange(2)).flatten().tolist() == pytest.approx([5, 5, 6, 5])
    even = Referee(lambda first, second: torch.tensor([[[10.0, 0.0], [4.0, 5.0]]]), both_orders=False, path_weight=0.5)
    assert even(torch.arange(1), torch.arange(1)).tolist() == [[5.0, 4.5]]
    with pytest.raises(ValueError, match=r"shape \(1, 3\) for 1 pairs"):
        Referee(lambda first, second: [(1.0, 2.0, 3.0)], both_orders=False)(torch.arange(1), torch.arange(1))


def longer(prompts, first, second):
    assert all(prompt == "say more" for prompt in prompts)
    return [(float(len(a)), float(len(b))) for a, b in zip(first, second, strict=True)]


def test_the_reward_compares_the_texts_of_a_group():
    reward = get("reward", "tournament")
    assert reward.needs_group
    fields = {"prompt": ["say more"] * 5, "text": ["aaa", "a", "aa", "b", "bb"], "group": torch.tensor([1, 1, 1, 2, 2])}
    outcome = reward.bind({"judge": longer, "topology": "round_robin"})(fields)
    assert outcome.fields["value"] == [1.0, 0.0, 0.5, 0.0, 1.0]
    assert outcome.stats == {"comparisons": 4.0, "failures": 0.0, "order_disagreement": 0.0}
    with pytest.raises(ValueError, match="no topology 'league'; known: anchor"):
        tournament(by_skill([0.0, 1.0]), torch.zeros(2).long(), topology="league")


def letters(prompt, text, statement):
    """A text of n letters has quality n / 10; no text says anything about dimension b."""
    return 0.0 if statement.endswith(" b.") else len(text) / 10


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_judge_holds_a_tournament(topology):
    judge = {"backend": "scripted", "truth": letters, "position_bias": 0.05}
    fields = {"prompt": ["p"] * 5, "text": ["aaa", "a", "aa", "b", "bb"], "group": torch.tensor([1, 1, 1, 2, 2])}
    outcome = get("reward", "tournament").bind({"judge": judge, "topology": topology})(fields)
    assert outcome.fields["value"][0] == outcome.fields["value"][4] == 1.0
    assert outcome.stats["questions"] == 2 * outcome.stats["comparisons"]
    assert outcome.stats["order_disagreement"] == 0.0


def test_who_was_never_judged_is_a_fault_and_no_zero():
    fields = {"prompt": ["p"] * 6, "text": ["a", "bb", "?", "c", "?", "dd"], "group": torch.tensor([1, 1, 1, 2, 3, 3])}

    def judge(prompts, first, second):
        return [None if "?" in a + b else (float(len(a)), float(len(b))) for a, b in zip(first, second, strict=True)]

    reward = get("reward", "tournament")
    seen = reward.bind({"judge": judge, "topology": "round_robin"})(fields).fields["value"]
    assert seen[:2] == [0.0, 1.0], "points 1/2 and 3/2; draws with the one that could not be judged"
    assert [isinstance(value, JudgeError) for value in seen] == [False, False, True, False, True, True]
    assert seen[3] == 0.0, "alone"
    mute = ScriptedJudge(truth=letters, failure_rate=1.0)
    outcome = reward.bind({"judge": mute})(fields)
    assert "the last failure: the scripted judge failed" in str(outcome.fields["value"][0])
    assert outcome.stats["failures"] == outcome.stats["questions"]


def test_a_judge_scores_a_rubric_of_dimensions():
    judge = ScriptedJudge(truth=letters)
    options = {"judge": judge, "dimensions": ["a", "b"]}
    outcome = get("reward", "comparative_rubric_judge").bind(options)({"text": ["x" * 6, "x"], "answer": ["r", 3]})
    torch.testing.assert_close(outcome.fields["value"], torch.tensor([0.3, 0.05]))
    assert outcome.stats["questions"] == 2
    options = {"judge": {"backend": "scripted", "truth": letters, "failure_rate": 1.0}}
    outcome = get("reward", "comparative_rubric_judge").bind(options)({"text": ["x"], "answer": ["r"]})
    assert outcome.fields["value"].isnan().all()


def test_rubric_score_by_hand():
    scores = torch.tensor([[1.0, 5, 3], [1, 1, 1], [5, 5, 5], [5, 5, math.nan], [5, 5, 6], [0, 5, 5]])
    seen = rubric_score(scores)
    assert seen[:3].tolist() == [0.5, 0.0, 1.0]
    assert seen[3:].isnan().all()


def test_the_rubric_judge_is_asked_once_for_closeness_on_every_dimension():
    calls = []

    def judge(text, reference, dimensions):
        calls.append((text, reference, dimensions))
        return [[1, 2, 3, 4, 5], None, [5, 5, 5, 5, None]]

    reward = get("reward", "comparative_rubric_judge").bind({"judge": judge})
    seen = reward({"text": ["a", "b", "c"], "answer": ["x", 2, "z"]}).fields["value"]
    assert seen[0].item() == 0.5
    assert seen[1:].isnan().all()
    assert calls[0][:2] == (["a", "b", "c"], ["x", "2", "z"])
    assert len(calls[0][2]) == 5
    narrow = get("reward", "comparative_rubric_judge").bind({"judge": judge, "dimensions": ["style"]})
    with pytest.raises(ValueError, match="gave 5 scores for a text, want one for each of 1 dimensions"):
        narrow({"text": ["a", "b", "c"], "answer": ["x", "y", "z"]})
    one = get("reward", "comparative_rubric_judge").bind({"judge": lambda *_: torch.ones(2, 5)})
    with pytest.raises(ValueError, match=r"shape \(2, 5\), want 3 rows of 5 scores"):
        one({"text": ["a", "b", "c"], "answer": ["x", "y", "z"]})
