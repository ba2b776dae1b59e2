"""How often look-ups were right, by how much of the text they matched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

SIZES: Final = (1, 2, 3, 4, 5, 9)
"""Where classes of matches begin, in tokens: a longer match is more often right."""
FARTHEST: Final = SIZES[-1]
"""A match is not followed back beyond so many tokens."""
PRIOR: Final = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
"""What is expected of each class before anything is known."""
WEIGHT: Final = 4.0
"""So many tokens the prior counts for."""
MEMORY: Final = 0.95
"""How much of a class's counts survives its next look-up."""


class Record:
    """Of one row. Every look-up counts, verified or not: the text that came shows whether it was right."""

    def __init__(self) -> None:
        """Nothing has been looked up."""
        self._counts = [(WEIGHT * prior, WEIGHT) for prior in PRIOR]

    def expected(self, matched: int) -> float:
        """How likely a token is right after a match of so many tokens, 0..1."""
        right, looked_at = self._counts[_class(matched)]
        return right / looked_at

    def count(self, matched: int, found: Sequence[int], came: Sequence[int]) -> None:
        """After a match of so many tokens this was found, and this is what came."""
        shown = min(len(found), len(came))
        right = next((i for i in range(shown) if found[i] != came[i]), shown)
        old, tested = self._counts[_class(matched)]
        self._counts[_class(matched)] = (MEMORY * old + right, MEMORY * tested + min(right + 1, shown))


def _class(matched: int) -> int:
    return sum(size <= matched for size in SIZES) - 1
