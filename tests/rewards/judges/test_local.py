import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig, PreTrainedTokenizerFast

from guerdon.errors import RecipeError
from guerdon.rewards.judges import (
    Checklist,
    Item,
    JudgeError,
    LocalJudge,
    Preference,
    Ranking,
    Rating,
    Steps,
    UnreadableVerdict,
    Verdict,
    resolve_judge,
)
from guerdon.rewards.judges.local import probes_of

WORDS = ["yes", "Yes", "YES", "no", "No", "A", "B", "C", "good", "bad", "answer", "prompt", "step", "[unk]", "[pad]"]
CONFIGS = {
    "llama": lambda v: LlamaConfig(
        vocab_size=v,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=400,
    ),
    "gpt2": lambda v: GPT2Config(vocab_size=v, n_embd=16, n_layer=2, n_head=2, n_positions=400),
}
CHAT = "{% for m in messages %}prompt {{ m['content'] }} {% endfor %}answer"


def save_model(path, kind="llama", words=WORDS, chat=None):
    from tokenizers import Tokenizer, models, pre_tokenizers

    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[unk]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[unk]", pad_token="[pad]")
    tokenizer.chat_template = chat
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind](len(words)))
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(30)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def next_word(path, text, words):
    """Probability of each of ``words`` after a text, by one plain forward pass without padding."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0, -1].double()
    return logits.softmax(dim=0)[[WORDS.index(word) for word in words]]


def request(question, probe):
    return f"{question.instruction}\n\n{question.material}\n\n{probe.request}"


QUESTIONS = [
    Rating(prompt="good", answers=("bad answer " * 9,)),
    Rating(prompt="good", answers=("good",)),
    Checklist(prompt="p", answers=("bad",), items=(Item("good"), Item("bad bad", (1, 5)))),
    Steps(prompt="p", answers=("good", "bad " * 20, "step")),
    Preference(prompt="prompt", answers=("good", "bad")),
]


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("chat", [None, CHAT])
def test_verdicts_are_probabilities_of_words(tmp_path, kind, chat):
    path = save_model(tmp_path, kind, chat=chat)
    judged = LocalJudge(model=path, batch=3, min_mass=0.0)
    answers = judged.ask(QUESTIONS)
    seen = []
    for question, answer in zip(QUESTIONS, answers, strict=True):
        assert isinstance(answer, Verdict)
        probes = probes_of(question)
        assert len(probes) == len(answer.values)
        for probe, value in zip(probes, answer.values, strict=True):
            text = request(question, probe)
            text = f"prompt {text} answer" if chat else f"{text}\nAnswer:"
            if isinstance(question, Preference):
                first, second = next_word(path, text, ["A", "B"])
            else:
                p = next_word(path, text, ["yes", "Yes", "YES", "no", "No"])
                first, second = p[:3].sum(), p[3:].sum()
            assert value == pytest.approx(float(first / (first + second)), abs=1e-5)
            seen.append(value)
    assert max(seen) - min(seen) > 0.01, "the model tells the questions apart"
    assert judged.stats()["probes"] == 8


def test_a_ranking_is_the_order_of_the_letters(tmp_path):
    path = save_model(tmp_path)
    question = Ranking(prompt="prompt", answers=("good", "bad", "answer bad"))
    (answer,) = LocalJudge(model=path, min_mass=0.0).ask([question])
    p = next_word(path, f"{request(question, probes_of(question)[0])}\nAnswer:", ["A", "B", "C"])
    order = p.argsort(descending=True).tolist()
    assert [answer.values[i] for i in order] == [1.0, 0.5, 0.0]


def test_what_does_not_fit_is_an_error_of_its_question(tmp_path):
    judged = LocalJudge(model=save_model(tmp_path), min_mass=0.0)
    short, long = Rating(prompt="p", answers=("good",)), Rating(prompt="p", answers=("good " * 400,))
    error, verdict = judged.ask([long, short])
    assert isinstance(error, JudgeError)
    assert "more than the 400 that" in str(error)
    assert isinstance(verdict, Verdict)
    assert judged.stats()["failures"] == 1


def test_a_model_about_to_say_something_else_gives_no_verdict(tmp_path):
    judged = LocalJudge(model=save_model(tmp_path), min_mass=1.0)
    (error,) = judged.ask([Rating(prompt="p", answers=("good",))])
    assert isinstance(error, UnreadableVerdict)
    assert "of its probability on yes, no, less than min_mass 1" in str(error)


def test_words_that_the_tokenizer_cannot_tell_apart_are_refused(tmp_path):
    judged = LocalJudge(model=save_model(tmp_path, words=[w for w in WORDS if w.lower() != "no"]))
    with pytest.raises(RecipeError, match="no single tokens that tell yes, no apart"):
        judged.ask([Rating(prompt="p", answers=("good",))])


def test_models_that_cannot_be_loaded_are_named(tmp_path):
    with pytest.raises(RecipeError, match="cannot load model '.*missing'"):
        LocalJudge(model=str(tmp_path / "missing")).ask([Rating(prompt="p", answers=("good",))])
    with pytest.raises(RecipeError, match="has no chat template"):
        LocalJudge(model=save_model(tmp_path), chat=True).ask([Rating(prompt="p", answers=("good",))])
    with pytest.raises(RecipeError, match="judge 'local': 'batch' is 0"):
        resolve_judge({"backend": "local", "model": "m", "batch": 0})
