"""What rounds cost: seconds of each sub-layer over one row, of forwards of a few rows, and of the work around them.

With these, the speed of any skip set follows from its acceptance, and no set need be compiled to be tried.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..skipset import SkipSet


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds."""

    attention: tuple[float, ...]
    """Of each layer's attention, in a forward of one row."""
    mlp: tuple[float, ...]
    """Of each layer's MLP, in a forward of one row."""
    rest: float
    """Of what remains of that forward: embedding, norms, head."""
    rows: Mapping[int, float]
    """Of a forward of the whole model, by its rows; 1 is among them."""
    round: float = 0.0
    """Of what a round does outside forwards."""

    def __post_init__(self) -> None:
        """Raise ValueError if these are no costs."""
        if 1 not in self.rows or len(self.attention) != len(self.mlp) or not self.attention:
            raise ValueError("costs need attention and mlp of every layer, and rows that include 1")
        if min(*self.attention, *self.mlp, self.rest, self.round, *self.rows.values()) < 0 or self.plain <= 0:
            raise ValueError("costs must not be negative, nor a round free")

    @property
    def layers(self) -> int:
        """L."""
        return len(self.attention)

    @property
    def plain(self) -> float:
        """A round of plain decoding: one token."""
        return self.rows[1] + self.round

    def draft(self, skipped: SkipSet) -> float:
        """One drafted token."""
        attention = sum(cost for layer, cost in enumerate(self.attention) if layer not in skipped.attention)
        mlp = sum(cost for layer, cost in enumerate(self.mlp) if layer not in skipped.mlp)
        return self.rest + attention + mlp

    def ratio(self, skipped: SkipSet) -> float:
        """c: one drafted token against one that is decoded plainly."""
        return self.draft(skipped) / self.plain

    def verify(self, skipped: SkipSet, length: int) -> float:
        """A draft's verification. Behind an early exit only the upper layers run, and the last token's lower ones."""
        whole = self._forward(length + 1)
        exit_layer = skipped.exit_layer(self.layers)
        if exit_layer is None:
            return whole
        lower = sum(self.attention[:exit_layer]) + sum(self.mlp[:exit_layer])
        return whole * (1.0 - lower / self.draft(SkipSet())) + lower

    def speedup(self, skipped: SkipSet, acceptance: float, length: int) -> float:
        """Expected tokens per second against plain decoding's, drafting `length` tokens in every round.

        Source: arXiv:2211.17192, equation 1 and theorem 3.8, with measured times in place of one ratio.
        """
        tokens = expected_tokens(acceptance, length)
        return tokens * self.plain / (length * self.draft(skipped) + self.verify(skipped, length) + self.round)

    def best_length(self, skipped: SkipSet, acceptance: float, longest: int) -> int:
        """The draft length, 1..longest, at which that is largest."""
        return max(range(1, longest + 1), key=lambda length: self.speedup(skipped, acceptance, length))

    def _forward(self, rows: int) -> float:
        """Measured, or between the measured ones around it; beyond them, as the nearest."""
        known = sorted(self.rows)
        below = max((count for count in known if count <= rows), default=known[0])
        above = min((count for count in known if count >= rows), default=known[-1])
        if below == above:
            return self.rows[below]
        share = (rows - below) / (above - below)
        return self.rows[below] + share * (self.rows[above] - self.rows[below])

    def to_json(self) -> dict[str, Any]:
        """Everything."""
        return {**asdict(self), "rows": {str(rows): seconds for rows, seconds in self.rows.items()}}

    @classmethod
    def read(cls, value: Mapping[str, Any]) -> Costs:
        """From JSON. Raises KeyError, TypeError or ValueError if these are no costs."""
        return cls(
            tuple(map(float, value["attention"])),
            tuple(map(float, value["mlp"])),
            float(value["rest"]),
            {int(rows): float(seconds) for rows, seconds in value["rows"].items()},
            float(value.get("round", 0.0)),
        )


def expected_tokens(acceptance: float, length: int) -> float:
    """Mean tokens of a round that drafts `length`, accepted with equal chances (arXiv:2211.17192, equation 1)."""
    if acceptance >= 1.0:
        return length + 1.0
    return float((1.0 - acceptance ** (length + 1)) / (1.0 - acceptance))
