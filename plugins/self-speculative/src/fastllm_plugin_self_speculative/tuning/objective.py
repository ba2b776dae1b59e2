"""What a search makes as large as it can."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from ..skipset import SkipSet
from .agreement import Agreement
from .costs import Costs
from .trial import Score

OBJECTIVES: Final = ("predicted", "measured", "acceptance")
"""Names, the default first."""


class Objective(Protocol):
    """Scores a skip set."""

    def score(self, skipped: SkipSet) -> Score:
        """Its figures, of which `value` is to be made large."""
        ...


class Predicted(Objective):
    """Speed against plain decoding, from acceptance and measured costs in closed form: deterministic, and quick."""

    def __init__(self, agreement: Agreement, costs: Costs, longest: int) -> None:
        """longest: tokens of the longest draft."""
        self.agreement, self.costs, self.longest = agreement, costs, longest

    def score(self, skipped: SkipSet) -> Score:
        """At the draft length that suits the set best."""
        acceptance = self.agreement.of(skipped)
        length = self.costs.best_length(skipped, acceptance, self.longest)
        value = self.costs.speedup(skipped, acceptance, length)
        return Score(value, acceptance, self.costs.ratio(skipped, length), length)


class Accepted(Objective):
    """Acceptance alone, among sets whose drafts cost no more than a share of plain decoding.

    Without a limit nothing would be skipped, since that is accepted whole.
    """

    def __init__(self, agreement: Agreement, costs: Costs, longest: int, most: float) -> None:
        """most: the limit of `Costs.ratio`."""
        self.inner, self.most = Predicted(agreement, costs, longest), most

    def score(self, skipped: SkipSet) -> Score:
        """Acceptance, or, below 0, by how much a set costs too much."""
        found = self.inner.score(skipped)
        value = found.acceptance if found.cost <= self.most else self.most - found.cost
        return Score(value, found.acceptance, found.cost, found.length)


class Measured(Objective):
    """Speed against plain decoding, measured on real texts, as in the paper. Slow, and never twice the same."""

    def __init__(self, predicted: Predicted, race: Callable[[SkipSet, int], float]) -> None:
        """race: (set, draft length) -> tokens per second against plain decoding's."""
        self.predicted, self.race = predicted, race

    def score(self, skipped: SkipSet) -> Score:
        """At the draft length that is predicted to suit the set best; plain decoding stands for the empty set."""
        found = self.predicted.score(skipped)
        value = self.race(skipped, found.length) if skipped else 1.0
        return Score(value, found.acceptance, found.cost, found.length)
