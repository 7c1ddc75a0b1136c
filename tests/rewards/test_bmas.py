import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon.errors import RecipeError, RewardError
from guerdon.registry import get
from guerdon.rewards import bmas as module
from guerdon.rewards.bmas import Bmas, bmas, max_average_similarity, table_of

# Unit vectors of tokens whose cosines can be read off: cat and kitten 0.8, nothing else in common.
WORDS = {"cat": [1.0, 0, 0, 0], "kitten": [0.8, 0.6, 0, 0], "red": [0, 0, 2.0, 0], "junk": [0, 0, 0, 5.0]}


def embed(text):
    return torch.tensor([WORDS[word] for word in text.split()]).reshape(-1, 4)


def vectors(least=1):
    number = st.integers(-8, 8).map(lambda quarters: quarters / 4)
    return st.lists(st.lists(number, min_size=3, max_size=3), min_size=least, max_size=6).map(torch.tensor)


def test_by_hand():
    assert max_average_similarity(embed("kitten red"), embed("cat red")) == pytest.approx((0.9, 0.9))
    assert max_average_similarity(embed("cat"), embed("cat red")) == pytest.approx((1.0, 0.5))
    assert bmas(embed("kitten red junk"), embed("cat red")) == pytest.approx((1.8 / 3 + 0.9) / 2)
    assert bmas(-embed("cat"), embed("cat")) == pytest.approx(-1.0)
    assert bmas(embed(""), embed("cat")) == 0.0


def test_what_is_too_much_lowers_one_side_and_what_is_missing_the_other():
    whole = max_average_similarity(embed("cat red"), embed("cat red"))
    more = max_average_similarity(embed("cat red junk"), embed("cat red"))
    less = max_average_similarity(embed("cat"), embed("cat red"))
    assert whole == pytest.approx((1.0, 1.0))
    assert more == pytest.approx((2 / 3, 1.0))
    assert less == pytest.approx((1.0, 0.5))


@given(vectors(), vectors(), st.randoms())
def test_symmetric_bounded_and_blind_to_order_and_length(first, second, random):
    value = bmas(first, second)
    assert -1 - 1e-6 <= value <= 1 + 1e-6
    assert bmas(second, first) == pytest.approx(value, abs=1e-6)
    order = list(range(len(first)))
    random.shuffle(order)
    assert bmas(first[order], 3 * second) == pytest.approx(value, abs=1e-6)


@given(vectors(), vectors())
def test_each_side_is_a_mean_of_largest_cosines(first, second):
    def cosine(u, v):
        norms = float(u.norm()) * float(v.norm())
        return float(u @ v) / norms if norms > 1e-6 else None

    table = [[cosine(u, v) for v in second] for u in first]
    if all(x is not None for row in table for x in row):
        response = sum(max(row) for row in table) / len(table)
        reference = sum(max(column) for column in zip(*table, strict=True)) / len(second)
        assert max_average_similarity(first, second) == pytest.approx((response, reference), abs=1e-5)


def test_the_reward_takes_the_best_reference_and_says_what_it_saw():
    reward = get("reward", "bmas").bind({"embeddings": embed, "longest": 3}).call
    score = reward("kitten red", ["junk", "cat red"])
    assert score.value == pytest.approx(0.9)
    assert score.detail == {"response": 0.9, "reference": 0.9}
    assert reward("cat", ["cat red junk", "kitten"]).value == pytest.approx(0.8)  # though one side is 1 with the first
    assert reward("", "cat").detail == {"why": "the text has no tokens"}
    assert reward("cat cat cat", "cat").value == pytest.approx(1.0)
    assert reward("cat cat cat cat", "cat").value == 0.0
    assert reward("cat cat cat cat", "cat").detail == {"why": "4 tokens, more than 3"}


def test_embeddings_by_import_path(tmp_path):
    (tmp_path / "mine.py").write_text("def embed(text):\n    return [[float(len(w)), 1.0] for w in text.split()]\n")
    reward = Bmas(embeddings=f"{tmp_path}/mine.py:embed")
    assert reward("abc", "xyz").value == pytest.approx(1.0)
    assert reward(" ", "xyz").detail == {"why": "the text has no tokens"}


def test_what_cannot_be_used_is_refused():
    with pytest.raises(RecipeError, match="embeddings is int 3, want a function"):
        Bmas(embeddings=3)
    with pytest.raises(RecipeError, match="cannot load model '/nowhere/at/all'"):
        Bmas(embeddings="/nowhere/at/all")
    with pytest.raises(RewardError, match="reference answer is ''"):
        Bmas(embeddings=embed)("cat", "")
    with pytest.raises(RewardError, match="has no tokens; fix the task's answers"):
        Bmas(embeddings=lambda text: torch.zeros(0, 4))("cat", "cat")
    with pytest.raises(RewardError, match=r"shape \(3,\), want \(tokens, D\)"):
        Bmas(embeddings=lambda text: torch.zeros(3))("cat", "cat")
    with pytest.raises(RewardError, match="finite"):
        Bmas(embeddings=lambda text: torch.full((1, 2), float("nan")))("cat", "cat")


@pytest.fixture
def model(tmp_path):
    """A folder with a model of random weights whose tokens are words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", "<pad>", "a", "brown", "dog", "runs"]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=raw, **special).save_pretrained(tmp_path)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    network = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), tie_word_embeddings=False, **sizes))
    network.save_pretrained(tmp_path)
    table_of.cache_clear()
    return tmp_path, network.get_input_embeddings().weight.detach()


def test_the_input_embeddings_of_a_model_without_its_special_tokens(model):
    folder, table = model
    torch.testing.assert_close(module.table_of(str(folder))("<s> a dog </s> <pad>"), table[[4, 6]])
    reward = Bmas(embeddings=str(folder))
    assert reward("dog brown a", "a brown dog").value == pytest.approx(1.0)
    assert reward("</s> <pad>", "a brown dog").value == 0.0
    expected = bmas(table[[7]], table[[4, 5, 6]])
    assert reward("runs <pad>", "a brown dog").value == pytest.approx(expected)
