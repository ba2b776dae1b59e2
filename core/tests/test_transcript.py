"""Text as it grows equals text as a whole, and nothing is shown that a stop string or another byte could take back."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import fastllm_core
from fastllm_core.testing import tiny_tokenizer
from fastllm_core.transcript import Transcript, text_of

WORDS = ["Once", " upon", " a", " time", ",", " there", " was", "\n", "é", "ab", "c", "abc", " "]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte, as the ids 0..255, then some words, then a special token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pre = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    by_byte = dict(enumerate(_byte_letters()))
    assert sorted(by_byte.values()) == alphabet
    words = ["".join(by_byte[byte] for byte in word.encode()) for word in WORDS if len(word.encode()) > 1]
    vocab = {letter: i for i, letter in by_byte.items()} | {word: 256 + i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=by_byte[63]))
    tokenizer.pre_tokenizer = pre
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=["<end>"])


def _byte_letters() -> list[str]:
    """How GPT-2 writes each byte."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = iter(range(256, 512))
    return [chr(byte) if byte in shown else chr(next(hidden)) for byte in range(256)]


BYTES = byte_tokenizer()
END = BYTES.convert_tokens_to_ids("<end>")


def ids(text: str) -> list[int]:
    return list(text.encode())


def word(text: str) -> int:
    return next(i for i in range(256, len(BYTES)) if BYTES.decode([i]) == text)


def stream(tokens: Sequence[int], stop: Sequence[str] = (), prompt: Sequence[int] = (65,)) -> list[str]:
    """The pieces that are shown after each token, and the last one."""
    transcript = Transcript(BYTES, prompt, stop)
    pieces = []
    for token in tokens:
        if transcript.add(token):
            return [*pieces, transcript.release(last=True)]
        pieces.append(transcript.release())
    transcript.finish()
    return [*pieces, transcript.release(last=True)]


def test_a_character_is_held_back_until_its_bytes_are_there() -> None:
    assert stream(ids("aé€😀z")) == ["a", "", "é", "", "", "€", "", "", "", "😀", "z", ""]


def test_a_character_that_never_ends_is_shown_at_the_end() -> None:
    assert stream([97, *"😀".encode()[:2]]) == ["a", "", "", "\ufffd"]


def test_bytes_that_are_no_character_are_shown_once_something_follows() -> None:
    assert stream([0x80, 97, 98]) == ["", "\ufffda", "b", ""]


def test_the_prompt_is_context_but_not_text() -> None:
    assert text_of(BYTES, ids("Once "), [word("abc")]) == "abc"
    assert text_of(BYTES, "é".encode()[:1], [*"é".encode()[1:], 97]).endswith("a")


def test_special_tokens_are_not_shown() -> None:
    assert stream([97, END, 98, END]) == ["a", "", "b", "", ""]


def test_a_stop_string_cuts_the_text_before_it() -> None:
    assert stream(ids("one. Two"), stop=[". "]) == ["o", "n", "e", "", ""]
    assert text_of(BYTES, [65], ids("one. Two"), [". "]) == "one"


@pytest.mark.parametrize("at", range(9))
@pytest.mark.parametrize("size", [1, 2, 5])
def test_stop_strings_at_every_offset_over_token_borders(at: int, size: int) -> None:
    tokens = [word("Once"), word(" upon"), word("é"), *ids("x😀y"), word(" time")]
    whole = "Once uponéx😀y time"
    stop = whole[at : at + size]
    assert text_of(BYTES, [65], tokens, [stop]) == whole[: whole.index(stop)]
    assert "".join(stream(tokens, [stop])) == whole[: whole.index(stop)]


def test_of_two_stop_strings_completed_by_one_token_the_earlier_wins() -> None:
    tokens = [*ids("x"), word("ab"), word("abc")]  # xababc
    assert text_of(BYTES, [65], tokens, ["c", "abab"]) == "x"
    assert text_of(BYTES, [65], tokens, ["abab", "c"]) == "x"
    assert text_of(BYTES, [65], tokens, ["bc", "abc"]) == "xab"


def test_what_may_begin_a_stop_string_is_held_back_and_released_when_it_does_not() -> None:
    assert stream(ids("abcabd"), stop=["abd"]) == ["", "", "abc", "", "", ""]
    assert stream(ids("aab"), stop=["ab"]) == ["", "a", ""]
    assert stream(ids("ab"), stop=["abc"]) == ["", "", "ab"]


def test_a_stop_string_in_what_was_held_back_counts_at_the_end() -> None:
    transcript = Transcript(BYTES, [65], ["a"])
    assert not transcript.add(0xE2)
    assert transcript.finish() == "\ufffd"
    assert text_of(BYTES, [65], [98, 0xE2], ["\ufffd"]) == "b"


def test_pieces_never_take_anything_back() -> None:
    """Random texts and stop strings: the pieces are exactly the text, which is decoded whole and cut."""
    rng = random.Random(3)
    stops_hit = 0
    for _ in range(300):
        tokens = [rng.choice([rng.randrange(97, 101), 0xC3, 0xA9, word("ab"), word("abc"), END]) for _ in range(12)]
        stop = ["".join(rng.choice("abcd") for _ in range(rng.randrange(1, 4))) for _ in range(rng.randrange(3))]
        whole = BYTES.decode(tokens, skip_special_tokens=True)
        text = text_of(BYTES, [65], tokens, stop)
        pieces = stream(tokens, stop)
        assert "".join(pieces) == text
        hits = [whole.index(one) for one in stop if one in whole]
        stops_hit += bool(hits)
        assert text == whole or (
            hits and whole.startswith(text) and any(whole[len(text) :].startswith(s) for s in stop)
        )
    assert stops_hit > 50


def test_text_of_single_characters() -> None:
    tokenizer = tiny_tokenizer()
    tokens = [2, 3, 4, 1, 5]
    assert text_of(tokenizer, [9], tokens) == "abc d"
    assert text_of(tokenizer, [9], []) == ""


def test_the_demo_tokenizer_keeps_spaces() -> None:
    with fastllm_core.load("demo", "plain", config={}) as pipeline:
        tokenizer = pipeline.target.tokenizer
        assert tokenizer is not None
        whole = 'Once upon a time, there was a little dog. It said: "Hello!"\n\nHe ran — far away. Ünïcode 😀 too.'
        ids = tokenizer(whole).input_ids
        for cut in range(1, len(ids)):
            before = tokenizer.decode(ids[:cut], skip_special_tokens=True)
            if "\ufffd" not in before:
                assert before + text_of(tokenizer, ids[:cut], ids[cut:]) == tokenizer.decode(
                    ids, skip_special_tokens=True
                )
