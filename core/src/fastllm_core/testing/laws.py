"""Laws of texts over a tiny vocabulary, exactly: what a table of next-token distributions makes of a whole text.

V is the size of the vocabulary, L the length of the texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..protocols import Verdict

Context = tuple[int, ...]
"""The tokens of a text so far."""
Table = Callable[[Context], Sequence[float]]
"""A distribution of the next token for each context."""
Law = NDArray[np.float64]
"""float64[V, ..., V], L times: the probability of each text of L tokens."""

EVEN = ((1, 2, 3), (3, 1, 2), (2, 3, 1), (3, 2, 1), (1, 3, 2), (2, 1, 3))
"""Distributions in sixths."""
LOPSIDED = ((4, 1, 1), (1, 1, 4), (1, 4, 1))


def always(*probs: float) -> Table:
    """The same distribution in every context."""
    return lambda _: probs


def varied(shift: int, parts: Sequence[Sequence[int]] = EVEN) -> Table:
    """Distributions that depend on every token of the context. parts: what they are chosen from, `shift` the first."""

    @cache
    def table(context: Context) -> list[float]:
        place = shift + len(context) + sum((i + 2) * token for i, token in enumerate(context))
        chosen = parts[place % len(parts)]
        return [part / sum(chosen) for part in chosen]

    return table


def law_of(p: Table, committed: Iterable[tuple[Context, float]], length: int) -> Law:
    """The law of texts of one length: committed tokens with their weights, continued by p or cut."""
    law = np.zeros((len(p(())),) * length)
    for start, weight in committed:
        cells, text = law[start[:length]], start[:length]
        if len(text) == length:
            law[text] += weight
        else:
            cells += weight * continuation(p, text, length)
    return law


@cache
def continuation(p: Table, start: Context, length: int) -> Law:
    """float64[V, ...]: p's law of the tokens that bring `start` to `length`."""
    probs = np.array(p(start))
    if len(start) + 1 == length:
        return probs
    rest = [continuation(p, (*start, token), length) for token in range(len(probs))]
    return np.stack([prob * law for prob, law in zip(probs, rest, strict=True)])


def distance(p: Table, law: Law) -> float:
    """How far a law is from p's own, in total variation: 0 if it is the same, to rounding."""
    return float(np.abs(law - continuation(p, (), law.ndim)).sum() / 2)


def is_law_of(p: Table, law: Law) -> bool:
    """Whether p alone would have given this law."""
    return distance(p, law) < 1e-9


def committed(verdict: Verdict, weight: float = 1.0) -> Iterator[tuple[Context, float]]:
    """What the rows of a batch commit, each with its share of `weight`."""
    digits = verdict.tokens + 1  # a text as one number: far faster than unique rows
    base = int(digits.max()) + 1
    powers = base ** torch.arange(digits.shape[1])
    for code, count in enumerate((digits * powers).sum(1).bincount().tolist()):
        if count:
            text = [code // power % base - 1 for power in powers.tolist()]
            yield tuple(token for token in text if token >= 0), weight * count / len(digits)


def grid(*sizes: int) -> Tensor:
    """float64[R, len(sizes)]: the midpoints of all cells."""
    axes = [(torch.arange(size, dtype=torch.float64) + 0.5) / size for size in sizes]
    return torch.cartesian_prod(*axes).view(-1, len(sizes))
