"""One set of sub-layers that was tried, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..skipset import SkipSet


@dataclass(frozen=True, slots=True)
class Score:
    """What an objective says of a set."""

    value: float
    """What the search makes as large as it can."""
    acceptance: float
    """Share of drafted tokens that the target would have written itself, 0..1."""
    cost: float
    """Seconds of a drafted token, as a share of those of one that is decoded plainly."""
    length: int
    """The draft length at which the set does best."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A set and its score."""

    number: int
    phase: str
    """Why it was tried: "baseline", "alone", "prefix", "refine", "random", "greedy" or "all"."""
    skipped: SkipSet
    score: Score

    @property
    def value(self) -> float:
        """What the search makes as large as it can."""
        return self.score.value

    def to_json(self) -> dict[str, Any]:
        """As a line of a study."""
        return {
            "number": self.number,
            "phase": self.phase,
            "attention": sorted(self.skipped.attention),
            "mlp": sorted(self.skipped.mlp),
            "value": self.score.value,
            "acceptance": self.score.acceptance,
            "cost": self.score.cost,
            "length": self.score.length,
        }

    @classmethod
    def read(cls, line: Mapping[str, Any]) -> Trial:
        """From a line. Raises KeyError, TypeError or ValueError if it is none."""
        score = Score(float(line["value"]), float(line["acceptance"]), float(line["cost"]), int(line["length"]))
        return cls(int(line["number"]), str(line["phase"]), SkipSet.of(line["attention"], line["mlp"]), score)
