"""Texts beside the request's own, to look things up in: files, or what the pipeline has written before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fastllm_core import ConfigError

from .index import BREAK, Index

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHARACTERS: Final = 1 << 16
"""What is given to the tokenizer at once."""


class Memory:
    """The latest texts, at most `limit` tokens of them.

    Two indexes take turns: when the newer is full, the older is dropped and a new one begun. So nothing is ever taken
    out of an index, and between half the limit and all of it is remembered.
    """

    def __init__(self, make: Callable[[int], Index], limit: int) -> None:
        """make: an empty index for so many tokens.  limit: at least 4."""
        self._make = make
        self._half = limit // 2
        self.indexes = [make(self._half)]
        """The newer one first."""

    def add(self, tokens: Sequence[int]) -> None:
        """Remember a text; of one that is too long, its end."""
        text = tokens[-(self._half - 1) :]
        if len(self.indexes[0]) + len(text) + 1 > self._half:
            self.indexes = [self._make(self._half), self.indexes[0]]
        self.indexes[0].extend([*text, BREAK])


def read(
    files: Iterable[str], tokenizer: PreTrainedTokenizerBase, vocab_size: int, limit: int
) -> tuple[list[int], bool]:
    """Tokens of text files with a break behind each, at most `limit` of them, and whether that was all.

    vocab_size: of the model; an id beyond it cannot be drafted, so there is a break in its place.
    Raises ConfigError if a file cannot be read to where it is needed.
    """
    tokens = chain.from_iterable(_tokens(Path(file).expanduser(), tokenizer) for file in files)
    kept = [token if token < vocab_size else BREAK for token in islice(tokens, limit - 1)]
    return [*kept, BREAK], next(tokens, None) is None


def _tokens(file: Path, tokenizer: PreTrainedTokenizerBase) -> Iterator[int]:
    """A file's tokens, piece by piece, so that no more is read than is kept; then a break."""
    try:
        with file.open(encoding="utf-8") as lines:
            while piece := "".join(lines.readlines(CHARACTERS)):
                yield from tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"options.prompt-lookup.corpus: cannot read '{file}': {reason}") from error
    yield BREAK
