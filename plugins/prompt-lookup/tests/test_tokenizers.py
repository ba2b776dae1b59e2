"""Texts of every kind by tokenizers of every kind: what is written is plain decoding's, and so is how it reads.

`pytest -m slow` adds real tokenizers, from `../shared/zoo` beside the checkout.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

import fastllm_core
from fastllm_core import Generation
from fastllm_core.testing import tiny_model

ZOO = Path(__file__).parents[4] / "shared" / "zoo"
SPECIAL = ["<unk>", "<s>", "</s>", "<|user|>", "<|end|>"]
TEXTS = [
    "The cat sat on the mat. The cat sat on the",
    "\tif x:\n\t\treturn x\n\n\n\tif y:\n\t\treturn",
    "你好世界。你好朋友。你好",
    "🙂🎉👩‍👩‍👧 party 🙂🎉👩‍👩‍👧 party 🙂",
    "naïve café naïve   double  spaces ",
    "<|user|>Say it again<|end|>Say it again<|end|>",
]
TEMPLATE = "{% for m in messages %}<|user|>{{ m['content'] }}<|end|>\n{% endfor %}"


def fast(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def byte_level() -> PreTrainedTokenizerBase:
    """As GPT-2's, Qwen's and Llama 3's: pairs of bytes, no unknown text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer: Any = trainers.BpeTrainer(vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return fast(tokenizer)


def unigram() -> PreTrainedTokenizerBase:
    """As SentencePiece's for T5 and XLM-R: pieces by likelihood, spaces as a mark, normalised text."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer: Any = trainers.UnigramTrainer(vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>")
    tokenizer.train_from_iterator(TEXTS, trainer)
    return fast(tokenizer)


def byte_fallback() -> PreTrainedTokenizerBase:
    """As Llama 2's and Mistral's: pieces with spaces as a mark, and bytes for what no piece covers."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(  # type: ignore[assignment]
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(  # type: ignore[assignment]
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer: Any = trainers.BpeTrainer(vocab_size=300, special_tokens=pieces, limit_alphabet=20)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return fast(tokenizer)


def characters() -> PreTrainedTokenizerBase:
    """One entry for each character, and an unknown one."""
    known = sorted({character for text in TEXTS[:2] for character in text})
    words = {word: index for index, word in enumerate([*SPECIAL, *known])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return fast(tokenizer)


def answers(tokenizer: PreTrainedTokenizerBase, method: str, prompts: list[Any], **options: Any) -> list[Generation]:
    """Greedily and sampled, by a model with random weights whose vocabulary is a little larger than the tokenizer's."""
    model = tiny_model(vocab_size=len(tokenizer) + 3, num_hidden_layers=1, sharpness=3.0)
    config = {"draft.controller": "fixed", "draft.length": 6}
    with fastllm_core.load(model, method, tokenizer=tokenizer, config=config, **options) as pipeline:
        said: list[Generation] = pipeline.generate(prompts, max_new_tokens=16, temperature=0.0)
        return said + pipeline.generate(prompts, max_new_tokens=16, temperature=0.7, seed=1)


def compare(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = TEMPLATE
    chats = [[{"role": "user", "content": text}] for text in TEXTS[:3]]
    prompts = [*TEXTS, *chats]
    expected = answers(tokenizer, "plain", prompts)
    drafted = 0
    for options in ({}, {"branches": 3, "pick": "frequent"}):
        for ours, theirs in zip(answers(tokenizer, "prompt-lookup", prompts, **options), expected, strict=True):
            assert ours.token_ids == theirs.token_ids
            assert ours.text == theirs.text
            drafted += ours.report.drafted
    assert drafted > 0


@pytest.mark.parametrize("make", [byte_level, unigram, byte_fallback, characters], ids=lambda make: make.__name__)
def test_small_tokenizers_of_four_kinds(make: Callable[[], PreTrainedTokenizerBase]) -> None:
    compare(make())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stories-6m-4096", "stories-260k-512"])
def test_real_tokenizers(name: str) -> None:
    if not (ZOO / name).is_dir():
        pytest.skip(f"{ZOO / name} is not there")
    compare(AutoTokenizer.from_pretrained(ZOO / name))


def test_a_corpus_is_read_by_the_models_tokenizer(tmp_path: Path) -> None:
    """As text, so that special tokens are not added, and whatever is in it can be drafted."""
    tokenizer = byte_level()
    (tmp_path / "corpus.txt").write_text("\n".join(TEXTS) * 3, encoding="utf-8")
    options = {"corpus": [str(tmp_path / "corpus.txt")]}
    expected = answers(tokenizer, "plain", TEXTS)
    ours = answers(tokenizer, "prompt-lookup", TEXTS, **options)
    assert [one.token_ids for one in ours] == [one.token_ids for one in expected]
