"""Tokenizers of every kind, made small: byte-level BPE, SentencePiece-like Unigram, byte-fallback BPE, characters."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fastllm_core import LoadedModel
from fastllm_core.testing import tiny_tokenizer
from fastllm_plugin_uag.vocabulary import Vocabulary

CORPUS = [
    "Once upon a time, there was a little dog named Tim. He didn't like the big, red ball!",
    "def add(a, b):\n\treturn a + b  # 12345 + 67 = ?\n\nprint(add(1, 2))",
    "Es war einmal in München: süße Grüße, naïve café… «très bien».",
    "你好。世界。今天天气很好。 こんにちは 안녕하세요 привет мир",
    "🙂🙃 👩‍👩‍👧 tabs\tand\n\nlines  two spaces   three",
]
CHAT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"


def byte_level() -> PreTrainedTokenizerFast:
    """As GPT-2's and Qwen's: bytes, nothing in front, special tokens of a chat."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|endoftext|>",
        additional_special_tokens=special[1:],
    )
    made.chat_template = CHAT
    return made


def unigram() -> PreTrainedTokenizerFast:
    """As T5's and Gemma's: SentencePiece, a mark in front of words and of the text, bytes for rare characters."""
    scores = Tokenizer(models.Unigram())
    scores.pre_tokenizer = pre_tokenizers.Metaspace()
    letters = "".join(dict.fromkeys("".join(CORPUS[:3])))
    trainer = trainers.UnigramTrainer(vocab_size=230, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    scores.train_from_iterator([*CORPUS[:3], letters], trainer)
    words = [pair for pair in _pieces(scores) if pair[0] != "<unk>"]
    byte_words = [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    backend = Tokenizer(models.Unigram([*special, *byte_words, *words], unk_id=2, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always"), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def _pieces(tokenizer: Tokenizer) -> list[tuple[str, float]]:
    import json

    return [(name, score) for name, score in json.loads(tokenizer.to_str())["model"]["vocab"]]


def byte_fallback() -> PreTrainedTokenizerFast:
    """As Llama-2's: BPE over a normalised text without pre-tokenizer, a token that begins it, bytes."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(CORPUS[:3], trainers.BpeTrainer(vocab_size=300, show_progress=False))
    import json

    model = json.loads(trained.to_str())["model"]
    special = ["<unk>", "<s>", "</s>"]
    names = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    merges = [tuple(pair) for pair in model["merges"]]
    backend = Tokenizer(
        models.BPE(
            vocab={name: index for index, name in enumerate(names)},
            merges=cast("Any", merges),
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def demo(folder: str) -> PreTrainedTokenizerFast:
    import fastllm_plugin_demo

    models_folder = Path(fastllm_plugin_demo.__file__).parent / "models"
    return cast("PreTrainedTokenizerFast", AutoTokenizer.from_pretrained(models_folder / folder))


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte-level": byte_level,
    "unigram": unigram,
    "byte-fallback": byte_fallback,
    "stories-512": lambda: demo("stories-260k-512"),
    "stories-4096": lambda: demo("stories-6m-4096"),
}
PAIRS = [(one, other) for one in KINDS for other in KINDS if one != other]


@cache
def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    return KINDS[kind]()


def loaded(tokenizer: Any, name: str = "model", size: int | None = None) -> LoadedModel:
    """A model of which only the tokenizer and the width of its logits count."""
    config = SimpleNamespace(vocab_size=size or len(tokenizer))
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda decoder: config))
    return LoadedModel(name, cast("Any", model), tokenizer, torch.device("cpu"), torch.float32)


@cache
def vocabulary(kind: str) -> Vocabulary:
    return Vocabulary(loaded(tokenizer(kind), kind), "model")


@pytest.fixture(scope="session")
def kinds() -> Any:
    """`.tokenizer(kind)`, `.vocabulary(kind)`, `.pairs`, `.corpus`, `.loaded(tokenizer)`."""
    return SimpleNamespace(
        tokenizer=tokenizer, vocabulary=vocabulary, pairs=PAIRS, corpus=CORPUS, loaded=loaded, characters=tiny_tokenizer
    )


@pytest.fixture
def rng() -> random.Random:
    return random.Random(5)
