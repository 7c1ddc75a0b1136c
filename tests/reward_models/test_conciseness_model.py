import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.registry import get
from guerdon.reward_models.conciseness import (
    ConcisenessModel,
    conciseness,
    conciseness_prompt,
    novel_share,
    read_conciseness,
    tenth_up,
)

quick = settings(derandomize=True, deadline=None, max_examples=25)


def test_scores_are_tenths():
    assert [tenth_up(x) for x in (0.0, 0.1, 0.11, 0.3, 0.95, 1.0)] == [0.1, 0.1, 0.2, 0.3, 1.0, 1.0]


@quick
@given(st.floats(0, 1))
def test_a_score_is_not_below_its_share(share):
    assert share - 1e-6 <= tenth_up(share) <= max(share + 0.1, 0.1) + 1e-6


def test_repetition_is_what_the_default_sees():
    once = "first add three and four then double what you have got"
    assert novel_share(once) == 1.0
    assert novel_share("") == novel_share("two words") == 1.0
    # 4 words again and again: 4 trigrams that differ, of 4 n - 2.
    assert novel_share("a b c d " * 10) == pytest.approx(4 / 38)
    shares = [novel_share((once + " ") * n) for n in (1, 2, 5, 50)]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < 0.03
    assert conciseness([once, (once + " ") * 50], ["", ""]) == [1.0, 0.1]


def test_reading_a_score():
    texts = ["0.7", "Score: 0.3.", "0.2, or rather 0.9", "1.0", "1", "10", "0.75", "0.0", "none", "-1.5"]
    wanted = [0.7, 0.3, 0.9, 1.0, 1.0, math.nan, math.nan, math.nan, math.nan, math.nan]
    assert [read_conciseness(text) for text in texts] == pytest.approx(wanted, nan_ok=True)


def test_a_model_that_writes():
    seen = []

    def write(prompts):
        seen.extend(prompts)
        return ["Score: 0.4" if "winding" in prompt else "I can't say" for prompt in prompts]

    model = ConcisenessModel(write)
    scores = conciseness(["winding", "straight"], ["q", "r"], scorer=model)
    assert seen == [conciseness_prompt("q", "winding"), conciseness_prompt("r", "straight")]
    assert scores[0].value == pytest.approx(0.4)
    assert [score.valid for score in scores] == [True, False]
    assert len(model([], [])) == 0
    with pytest.raises(ValueError, match="1 texts for 2 prompts"):
        ConcisenessModel(lambda prompts: ["0.1"])(["a", "b"], ["c", "d"])


def halves(prompts, texts):
    return [0.5 for _ in texts]


def test_it_is_found_by_name_and_its_scorer_by_path():
    bound = get("reward", "conciseness").bind({"scorer": f"{__file__}:halves"})
    assert [score.value for score in bound({"text": ["x"], "prompt": ["y"]}).fields["value"]] == [0.5]
