"""How long a row's drafts are worth being."""

from __future__ import annotations

from typing import Final

START: Final = 4
"""Tokens of a row's first draft."""


class Lengths:
    """A length for each row: twice as long after a draft that was accepted whole, half as long after any other.

    A text copies or it does not, so the length moves fast; powers of two are also the widths of forwards.
    """

    def __init__(self) -> None:
        """Every row starts alike."""
        self._lengths: dict[int, int] = {}

    def of(self, row: int, most: int) -> int:
        """Tokens that a row, by id, should draft now, at most `most`."""
        return min(self._lengths.get(row, START), most)

    def observe(self, row: int, drafted: int, accepted: int) -> None:
        """A draft of at least one token was decided."""
        if accepted < drafted:
            self._lengths[row] = max(drafted // 2, 1)
        else:
            self._lengths[row] = max(self._lengths.get(row, START), 2 * drafted)

    def release(self, row: int) -> None:
        """Forget a row."""
        self._lengths.pop(row, None)
