"""What each token of a vocabulary adds to a text, as bytes.

Every kind of tokenizer says it in another way: byte-level ones spell bytes as printable characters, SentencePiece ones
write a space as U+2581 and bytes as <0x0A>, WordPiece ones mark what continues a word. The bytes are the same for all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BYTE_TOKEN: Final = re.compile(r"<0x([0-9A-F]{2})>")


def types(part: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """A normalizer, pre-tokenizer or decoder of tokenizer.json, or those that it is a sequence of."""
    if part is None:
        return
    inner = [key for key in ("normalizers", "pretokenizers", "decoders") if key in part]
    if not inner:
        yield part
    for key in inner:
        for each in part[key]:
            yield from types(each)


def pieces(backend: Tokenizer, decoder: Mapping[str, Any] | None) -> dict[int, bytes]:
    """The bytes that each id adds in the middle of a text; of an added token, its content.

    decoder: what tokenizer.json says about it.
    """
    kinds = {part["type"] for part in types(decoder)}
    added = {index: token.content for index, token in backend.get_added_tokens_decoder().items()}
    names = {index: name for name, index in backend.get_vocab().items() if index not in added}
    made = {index: content.encode() for index, content in added.items()}
    if "ByteLevel" in kinds:
        return made | {index: spelled(name) for index, name in names.items()}
    for index in byte_tokens(names, decoder):
        made[index] = bytes.fromhex(names.pop(index)[3:5])
    return made | {index: text.encode() for index, text in _appended(backend, sorted(names)).items()}


def byte_tokens(names: Mapping[int, str], decoder: Mapping[str, Any] | None) -> frozenset[int]:
    """Ids that stand for one byte each, where characters that the vocabulary lacks are spelled in bytes."""
    if all(part["type"] != "ByteFallback" for part in types(decoder)):
        return frozenset()
    return frozenset(index for index, name in names.items() if BYTE_TOKEN.fullmatch(name))


def spelled(name: str) -> bytes:
    """The bytes that a byte-level tokenizer spells as these characters."""
    return b"".join(bytes([_BYTES[char]]) if char in _BYTES else char.encode() for char in name)


def _alphabet() -> dict[str, int]:
    """The byte of each character: printable ones of Latin-1 stand for themselves, the others, in order, from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTES: Final = _alphabet()


def _appended(backend: Tokenizer, ids: Sequence[int]) -> dict[int, str]:
    """What decoding shows behind another token: at the very start, many decoders leave a space out."""
    alone = backend.decode_batch([[index] for index in ids], skip_special_tokens=False)
    letters = (i for i, text in enumerate(alone) if text.isascii() and text.isalnum())
    first = next(letters, 0)
    texts = backend.decode_batch([[ids[first], index] for index in ids], skip_special_tokens=False)
    before = alone[first] if ids else ""
    return {
        index: text.removeprefix(before) if text.startswith(before) else own
        for index, text, own in zip(ids, texts, alone, strict=True)
    }
