"""Which sub-layers a draft leaves out: attention and MLP apart, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SkipSet:
    """Layers whose attention, and layers whose MLP, add nothing to a draft (arXiv:2309.08168, section 3.2)."""

    attention: frozenset[int] = frozenset()
    mlp: frozenset[int] = frozenset()

    @classmethod
    def of(cls, attention: Iterable[int], mlp: Iterable[int]) -> SkipSet:
        """From any collections of layer numbers, which count from 0."""
        return cls(frozenset(attention), frozenset(mlp))

    @classmethod
    def of_layers(cls, start: int, stop: int) -> SkipSet:
        """The whole layers `start..stop-1`."""
        return cls.of(range(start, stop), range(start, stop))

    def __bool__(self) -> bool:
        """Whether anything is skipped: a draft by the whole model costs as much as the text itself."""
        return bool(self.attention or self.mlp)

    def __len__(self) -> int:
        """Sub-layers."""
        return len(self.attention) + len(self.mlp)

    def __or__(self, other: SkipSet) -> SkipSet:
        """What either skips."""
        return SkipSet(self.attention | other.attention, self.mlp | other.mlp)

    def __sub__(self, other: SkipSet) -> SkipSet:
        """What this skips and the other does not."""
        return SkipSet(self.attention - other.attention, self.mlp - other.mlp)

    def exit_layer(self, layers: int) -> int | None:
        """E if exactly the layers `E..layers-1` are skipped whole: an early exit (LayerSkip, arXiv:2404.16710)."""
        first = min(self.attention, default=0)
        return first if first > 0 and self == SkipSet.of_layers(first, layers) else None

    def problem(self, layers: int) -> str | None:
        """Why it cannot be for a model of so many layers, or None."""
        wrong = sorted(index for index in self.attention | self.mlp if not 0 <= index < layers)
        if not wrong:
            return None
        names = ", ".join(map(str, wrong))
        return f"layer{'s' if len(wrong) > 1 else ''} {names} cannot be skipped: the model has layers 0..{layers - 1}"

    def __str__(self) -> str:
        """For people: `attention 3, 5-8; MLP 6`."""
        named = {"attention": self.attention, "MLP": self.mlp}
        return "; ".join(f"{name} {spans(which)}" for name, which in named.items() if which) or "nothing"


def spans(numbers: Iterable[int]) -> str:
    """Numbers with runs drawn together: `3, 5-8`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
