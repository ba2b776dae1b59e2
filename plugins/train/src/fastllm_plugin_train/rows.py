"""Documents packed into rows of one length, and the order in which rows are learned.

The order is a function of the seed and the step alone, so that a run that goes on needs no memory of it.
Shapes: N rows, S tokens of a row, B rows of a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastllm_core import ConfigError

from .data import Text

OPEN = 16
"""Rows that wait for a document that fits."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Packed documents."""

    tokens: Tensor
    """int32[N, S]"""
    documents: Tensor
    """int16[N, S]: which document of its row each token belongs to, -1 for padding."""
    positions: Tensor
    """int32[N, S]"""
    answers: Tensor
    """bool[N, S]"""

    def __len__(self) -> int:
        """N."""
        return len(self.tokens)

    def take(self, index: Tensor) -> Rows:
        """Some of them. index: int64[any]."""
        return Rows(self.tokens[index], self.documents[index], self.positions[index], self.answers[index])

    def batch(self, step: int, size: int, seed: int) -> Rows:
        """The rows of a step: every row once before any comes again, in an order of each epoch's own."""
        places = torch.arange(step * size, (step + 1) * size)
        epochs, within = places // len(self), places % len(self)
        orders = {epoch: _order(len(self), seed, epoch) for epoch in {*epochs.tolist()}}
        return self.take(
            torch.tensor([int(orders[int(e)][w]) for e, w in zip(epochs.tolist(), within.tolist(), strict=True)])
        )

    def digest(self) -> str:
        """A hash of everything."""
        import hashlib

        digest = hashlib.sha256()
        for part in (self.tokens, self.documents, self.answers):
            digest.update(part.contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]


def _order(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))


def pack(texts: Iterable[Text], length: int) -> Rows:
    """Pack texts into rows, the first open row that has room taking each; what is longer than a row is cut into pieces.

    Raises ConfigError if nothing is to be learned in them.
    """
    rows: list[list[Text]] = []
    opened: list[tuple[int, int]] = []  # index, room
    for text in texts:
        for start in range(0, len(text.tokens), length):
            piece = Text(text.tokens[start : start + length], text.answers[start : start + length])
            if len(piece.tokens) > 1 and any(piece.answers[1:]):
                _place(piece, rows, opened, length)
    if not rows:
        raise ConfigError("--data: nothing is to be learned in it: no document has an answer of two tokens")
    return packed(rows, length)


def _place(piece: Text, rows: list[list[Text]], opened: list[tuple[int, int]], length: int) -> None:
    size = len(piece.tokens)
    for at, (index, room) in enumerate(opened):
        if room >= size:
            rows[index].append(piece)
            opened[at] = (index, room - size)
            return
    rows.append([piece])
    opened.append((len(rows) - 1, length - size))
    if len(opened) > OPEN:
        opened.remove(min(opened, key=lambda pair: pair[1]))


def packed(rows: Sequence[Sequence[Text]], length: int) -> Rows:
    """Rows of texts side by side, as tensors."""
    shape = (len(rows), length)
    tokens = torch.zeros(shape, dtype=torch.int32)
    documents = torch.full(shape, -1, dtype=torch.int16)
    positions = torch.zeros(shape, dtype=torch.int32)
    answers = torch.zeros(shape, dtype=torch.bool)
    for number, row in enumerate(rows):
        at = 0
        for index, text in enumerate(row):
            end = at + len(text.tokens)
            tokens[number, at:end] = torch.tensor(text.tokens, dtype=torch.int32)
            documents[number, at:end] = index
            positions[number, at:end] = torch.arange(end - at, dtype=torch.int32)
            answers[number, at:end] = torch.tensor(text.answers)
            at = end
    return Rows(tokens, documents, positions, answers)


def split(rows: Rows, share: float, most: int, seed: int) -> tuple[Rows, Rows]:
    """Rows to learn from, and rows that are held out: a share of them, at least one and at most `most`."""
    if len(rows) < 2:
        raise ConfigError("--data: fills a single row, and one must be held out: give more, or a smaller --length")
    held = max(1, min(most, round(share * len(rows))))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return rows.take(order[held:].sort().values), rows.take(order[:held])
