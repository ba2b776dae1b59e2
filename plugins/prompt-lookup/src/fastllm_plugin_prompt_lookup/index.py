"""An index of the n-grams of a growing text, and what followed them."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final, Literal

from .ngrams import Ngrams

Pick = Literal["recent", "first", "frequent"]

BREAK: Final = -1
"""Stands between texts that do not continue each other; no token's id."""
VOTERS: Final = 32
"""The latest places that have a say in what is frequent: a bound, so that a look-up takes as long in any text."""


class Index:
    """Where the n-grams of some sizes stand: O(sizes) work for each new token and for each look-up.

    An n-gram is known as soon as a token follows it, so the end of the text is never found as its own match.
    """

    def __init__(self, sizes: Sequence[int], capacity: int, pick: Pick) -> None:
        """sizes: lengths of n-grams, ascending, from at least 1.  capacity: the most tokens, breaks included.

        pick: of several places, which comes first: the latest ("recent"), the first, or the latest after which came
        the token that came most often ("frequent").
        """
        self.tokens = array("i")
        self.capacity = capacity
        self.pick = pick
        self._tables = {size: Ngrams(self.tokens, size, capacity, forward=pick == "first") for size in sizes}

    def __len__(self) -> int:
        """Tokens and breaks."""
        return len(self.tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens, or a `BREAK` where a text ends. Raises IndexError above the capacity."""
        known = len(self.tokens)
        self.tokens.extend(tokens)
        for end in range(known, len(self.tokens)):
            if self.tokens[end] != BREAK:
                for size, table in self._tables.items():
                    if size <= end:
                        table.add(end)

    def ends(self, gram: array[int]) -> Iterable[int]:
        """Places behind an n-gram, whose length is one of the sizes, in the order of `pick`."""
        found = self._tables[len(gram)].ends(gram)
        if self.pick != "frequent":
            return found
        latest = list(islice(found, VOTERS))
        votes = Counter(self.tokens[end] for end in latest)
        return sorted(latest, key=lambda end: -votes[self.tokens[end]])  # stable: of equals the latest

    def copy(self, end: int, count: int) -> list[int]:
        """At most `count` of the tokens that stand at a place and behind it, up to a break.

        A copy that reaches the end of the text goes on into itself, as those of LZ77 do: what has come round once is
        guessed to come round again.
        """
        piece = self.tokens[end : end + count].tolist()
        if BREAK in piece:
            return piece[: piece.index(BREAK)]
        return (piece * -(-count // len(piece)))[:count]
