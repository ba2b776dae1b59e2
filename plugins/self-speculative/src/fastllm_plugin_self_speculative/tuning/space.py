"""What a search may choose from: single sub-layers, ranges of whole layers, or the layer of an early exit.

To a search a space is a few integers with bounds. Another space is another class with these methods, in `SPACES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import Final, Protocol

from ..skipset import SkipSet

Values = Mapping[str, int]
Bounds = Mapping[str, tuple[int, int]]
"""Smallest and largest value by name."""


class Space(Protocol):
    """A family of skip sets."""

    bounds: Bounds
    atoms: Sequence[SkipSet]
    """Pieces that a set is put together from, each of which can be tried alone; () if sets are not unions of pieces."""

    @property
    def size(self) -> int:
        """How many sets there are."""
        return prod(high - low + 1 for low, high in self.bounds.values())

    def decode(self, values: Values) -> SkipSet:
        """The set of some values."""
        ...

    def encode(self, skipped: SkipSet) -> Values | None:
        """The values of a set, or None if it is not in the space."""
        ...


class SubLayers(Space):
    """Attention and MLP of every layer, each skipped or not (arXiv:2309.08168, section 3.2): 2 ** 2L sets."""

    def __init__(self, layers: int) -> None:
        """layers: of the model."""
        attention = [SkipSet.of([layer], []) for layer in range(layers)]
        self.atoms = [*attention, *(SkipSet.of([], [layer]) for layer in range(layers))]
        self.bounds = {str(index): (0, 1) for index in range(len(self.atoms))}

    def decode(self, values: Values) -> SkipSet:
        """The union of the chosen pieces."""
        return union(self.atoms[int(index)] for index, chosen in values.items() if chosen)

    def encode(self, skipped: SkipSet) -> Values:
        """Which pieces it has."""
        return {str(index): int(atom | skipped == skipped) for index, atom in enumerate(self.atoms)}


class Ranges(Space):
    """Some layers in a row, left out whole."""

    atoms = ()

    def __init__(self, layers: int) -> None:
        """layers: of the model."""
        self.layers = layers
        self.bounds = {"start": (0, layers - 1), "count": (0, layers - 1)}

    def decode(self, values: Values) -> SkipSet:
        """`count` layers from `start` on; what would go beyond the last one ends there."""
        start = values["start"]
        return SkipSet.of_layers(start, min(start + values["count"], self.layers))

    def encode(self, skipped: SkipSet) -> Values | None:
        """Where it starts, and how long it is."""
        start, count = min(skipped.attention, default=0), len(skipped.attention)
        return {"start": start, "count": count} if skipped == SkipSet.of_layers(start, start + count) else None


class EarlyExit(Space):
    """The first layers alone (LayerSkip, arXiv:2404.16710): a model that was not trained for it says little there."""

    atoms = ()

    def __init__(self, layers: int) -> None:
        """layers: of the model."""
        self.layers = layers
        self.bounds = {"exit": (1, layers)}

    def decode(self, values: Values) -> SkipSet:
        """Everything from layer `exit` on is left out."""
        return SkipSet.of_layers(values["exit"], self.layers)

    def encode(self, skipped: SkipSet) -> Values | None:
        """The first layer that is left out."""
        exit_layer = skipped.exit_layer(self.layers) if skipped else self.layers
        return None if exit_layer is None else {"exit": exit_layer}


SPACES: Final[Mapping[str, Callable[[int], Space]]] = {"sublayers": SubLayers, "ranges": Ranges, "exit": EarlyExit}
"""By name, made from the number of layers."""


def union(parts: Iterable[SkipSet]) -> SkipSet:
    """Everything that any of some sets skips."""
    whole = SkipSet()
    for part in parts:
        whole |= part
    return whole
