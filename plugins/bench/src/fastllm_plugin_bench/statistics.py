"""How sure a ratio is: intervals by resampling prompts and, within each, its repeats."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

RESAMPLES: Final = 2000
CHUNK: Final = 100
LEVEL: Final = 0.95
SEED: Final = 5


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio of two speeds with its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """`2.12 (2.05..2.20)`."""
        return f"{self.value:.2f} ({self.low:.2f}..{self.high:.2f})"


@dataclass(frozen=True, slots=True)
class Pair:
    """The same job by two arms, one right after the other."""

    unit: Hashable
    """The prompt that it is a repeat of."""
    tokens: int
    seconds: float
    base_tokens: int
    base_seconds: float


def speed_ratio(pairs: Sequence[Pair]) -> Ratio | None:
    """Tokens per second against the base's: of all jobs together, with a bootstrap interval of 95 %.

    Prompts are drawn with replacement and, for each, its repeats, since repeats of one prompt say nothing about other
    prompts. Both arms of a pair are drawn together: what slowed the machine slowed both. None if nothing was timed.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), percentile intervals.
    """
    value, timed = quotient(pairs), _timed(pairs)
    if value is None:
        return None
    values, counts = _table(timed)
    draw = np.random.default_rng(SEED)
    units, repeats = values.shape[:2]
    drawn: list[NDArray[np.float64]] = []
    for _ in range(RESAMPLES // CHUNK):
        which = draw.integers(0, units, (CHUNK, units))
        of = (draw.random((CHUNK, units, repeats)) * counts[which][..., None]).astype(np.int64)
        used = np.arange(repeats) < counts[which][..., None]
        chosen = values[which[..., None], of] * used[..., None]
        drawn.append(_quotient(chosen.sum(axis=(1, 2))))
    low, high = np.quantile(np.concatenate(drawn), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Ratio(value, float(low), float(high))


def quotient(pairs: Sequence[Pair]) -> float | None:
    """The ratio alone; None if nothing was timed."""
    timed = _timed(pairs)
    if not timed:
        return None
    sums = [[each.tokens, each.seconds, each.base_tokens, each.base_seconds] for each in timed]
    return float(_quotient(np.array(sums).sum(axis=0)))


def _timed(pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs in which both arms had something to do: a text may end with its first round."""
    return [pair for pair in pairs if pair.tokens and pair.base_tokens and pair.seconds > 0 and pair.base_seconds > 0]


def _table(pairs: Iterable[Pair]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """float[units, repeats, 4], padded, and how many repeats each unit has."""
    by_unit: dict[Hashable, list[tuple[float, ...]]] = defaultdict(list)
    for pair in pairs:
        by_unit[pair.unit].append((pair.tokens, pair.seconds, pair.base_tokens, pair.base_seconds))
    longest = max(len(rows) for rows in by_unit.values())
    values = np.zeros((len(by_unit), longest, 4))
    for index, rows in enumerate(by_unit.values()):
        values[index, : len(rows)] = rows
    return values, np.array([len(rows) for rows in by_unit.values()])


def _quotient(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """(tokens / seconds) / (base tokens / base seconds) of float[..., 4]."""
    tokens, seconds, base_tokens, base_seconds = np.moveaxis(sums, -1, 0)
    result: NDArray[np.float64] = (tokens / seconds) / (base_tokens / base_seconds)
    return result
