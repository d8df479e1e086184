"""The tokenizer of a GGUF file as Hugging Face's tokenizer.json and tokenizer_config.json."""

from __future__ import annotations

import gguf
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from experiments.smollm2.metadata import field, special_ids


def make_tokenizer(reader: gguf.GGUFReader) -> tokenizers.Tokenizer:
    """Byte-level BPE that splits off every digit first.

    Control tokens match as a whole and are skipped in decoding. No token is added before or after a
    text: the chat template writes everything that the model was trained on. A byte without a token
    is dropped silently (in SmolLM2 six control characters, and characters above U+3FFFF).
    """
    vocab = field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in field(reader, "tokenizer.ggml.merges")]
    types = field(reader, "tokenizer.ggml.token_type")
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab={token: i for i, token in enumerate(vocab)}, merges=merges)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    # in the order of ids: the tokens are in the vocabulary already and keep their ids
    for token, kind in zip(vocab, types, strict=True):
        if kind in (gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED):
            special = kind == gguf.TokenType.CONTROL
            tokenizer.add_tokens([tokenizers.AddedToken(token, special=special, normalized=False)])
    if tokenizer.get_vocab_size() != len(vocab):
        raise ValueError(
            f"the GGUF file lists {len(vocab)} tokens but only {tokenizer.get_vocab_size()} differ"
        )
    return tokenizer


def make_tokenizer_config(reader: gguf.GGUFReader) -> dict:
    """`tokenizer_config.json`: the special tokens, the chat template and the longest input.

    The class is the generic one: transformers' GPT2Tokenizer would replace our pre-tokenizer by its
    own, which does not split numbers into digits.
    """
    vocab = field(reader, "tokenizer.ggml.tokens")
    ids = special_ids(reader)
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "bos_token": vocab[ids["bos_token_id"]],
        "eos_token": vocab[ids["eos_token_id"]],
        "pad_token": vocab[ids["pad_token_id"]],
        "unk_token": vocab[field(reader, "tokenizer.ggml.unknown_token_id")],
        "chat_template": field(reader, "tokenizer.chat_template"),
        "clean_up_tokenization_spaces": False,
        "model_max_length": field(reader, "llama.context_length"),
    }
