"""A language model of a few thousand weights over eight letters, for tests of other libraries' trainers."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def make() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The model, always the same, and its tokenizer."""
    vocabulary = {word: k for k, word in enumerate(["<pad>", "<eos>", *"abcdefgh?"])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    words.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=11, max_position_embeddings=32, pad_token_id=0, eos_token_id=1, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config), tokenizer
