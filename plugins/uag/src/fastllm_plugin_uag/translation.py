"""What the drafter said, in the target's tokens."""

from __future__ import annotations

from collections.abc import Sequence

from .reading import Reading


def translate(reading: Reading, drafted: Sequence[int], specials: dict[int, int]) -> list[int]:
    """The target's tokens for what is drafted behind a text; empty if it contradicts the text.

    drafted: the drafter's tokens.  specials: the target's special token for each of the drafter's that has one.
    Only the drafted text is tokenized. Its first token begins where the last committed one ends, and whatever the
    target would have merged across that place, it has not.
    """
    target = reading.target
    words, ending = _words(reading, drafted, specials)
    if reading.drafter_leads:
        words = words.removeprefix(b" ")
    if not words.startswith(reading.pending):
        return []
    started = _rest_of_character(words, len(reading.pending))
    begun = target.spell(words[len(reading.pending) : started]) if reading.pending else []
    if reading.pending and not begun:
        return []
    text, rest = _whole_characters(words[started:])
    tokens = [*begun, *target.encode(text, reading.target_leads)]
    unknown = target.roles.get("unk_token_id")
    if unknown in tokens:  # the target has no token for what comes here
        return tokens[: tokens.index(unknown)]
    return [*tokens, *target.spell(rest), *ending]


def _words(reading: Reading, drafted: Sequence[int], specials: dict[int, int]) -> tuple[bytes, list[int]]:
    """The text that is drafted, and the target's token for the special one that ends it, if one does."""
    text: list[bytes] = []
    for token in drafted:
        if token not in reading.drafter.words:
            return b"".join(text), [specials[token]] if token in specials else []
        text.append(reading.drafter.words[token])
    return b"".join(text), []


def _rest_of_character(words: bytes, pending: int) -> int:
    """Where the character ends that the first `pending` bytes begin."""
    end = pending
    while pending and end < len(words) and words[end] & 0xC0 == 0x80:
        end += 1
    return end


def _whole_characters(words: bytes) -> tuple[str, bytes]:
    """The text up to where it ends or is none, and behind it the bytes of a character that has begun."""
    try:
        return words.decode(), b""
    except UnicodeDecodeError as error:
        text, rest = words[: error.start].decode(), words[error.start :]
        return text, rest if error.end == len(words) and error.reason == "unexpected end of data" else b""
