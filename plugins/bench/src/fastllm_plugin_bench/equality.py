"""Is the text plain decoding's? And if not: where do they part, and was it rounding that decided?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastllm_core import Generation, RunReport

from .arm import RowRun
from .recount import Limit, tokens_of

CONTEXT = 6
"""Tokens shown before the place where two texts part."""
AFTER = 4
"""Tokens shown from there on."""

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True)
class Parting:
    """The first place where a text is not plain decoding's."""

    question: str
    turn: int
    position: int
    """Generated tokens before it."""
    near_tie: bool
    before: str
    plain: str
    other: str


@dataclass(slots=True)
class Equality:
    """Texts of an arm beside plain decoding's."""

    compared: int = 0
    differing: int = 0
    near_ties: int = 0
    """Of these, texts that part where two tokens were as likely, up to rounding."""
    first: Parting | None = None
    """The first that is no near-tie, else the first."""

    @property
    def unexplained(self) -> int:
        """Differences that rounding does not explain."""
        return self.differing - self.near_ties

    def add(self, question: str, turn: int, plain: RowRun, other: RowRun, limit: Limit, decode: Decode) -> None:
        """Compare a text."""
        self.compared += 1
        mine, yours = _generation(plain, limit), _generation(other, limit)
        difference = mine.difference(yours)
        if difference is None:
            return
        at = difference.position
        parting = Parting(
            question,
            turn,
            at,
            difference.near_tie,
            decode(mine.token_ids[max(0, at - CONTEXT) : at]),
            decode(mine.token_ids[at : at + AFTER]),
            decode(yours.token_ids[at : at + AFTER]),
        )
        self.differing += 1
        self.near_ties += difference.near_tie
        if self.first is None or (self.first.near_tie and not difference.near_tie):
            self.first = parting


def _generation(row: RowRun, limit: Limit) -> Generation:
    report = RunReport(near_ties_at=list(row.near_ties_at))
    return Generation("", limit.cut(tokens_of(row)), "", (), report)
