"""Which set to try next: a function of what has been tried alone, so that an interrupted search goes on the same.

Cold Bayesian optimisation, and random search, end below the empty set where most sets are bad and there are 2 ** 2L of
them. So `Bayesian` starts from what costs little to know: the empty set, each sub-layer alone, and a sweep over how
many of them, in that order, may go at once. Only then does it refine, around where the sweep was best.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from random import Random
from typing import Final, Protocol

from ..skipset import SkipSet
from .space import Space, Values, union
from .suggestion import SAMPLERS, suggested
from .trial import Trial

Step = tuple[str, SkipSet]
"""The trial's phase, and what to skip."""

SMALL: Final = 128
"""Sets of a space that is tried whole. Not what a budget covers: a search that goes on with another budget must be the
same."""
SWEEP: Final = 16
"""Prefixes of the ranking that are tried before the sweep looks closer."""
WINDOW: Final = 12
"""Sub-layers to either side of the best prefix's end that are refined. What ranks far from it is settled."""
ATTEMPTS: Final = 20
"""Suggestions that may be known already before one is tried again all the same."""


class Strategy(Protocol):
    """A search."""

    def next(self, history: Sequence[Trial]) -> Step | None:
        """What to try after these trials; None if there is nothing left to try."""
        ...


class Everything(Strategy):
    """Every set of a small space, the empty one first."""

    def __init__(self, space: Space) -> None:
        """space: what to choose from."""
        sets = [SkipSet(), *(space.decode(values) for values in grid(space))]
        self._sets = list(dict.fromkeys(sets))

    def next(self, history: Sequence[Trial]) -> Step | None:
        """The next in order."""
        number = len(history)
        return ("baseline" if not number else "all", self._sets[number]) if number < len(self._sets) else None


class AtRandom(Strategy):
    """Sets drawn at random, small ones as often as large ones: what any search must beat."""

    def __init__(self, space: Space, seed: int) -> None:
        """space: what to choose from.  seed: of the draws."""
        self.space, self.seed = space, seed

    def next(self, history: Sequence[Trial]) -> Step:
        """A set that depends on the seed and the trial's number alone."""
        if not history:
            return "baseline", SkipSet()
        rng = Random(f"{self.seed} {len(history)}")
        share = rng.random()
        if self.space.atoms:
            return "random", union(atom for atom in self.space.atoms if rng.random() < share)
        return "random", self.space.decode({name: rng.randint(*ends) for name, ends in self.space.bounds.items()})


class Greedy(Strategy):
    """The ranking, then one sub-layer more at a time, kept if that is better."""

    def __init__(self, space: Space) -> None:
        """space: what to choose from, made of pieces."""
        self.space = space

    def next(self, history: Sequence[Trial]) -> Step | None:
        """Each piece alone, then each on top of what was kept."""
        first = alone(self.space, history)
        if first:
            return first
        order = ranking(self.space, history)
        steps = [trial for trial in history if trial.phase == "greedy"]
        kept, best = SkipSet(), history[0].value
        for trial in steps:
            if trial.value > best:
                kept, best = trial.skipped, trial.value
        return ("greedy", kept | order[len(steps)]) if len(steps) < len(order) else None


