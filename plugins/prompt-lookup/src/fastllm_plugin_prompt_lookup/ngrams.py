"""All n-grams of one size in a text: by hash the place where one stands, by links the other places.

Plain integers in flat arrays: 10 to 16 bytes for each n-gram, where a dict of tuples takes well over a hundred.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator


class Ngrams:
    """An n-gram is `tokens[end - size : end]`, named by its `end`. 0 is no n-gram's end, and so means none."""

    def __init__(self, tokens: array[int], size: int, capacity: int, *, forward: bool) -> None:
        """tokens: the text, which may grow to `capacity` tokens.  size: n, at least 1.

        forward: of places with the same n-gram the first is found first, otherwise the latest.
        """
        self.size = size
        self._tokens = tokens
        self._forward = forward
        slots = 1 << (capacity * 3 // 2).bit_length()  # at most two thirds full, so that probes stay short
        self._mask = slots - 1
        self._latest = array("i", [0]) * slots
        self._links = array("i", [0]) * (capacity + 1)

    def add(self, end: int) -> None:
        """Take in the n-gram that ends there; ends come in order."""
        slot = self._slot(self._tokens[end - self.size : end])
        latest = self._latest[slot]
        if not self._forward:
            self._links[end] = latest
        elif latest:  # a ring: the latest leads to the first
            self._links[end], self._links[latest] = self._links[latest], end
        else:
            self._links[end] = end
        self._latest[slot] = end

    def ends(self, gram: array[int]) -> Iterator[int]:
        """Where an n-gram of this size stands, from the first or from the latest."""
        latest = self._latest[self._slot(gram)]
        end = self._links[latest] if self._forward else latest
        while end:
            yield end
            if self._forward and end == latest:
                return
            end = self._links[end]

    def _slot(self, gram: array[int]) -> int:
        """The slot of an n-gram: the one that holds it, else the free one where it belongs."""
        slot = hash(tuple(gram)) & self._mask
        while (end := self._latest[slot]) and self._tokens[end - self.size : end] != gram:
            slot = (slot + 1) & self._mask
        return slot
