"""A text as the drafter reads it: the target's committed tokens in the drafter's own.

The text is exact: bytes of tokens, strung together. So there are no windows to decode, nothing to align, and no spaces
to clean up. A character whose bytes are not all there is held back.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Final

from .vocabulary import Vocabulary

SHORTEST: Final = 64
"""Characters of the shortest stretch whose tokens are fixed; what is behind the last one is tokenized in each round."""


class Reading:
    """One growing text. What it says is a function of the committed tokens alone, however they came in."""

    def __init__(self, target: Vocabulary, drafter: Vocabulary, specials: dict[int, int]) -> None:
        """specials: the drafter's special token for each of the target's that has one."""
        self.target, self.drafter, self.specials = target, drafter, specials
        self.count = 0
        """Tokens of the target that have been read."""
        self.fresh = True
        """The target has written nothing since the text began, or since the last special token."""
        self.blank = True
        """Nor is there any text since then; the target may have written a space that does not count."""
        self.first = True
        """No text stands before that."""
        self.ids: list[int] = []
        """The text in the drafter's tokens."""
        self._fixed: list[int] = []
        self._open = ""
        self._opens = True
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def pending(self) -> bytes:
        """Bytes of the character that is held back."""
        return self._decoder.getstate()[0]

    def read(self, tokens: Sequence[int]) -> None:
        """Go on to the end of the target's tokens, of which those that were read before are the first."""
        for token in tokens[self.count :]:
            if token in self.specials:
                self._special(self.specials[token])
            else:  # a special token that the drafter lacks is written out
                self._append(self.target.pieces.get(token, b""))
        if len(tokens) > self.count:
            self.count = len(tokens)
            self._fix()
            self.ids = self._so_far()

    def _so_far(self) -> list[int]:
        return [*self._fixed, *self.drafter.encode(self._open, self._opens and self.drafter.lead.due(self.first))]

    def _append(self, piece: bytes) -> None:
        if not self._fixed and not self._open:
            self._fixed += self.drafter.opening
        if self.fresh and piece:
            self.fresh = False
            if self.target.lead.due(self.first):
                piece = piece.removeprefix(b" ")
        self.blank = self.blank and not piece
        self._open += self._decoder.decode(piece)

    def _special(self, token: int) -> None:
        """End the stretch of text, if there is one, and begin another behind the token."""
        if not self._fixed and not self._open and token not in self.drafter.opening:
            self._fixed += self.drafter.opening
        self._open += self._decoder.decode(b"", final=True)
        self._decoder.reset()
        self._fixed = [*self._so_far(), token]
        self.first = self.first and self.blank
        self._open, self._opens, self.fresh, self.blank = "", True, True, True

    def _fix(self) -> None:
        """Fix the tokens of whole stretches: each ends at the first safe place behind `SHORTEST` characters."""
        if self.drafter.cuts is None:
            return
        while cut := self.drafter.cuts.search(self._open, SHORTEST):
            rest = self._open[cut.start() :]
            self._open = self._open[: cut.start()]
            self._fixed, self._open, self._opens = self._so_far(), rest, False
