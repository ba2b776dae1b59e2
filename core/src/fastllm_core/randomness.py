"""Uniform random numbers as a function of a key, without any state.

The same key gives the same number in any batch, in any order and on any machine, so a text depends on its seed alone.
Shapes: B rows, K numbers per row.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from enum import IntEnum
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

_MASK: Final = 2**64 - 1
_STEP: Final = 0x9E3779B97F4A7C15  # 2**64 / golden ratio, odd: a bijection that spreads small counters
_FACTORS: Final = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_SHIFTS: Final = (30, 27, 31)

# The same in numpy's own words, since converting them costs more than the arithmetic on a few numbers.
_STEP64: Final = np.uint64(_STEP)
_FACTORS64: Final = tuple(np.uint64(factor) for factor in _FACTORS)
_SHIFTS64: Final = tuple(np.uint64(shift) for shift in _SHIFTS)
_SPARE_BITS: Final = np.uint64(64 - 53)  # a float64 in [0, 1) has 53 bits


class Purpose(IntEnum):
    """What a number decides. Part of its key, so the values must never change: texts would change with them."""

    TARGET = 0
    """Draws the target's own token at a position (match rule, plain decoding)."""
    DRAFT = 1
    """Draws a drafted token."""
    ACCEPT = 2
    """Decides whether a drafted token is accepted."""
    EXTRA = 3
    """Draws the token after the accepted ones (rejection rules)."""


def uniforms(seeds: Sequence[int], purpose: Purpose, counters: ArrayLike) -> NDArray[np.float64]:
    """Uniforms keyed by (seed, purpose, first counter, second counter).

    seeds: one int per row, of any size and sign (taken modulo 2**64).
    counters: int[B, K, 2].
    Returns float64[B, K] in [0, 1), multiples of 2**-53.
    Source: the finaliser of SplitMix64 (Steele, Lea, Flood 2014), applied after each word of the key.
    """
    words = np.asarray(counters, dtype=np.int64)
    if not words.size:
        return np.zeros((len(seeds), words.shape[1] if words.ndim > 1 else 0))
    keys = words.view(np.uint64)
    state = np.array([_stream(seed & _MASK, purpose) for seed in seeds], dtype=np.uint64)[:, None]
    # Mix after each word: keys that differ in two words must not meet as sums.
    state = _mix(keys[:, :, 0] * _STEP64 + state)
    state = _mix(keys[:, :, 1] * _STEP64 + state)
    values: NDArray[np.float64] = np.multiply(state >> _SPARE_BITS, 2.0**-53, dtype=np.float64)
    return values


def fresh_seed() -> int:
    """A seed from the operating system, 0 .. 2**63 - 1."""
    return secrets.randbits(63)


def sample_seed(seed: int, index: int) -> int:
    """The seed of one of several samples of a prompt: number 0 has the seed itself, the others one that is mixed of it.

    Not seed + index, which the next prompt of a list has already.
    """
    return seed if index == 0 else _mix_int(_mix_int((seed & _MASK) + _STEP) ^ index * _STEP)


@lru_cache(maxsize=4096)  # a request asks for the same few in every round
def _stream(seed: int, purpose: int) -> int:
    return _mix_int(_mix_int(seed + _STEP) + purpose * _STEP)


def _mix_int(state: int) -> int:
    state &= _MASK
    state = (state ^ state >> _SHIFTS[0]) * _FACTORS[0] & _MASK
    state = (state ^ state >> _SHIFTS[1]) * _FACTORS[1] & _MASK
    return state ^ state >> _SHIFTS[2]


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """As `_mix_int`, in place; unsigned arithmetic wraps by itself."""
    state ^= state >> _SHIFTS64[0]
    state *= _FACTORS64[0]
    state ^= state >> _SHIFTS64[1]
    state *= _FACTORS64[1]
    state ^= state >> _SHIFTS64[2]
    return state
