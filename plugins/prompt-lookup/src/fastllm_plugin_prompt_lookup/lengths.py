"""How long a row's drafts are worth being."""

from __future__ import annotations

from typing import Final

START: Final = 4
"""Tokens of a row's first draft."""


class Lengths:
    """A length for each row: two more after a draft that was accepted whole, one less after any other.

    Source: the schedule of assisted generation in transformers.
    """

    def __init__(self) -> None:
        """Every row starts alike."""
        self._lengths: dict[int, int] = {}

    def of(self, row: int, most: int) -> int:
        """Tokens that a row, by id, should draft now, at most `most`."""
        return min(self._lengths.get(row, START), most)

    def observe(self, row: int, drafted: int, accepted: int) -> None:
        """A draft of at least one token was decided; one that was cut short shows less than a long one would."""
        if accepted < drafted:
            self._lengths[row] = max(drafted - 1, 1)
        else:
            self._lengths[row] = max(self._lengths.get(row, START), drafted + 2)

    def release(self, row: int) -> None:
        """Forget a row."""
        self._lengths.pop(row, None)
