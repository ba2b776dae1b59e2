"""What rounds cost: seconds of each sub-layer in a drafted token, of what a draft takes once, and of verifying it.

With these, the speed of any skip set follows from its acceptance, and no set need be compiled to be tried.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..skipset import SkipSet


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds, as they pass in real rounds: with all that is done around forwards."""

    attention: tuple[float, ...]
    """Of each layer's attention, in a drafted token."""
    mlp: tuple[float, ...]
    """Of each layer's MLP, in a drafted token."""
    rest: float
    """Of what remains of it when every layer is skipped whole: embedding, head, choosing a token."""
    rows: Mapping[int, float]
    """Of a round behind its draft (verification, acceptance, counting), by the rows verified; 1 is a plain round."""
    shell: float = 0.0
    """Of a layer of which a part is skipped, or nothing: its norms. A layer that is skipped whole is passed by."""
    begin: float = 0.0
    """Of a draft, whatever its length."""

    def __post_init__(self) -> None:
        """Raise ValueError if these are no costs."""
        if 1 not in self.rows or len(self.attention) != len(self.mlp) or not self.attention:
            raise ValueError("costs need attention and mlp of every layer, and rows that include 1")
        times = (*self.attention, *self.mlp, self.rest, self.shell, self.begin, *self.rows.values())
        if min(times) < 0 or self.plain <= 0:
            raise ValueError("costs must not be negative, nor a round free")

    @property
    def layers(self) -> int:
        """L."""
        return len(self.attention)

    @property
    def plain(self) -> float:
        """A round of plain decoding: one token."""
        return self.rows[1]

    def step(self, skipped: SkipSet) -> float:
        """One more drafted token."""
        passed = skipped.attention & skipped.mlp
        attention = sum(cost for layer, cost in enumerate(self.attention) if layer not in skipped.attention)
        mlp = sum(cost for layer, cost in enumerate(self.mlp) if layer not in skipped.mlp)
        return self.rest + attention + mlp + self.shell * (self.layers - len(passed))

    def draft(self, skipped: SkipSet, length: int) -> float:
        """A draft. Before an early exit the last token is read by the first layers as well."""
        return self.begin + length * self.step(skipped) + self._lower(skipped)

    def ratio(self, skipped: SkipSet, length: int) -> float:
        """c: a drafted token, with its share of what a draft takes once, against one that is decoded plainly."""
        return self.draft(skipped, length) / length / self.plain

    def verify(self, skipped: SkipSet, length: int) -> float:
        """A round behind its draft. Behind an early exit only the upper layers run."""
        round_ = self._behind(length + 1)
        whole = self.step(SkipSet())
        forward = max(round_ - max(self.plain - whole, 0.0), 0.0)
        return round_ - forward * self._lower(skipped) / whole

    def speedup(self, skipped: SkipSet, acceptance: float, length: int) -> float:
        """Expected tokens per second against plain decoding's, drafting `length` tokens in every round.

        Source: arXiv:2211.17192, equation 1 and theorem 3.8, with measured times in place of one ratio.
        """
        tokens = expected_tokens(acceptance, length)
        return tokens * self.plain / (self.draft(skipped, length) + self.verify(skipped, length))

    def best_length(self, skipped: SkipSet, acceptance: float, longest: int) -> int:
        """The draft length, 1..longest, at which that is largest."""
        return max(range(1, longest + 1), key=lambda length: self.speedup(skipped, acceptance, length))

    def _lower(self, skipped: SkipSet) -> float:
        """The layers before an early exit, over one row; 0 where there is none."""
        exit_layer = skipped.exit_layer(self.layers) or 0
        return sum(self.attention[:exit_layer]) + sum(self.mlp[:exit_layer]) + exit_layer * self.shell

    def _behind(self, rows: int) -> float:
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
            float(value["shell"]),
            float(value["begin"]),
        )


def expected_tokens(acceptance: float, length: int) -> float:
    """Mean tokens of a round that drafts `length`, accepted with equal chances (arXiv:2211.17192, equation 1)."""
    if acceptance >= 1.0:
        return length + 1.0
    return float((1.0 - acceptance ** (length + 1)) / (1.0 - acceptance))
