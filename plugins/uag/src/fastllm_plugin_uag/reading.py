"""A text as the drafter reads it: the target's committed tokens in the drafter's own.

The text is exact: bytes of tokens, strung together. So there are no windows to decode, nothing to align, and no spaces
to clean up. A character whose bytes are not all there is held back.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .vocabulary import Vocabulary

SHORTEST: Final = 64
"""Characters of the shortest stretch whose tokens are fixed; what is behind the last one is tokenized in each round."""


@dataclass(slots=True)
class Edge:
    """Where one side's text begins anew: at its start, and behind every special token."""

    fresh: bool = True
    """Nothing has been written there yet."""
    first: bool = True
    """Nor anything before."""

    def move(self) -> None:
        """A special token was written."""
        self.first, self.fresh = self.first and self.fresh, True


class Reading:
    """One growing text. What it says is a function of the committed tokens alone, however they came in."""

    def __init__(self, target: Vocabulary, drafter: Vocabulary, specials: dict[int, int]) -> None:
        """specials: the drafter's special token for each of the target's that has one."""
        self.target, self.drafter, self.specials = target, drafter, specials
        self.count = 0
        """Tokens of the target that have been read."""
        self.ids: list[int] = []
        """The text in the drafter's tokens."""
        self._theirs, self._ours = Edge(), Edge()
        self._begun = False
        self._fixed: list[int] = []
        self._open = ""
        self._leads = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def pending(self) -> bytes:
        """Bytes of the character that is held back."""
        return self._decoder.getstate()[0]

    @property
    def target_leads(self) -> bool:
        """Whether text begins here for the target, and it would write a space in front that does not count."""
        return self._theirs.fresh and self.target.lead.due(self._theirs.first)

    @property
    def drafter_leads(self) -> bool:
        """Whether text begins here for the drafter, and it would write a space in front that does not count."""
        return self._ours.fresh and self.drafter.lead.due(self._ours.first)

    def read(self, tokens: Sequence[int]) -> None:
        """Go on to the end of the target's tokens, of which those that were read before are the first."""
        if len(tokens) <= self.count:
            return
        for token in tokens[self.count :]:
            if token in self.specials:
                self._special(self.specials[token])
            elif token in self.target.specials:
                self._named(token)
            else:
                self._word(self.target.pieces.get(token, b""))
        self.count = len(tokens)
        self._fix()
        self.ids = self._so_far()

    def _word(self, piece: bytes) -> None:
        """Text goes on."""
        self._begin()
        if piece and self.target_leads:
            piece, self._theirs.fresh = piece.removeprefix(b" "), False
        self._theirs.fresh = self._theirs.fresh and not piece
        self._write(self._decoder.decode(piece), begins=bool(piece))

    def _special(self, token: int) -> None:
        """A special token that the drafter has as well ends a stretch of text."""
        if token not in self.drafter.opening:
            self._begin()
        self._begun = True
        self._end_of_stretch()
        self._fixed = [*self._so_far(), token]
        self._open = ""
        self._ours.move()
        self._theirs.move()

    def _named(self, token: int) -> None:
        """One that the drafter lacks is written out. Only where text begins is it what the drafter begins with."""
        if not self._begun and token == self.target.roles.get("bos_token_id"):
            self._begin()
            return
        self._begin()
        self._end_of_stretch()
        self._write(self.target.specials[token], begins=True)
        self._theirs.move()

    def _begin(self) -> None:
        if not self._begun:
            self._fixed += self.drafter.opening
        self._begun = True

    def _end_of_stretch(self) -> None:
        """Bytes that wait for others wait in vain."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        self._write(rest, begins=bool(rest))

    def _write(self, text: str, *, begins: bool) -> None:
        """begins: if text began here, it has now, though its first character may be held back."""
        if not self._open and begins and self._ours.fresh:
            self._leads = self.drafter_leads
        self._ours.fresh = self._ours.fresh and not begins
        self._open += text

    def _so_far(self) -> list[int]:
        return [*self._fixed, *self.drafter.known(self.drafter.encode(self._open, self._leads))]

    def _fix(self) -> None:
        """Fix the tokens of whole stretches: each ends at the first safe place behind `SHORTEST` characters."""
        if self.drafter.cuts is None:
            return
        while cut := self.drafter.cuts.search(self._open, SHORTEST):
            rest = self._open[cut.start() :]
            self._open = self._open[: cut.start()]
            self._fixed, self._open, self._leads = self._so_far(), rest, False
