"""Which live row stands in which slot of every cache.

Rows that take part in rounds stand in slots 0, 1, ... without a gap, so that a round is a slice of each cache; behind
them stand those whose prompts are being read (docs/decisions/0004).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from .rows import LiveRow

if TYPE_CHECKING:
    from .protocols import KVCache


class Slots:
    """The live rows in slot order, and the caches whose rows follow them."""

    def __init__(self, caches: Sequence[KVCache]) -> None:
        """caches: the target's and the drafter's."""
        self.caches = tuple(caches)
        self.rows: list[LiveRow] = []

    def ready(self) -> list[LiveRow]:
        """The rows that take part in rounds. One that is ready early (a prompt of one token) waits for its elders."""
        return list(takewhile(lambda row: row.ready, self.rows))

    def sibling(self, row: LiveRow) -> LiveRow | None:
        """A row that has read the prompt that this one has yet to read."""
        if row.shared is None:
            return None
        return next((other for other in self.rows if other.shared is row.shared and other.ready), None)

    def join(self, row: LiveRow) -> None:
        """Give a row the next slot."""
        row.slot = len(self.rows)
        self.rows.append(row)

    def reserve(self, row: LiveRow, length: int) -> None:
        """Make room for so many tokens of a row that has joined, and forget what was in its slot."""
        for cache in self.caches:
            cache.reserve(row.slot + 1, length)
            cache.release(row.slot)

    def leave(self, row: LiveRow) -> None:
        """Free a row's slot: the last ready row takes it, and rows being read move up by one."""
        gap = row.slot
        last = max((other.slot for other in self.ready()), default=-1)
        if last > gap:
            gap = self._move(self.rows[last], gap)
        for other in [other for other in self.rows if other.slot > gap and other is not row]:
            gap = self._move(other, gap)
        for cache in self.caches:
            cache.release(gap)
        self.rows.remove(row)
        self.rows.sort(key=lambda other: other.slot)

    def _move(self, row: LiveRow, slot: int) -> int:
        """Move a row into a free slot; returns the slot that it leaves."""
        left, row.slot = row.slot, slot
        for cache in self.caches:
            cache.move(left, slot)
        return left