class Bayesian(Strategy):
    """Ranking, sweep, and Bayesian optimisation of the sub-layers around the best prefix's end."""

    def __init__(self, space: Space, seed: int, sampler: str = "tpe") -> None:
        """space: what to choose from.  seed: of the suggestions.  sampler: a name in `suggestion.SAMPLERS`."""
        self.space, self.seed, self.sampler = space, seed, sampler

    def next(self, history: Sequence[Trial]) -> Step:
        """By phases, as far as the history has come. Source of the last: arXiv:2309.08168, section 3.2."""
        first = alone(self.space, history)
        if first:
            return first
        if not self.space.atoms:
            return "refine", self._suggested(history, self.space.bounds, self.space.encode, self.space.decode)
        order = ranking(self.space, history)
        prefix = next_prefix(known_prefixes(order, history), len(order))
        if prefix is not None:
            return "prefix", union(order[:prefix])
        return "refine", self._refined(order, history)

    def _refined(self, order: Sequence[SkipSet], history: Sequence[Trial]) -> SkipSet:
        """A suggestion that differs from the best prefix near its end only."""
        known = known_prefixes(order, history)
        length = max(known, key=lambda each: known[each])
        start = max(0, length - WINDOW)
        open_, settled = order[start : length + WINDOW], union(order[:start])

        def encode(skipped: SkipSet) -> Values | None:
            values = {str(index): int(piece | skipped == skipped) for index, piece in enumerate(open_)}
            return values if decode(values) == skipped else None

        def decode(values: Values) -> SkipSet:
            return settled | union(piece for index, piece in enumerate(open_) if values[str(index)])

        return self._suggested(history, {str(index): (0, 1) for index in range(len(open_))}, encode, decode)

    def _suggested(
        self,
        history: Sequence[Trial],
        bounds: Mapping[str, tuple[int, int]],
        encode: Callable[[SkipSet], Values | None],
        decode: Callable[[Values], SkipSet],
    ) -> SkipSet:
        told = [(values, trial.value) for trial in history if (values := encode(trial.skipped)) is not None]
        tried = {trial.skipped for trial in history}
        skipped = SkipSet()
        for attempt in range(ATTEMPTS):
            seed = Random(f"{self.seed} {len(history)} {attempt}").randrange(1 << 31)
            skipped = decode(suggested(self.sampler, bounds, told, seed))
            if skipped not in tried:
                break
        return skipped


STRATEGIES: Final = (*SAMPLERS, "greedy", "random")
"""Names of the searches, the default first."""


def strategy_of(name: str, space: Space, seed: int) -> Strategy:
    """A search by name. A small space is tried whole, whatever the name."""
    if space.size <= SMALL:
        return Everything(space)
    if name == "random":
        return AtRandom(space, seed)
    if name == "greedy" and space.atoms:
        return Greedy(space)
    return Bayesian(space, seed, name if name in SAMPLERS else STRATEGIES[0])


def alone(space: Space, history: Sequence[Trial]) -> Step | None:
    """The empty set, then each piece by itself; None once all are known."""
    if not history:
        return "baseline", SkipSet()
    number = len(history) - 1
    return ("alone", space.atoms[number]) if number < len(space.atoms) else None


def ranking(space: Space, history: Sequence[Trial]) -> list[SkipSet]:
    """The pieces, the one whose loss costs least acceptance for the time that it saves first."""
    whole = history[0].score
    found = {trial.skipped: trial.score for trial in history if trial.phase == "alone"}

    def damage(piece: SkipSet) -> tuple[float, float]:
        saved = max(whole.cost - found[piece].cost, 1e-9)
        return (whole.acceptance - found[piece].acceptance) / saved, -saved

    return sorted(space.atoms, key=damage)


def known_prefixes(order: Sequence[SkipSet], history: Sequence[Trial]) -> dict[int, float]:
    """Values of the prefixes of a ranking that have been tried, by their lengths; 0 is the empty set."""
    lengths = {union(order[:length]): length for length in range(len(order) + 1)}
    return {lengths[trial.skipped]: trial.value for trial in history if trial.skipped in lengths}


def next_prefix(known: Mapping[int, float], count: int) -> int | None:
    """Coarsely over all lengths, then ever closer around the best one; None once its neighbours are known."""
    step = max(1, count // SWEEP)
    for length in range(step, count + 1, step):
        if length not in known:
            return length
    best = max(known, key=lambda each: known[each])
    while step > 1:
        step //= 2
        for length in (best - step, best + step):
            if 0 < length <= count and length not in known:
                return length
    return next((each for each in (best - 1, best + 1) if 0 < each <= count and each not in known), None)


def grid(space: Space) -> Iterator[Values]:
    """Every point of a space."""
    names = list(space.bounds)
    for point in product(*(range(low, high + 1) for low, high in space.bounds.values())):
        yield dict(zip(names, point, strict=True))
