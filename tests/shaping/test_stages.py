import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon.errors import RecipeError
from guerdon.shaping.stages import Stage, Stages, Until, mark_segments


def never(steps, metrics):
    """A stage that does not end."""
    return False


def third(steps, metrics):
    """Ends a stage at its third step, if the metric is there."""
    return steps == 3 and "a" in metrics


def walk(stages, values, name="a"):
    return [int(stages.update({name: value})["stage"]) for value in values]


def test_a_stage_ends_after_its_steps_and_the_last_goes_on():
    stages = Stages([Stage("one", until=Until(steps=2)), Stage("two", until=Until(steps=3)), Stage("three")])
    assert walk(stages, [0.0] * 8) == [0, 1, 1, 1, 2, 2, 2, 2]
    assert stages.current.name == "three"


@pytest.mark.parametrize(
    ("until", "values", "ends"),
    [
        (Until(metric="a", above=0.5, window=2), [0.9, 0.0, 0.6, 0.5], 4),  # means .45 .3 .55
        (Until(metric="a", below=0.5, window=1), [0.5, 0.4], 2),
        (Until(metric="a", flat=0.11, window=2), [0.0, 0.0, 0.2, 0.3, 0.3, 0.4], 6),  # |.35 - .25| after .25 and .2
        (Until(metric="a", above=9.0, steps=3), [0.0, 0.0, 0.0], 3),
        (third, [0.0, 0.0, 0.0], 3),
        (f"{__name__}:third", [0.0, 0.0, 0.0], 3),
    ],
)
def test_a_stage_ends_when_its_metric_has_arrived(until, values, ends, monkeypatch, request):
    monkeypatch.syspath_prepend(str(request.path.parent))
    stages = Stages([Stage("one", until=until), Stage("two")])
    assert walk(stages, values) == [0] * (ends - 1) + [1]


def test_a_metric_of_the_stage_before_does_not_count():
    stages = Stages(
        [
            Stage("one", until=Until(steps=3)),
            Stage("two", until=Until(metric="a", above=0.5, window=2)),
            Stage("three"),
        ]
    )
    assert walk(stages, [1.0, 1.0, 1.0, 1.0, 1.0, 0.0]) == [0, 0, 1, 1, 2, 2]


def test_a_step_without_the_metric_counts_as_a_step_only():
    stages = Stages([Stage("one", until=Until(metric="a", above=0.5, window=2, steps=4)), Stage("two")])
    assert walk(stages, [1.0, 1.0], name="b") == [0, 0]
    assert walk(stages, [1.0, 1.0]) == [0, 1]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(0, 30))
def test_a_restored_schedule_goes_on_as_if_it_had_not_stopped(values, cut):
    def make():
        return Stages(
            [
                Stage("one", until=Until(metric="a", flat=0.2, window=2, steps=7)),
                Stage("two", until=Until(metric="a", above=0.6, window=3)),
                Stage("three", until=never),
                Stage("four"),
            ]
        )

    whole, first, second = make(), make(), make()
    expected = walk(whole, values)
    begun = walk(first, values[:cut])
    second.load_state_dict(first.state_dict())
    assert begun + walk(second, values[cut:]) == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Until, "neither 'steps' nor a 'metric' is given"),
        (lambda: Until(metric="a"), "metric 'a' has no bound"),
        (lambda: Until(steps=3, above=0.5), "'above' is a bound of a metric, and no 'metric' is named"),
        (lambda: Stages([Stage("a", until=Until(steps=1)), Stage("a")]), "two stages are called 'a'"),
        (lambda: Stages([Stage("a"), Stage("b")]), "stage 'a' has no 'until', so those after it would never begin"),
    ],
)
def test_schedules_that_cannot_work_are_refused(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_an_end_that_cannot_be_imported_is_refused():
    with pytest.raises(RecipeError, match="no_such_module"):
        Stages([Stage("a", until="no_such_module:never"), Stage("b")])


MARKS = {"query": ("<q>", "</q>"), "note": ("[", "]")}


def marked(pieces, mask=None, segments=MARKS):
    mask = torch.ones(1, len(pieces), dtype=torch.bool) if mask is None else torch.tensor([mask], dtype=torch.bool)
    return {name: x[0].int().tolist() for name, x in mark_segments([pieces], mask, segments).items()}


def test_segments_hold_their_marks_and_everything_between():
    seen = marked(["a", "<q>", "b", "c", "</q>", "d", "[", "e", "]"])
    assert seen["query"] == [0, 1, 1, 1, 1, 0, 0, 0, 0]
    assert seen["note"] == [0, 0, 0, 0, 0, 0, 1, 1, 1]
    assert seen["other"] == [1, 0, 0, 0, 0, 1, 0, 0, 0]


def test_a_token_that_holds_an_end_of_a_segment_belongs_to_it():
    assert marked(["a<", "q>b</", "q>c", "d"])["query"] == [1, 1, 1, 0]


def test_a_segment_that_is_not_closed_goes_on_to_the_end():
    assert marked(["<q>", "a", "[", "b"])["query"] == [1, 1, 1, 1]
    assert marked(["</q>", "a"])["query"] == [0, 0]


def test_a_segment_may_come_more_than_once():
    assert marked(["[", "]", "a", "[]", "b"])["note"] == [1, 1, 0, 1, 0]


def test_tokens_that_are_not_the_policy_s_own_lie_in_no_segment():
    # The second and third columns are what a tool said: token texts are those of the policy's own actions.
    assert marked(["<q>", "b", "</q>", "c"], mask=[1, 0, 0, 1, 1, 1])["query"] == [1, 0, 0, 1, 1, 0]
    assert marked(["<q>", "b", "</q>", "c"], mask=[1, 0, 0, 1, 1, 1])["other"] == [0, 0, 0, 0, 0, 1]


def test_text_that_is_empty_has_no_segments():
    assert marked([], mask=[0, 0])["other"] == [0, 0]
    assert marked(["", "a", ""])["query"] == [0, 0, 0]


@given(st.lists(st.sampled_from(["<q>", "</q>", "a", "", "[", "]", "<", "q>"]), max_size=12))
def test_segments_follow_the_characters(pieces):
    seen = marked(pieces)
    text = "".join(pieces)
    for name, (opening, closing) in MARKS.items():
        inside = [False] * len(text)
        for match in re.finditer(re.escape(opening) + ".*?(?:" + re.escape(closing) + "|$)", text, re.DOTALL):
            inside[match.start() : match.end()] = [True] * (match.end() - match.start())
        at = 0
        for piece, mark in zip(pieces, seen[name], strict=True):
            if piece:
                assert mark == any(inside[at : at + len(piece)])
            at += len(piece)
