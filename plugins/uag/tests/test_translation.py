"""What the drafter said comes out in the target's tokens, to the byte."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastllm_plugin_uag.reading import Reading
from fastllm_plugin_uag.translation import translate
from fastllm_plugin_uag.vocabulary import Vocabulary

KINDS = ["byte-level", "unigram", "byte-fallback", "stories-512", "stories-4096"]
PAIRS = [(one, other) for one in KINDS for other in KINDS if one != other]
WORDS = [" the", " Once", "upon", " ", "  ", "\n", "\t", "🙂", "👩\u200d👩", "你好", "é", " 12345", "!", "ing", "\x00"]
texts = st.lists(st.sampled_from(WORDS) | st.text(max_size=2).filter(lambda text: "\ufffd" not in text), max_size=12)
pairs = pytest.mark.parametrize(("target", "drafter"), PAIRS)
few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def reading(target: Vocabulary, drafter: Vocabulary, tokens: list[int]) -> Reading:
    made = Reading(target, drafter, target.counterparts(drafter, "bos_token_id"))
    made.read(tokens)
    return made


def translated(reading: Reading, drafted: list[int]) -> list[int]:
    return translate(reading, drafted, reading.drafter.counterparts(reading.target, "eos_token_id"))


@pairs
@few
@given(words=texts, place=st.floats(0, 1))
def test_drafted_text_is_said_to_the_byte(
    kinds: Any, target: str, drafter: str, words: list[str], place: float
) -> None:
    """Also from within a character, when the drafter says the same one again."""
    theirs, ours = kinds.vocabulary(target), kinds.vocabulary(drafter)
    text = "".join(words)
    tokens = theirs.encode(text, theirs.lead.due(first=True))
    whole = b"".join(theirs.words[token] for token in tokens)
    cut = int(place * len(tokens))
    made = reading(theirs, ours, tokens[:cut])
    said = whole[: len(b"".join(theirs.words[token] for token in tokens[:cut])) - len(made.pending)]
    rest = whole[len(said) :].decode()
    if made.target_leads:
        rest = rest.removeprefix(" ")
    drafted = ours.encode(rest, made.drafter_leads)
    answer = translated(made, drafted)
    assert b"".join(theirs.words[token] for token in [*tokens[:cut], *answer]) == whole
    if rest.startswith(" ") and rest.strip() and not rest.startswith("  ") and not made.target_leads:
        assert answer == tokens[cut:]  # a word begins here, so nothing was merged across


def test_a_draft_that_contradicts_the_held_back_bytes_is_none(kinds: Any) -> None:
    theirs, ours = kinds.vocabulary("stories-4096"), kinds.vocabulary("byte-level")
    made = reading(theirs, ours, theirs.encode("a🙂")[:-1])
    assert made.pending == "🙂".encode()[:3]
    assert translated(made, ours.encode("🙂 b")) == [theirs.encode("🙂")[-1], *theirs.encode(" b")]
    assert translated(made, ours.encode("b")) == []
    assert translated(made, ours.encode("👩 b")) == []
    assert translated(made, []) == []


def test_a_special_token_ends_a_draft(kinds: Any) -> None:
    theirs, ours = kinds.vocabulary("stories-4096"), kinds.vocabulary("byte-level")
    made = reading(theirs, ours, theirs.encode("Once", lead=True))
    names = {name: index for index, name in ours.specials.items()}
    end, mark = names["<|endoftext|>"], names["<|im_start|>"]
    there = ours.encode(" upon")
    assert translated(made, [*there, end, *there]) == [*theirs.encode(" upon"), theirs.roles["eos_token_id"]]
    assert translated(made, [*there, mark, *there]) == theirs.encode(" upon")
    assert translated(made, [*there, 10**6]) == theirs.encode(" upon")  # padding of the drafter's vocabulary


def test_a_text_that_begins_takes_the_targets_own_space(kinds: Any) -> None:
    """Behind a token that begins a text the first word has the target's mark, whatever the drafter's has."""
    theirs = kinds.vocabulary("stories-4096")
    for drafter in ("byte-level", "byte-fallback", "unigram"):
        ours = kinds.vocabulary(drafter)
        made = reading(theirs, ours, [theirs.roles["bos_token_id"]])
        drafted = ours.encode("Once upon", ours.lead.due(first=True))
        assert translated(made, drafted) == theirs.encode("Once upon", lead=True)


def test_the_begin_of_a_character_at_the_end_of_a_draft_is_drafted_too(kinds: Any) -> None:
    theirs, ours = kinds.vocabulary("stories-4096"), kinds.vocabulary("byte-fallback")
    made = reading(theirs, ours, theirs.encode("a"))
    drafted = ours.encode("b🙂")[:-2]
    assert translated(made, drafted) == theirs.encode("b🙂")[:-2]


def test_bytes_that_are_no_text_end_a_draft(kinds: Any) -> None:
    theirs, ours = kinds.vocabulary("stories-4096"), kinds.vocabulary("byte-fallback")
    made = reading(theirs, ours, theirs.encode("a"))
    wrong = [*ours.encode("b"), ours.spell(b"\xff")[0], *ours.encode("c")]
    assert translated(made, wrong) == theirs.encode("b")


def test_a_character_that_the_target_lacks_ends_a_draft(kinds: Any) -> None:
    theirs = Vocabulary(kinds.loaded(kinds.characters(20)), "model")
    ours = kinds.vocabulary("byte-level")
    made = reading(theirs, ours, theirs.encode("ab"))
    assert translated(made, ours.encode("cdZef")) == theirs.encode("cd")
