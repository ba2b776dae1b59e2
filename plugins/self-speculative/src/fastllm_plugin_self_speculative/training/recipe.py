"""The recipe of LayerSkip (arXiv:2404.16710, section 4.1): which layers are dropped, and how much each exit counts.

Symbols: L layers, numbered from 0, and l one of them; T steps, and t one of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that a training run follows from, besides model and data."""

    steps: int = 2000
    """T"""
    batch: int = 16
    length: int = 256
    """Tokens of a row."""
    learning_rate: float = 3e-4
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises; after them it falls by a cosine to a tenth."""
    dropout: float = 0.1
    """p_max, the chance that the last layer is dropped."""
    exit_scale: float = 0.1
    """e_scale, how much exits before the last one count."""
    weighting: Literal["depth", "even"] = "depth"
    """Exits count by their depth, as in the paper, where the first count next to nothing; or all alike."""
    exits: tuple[int, ...] = ()
    """The exits that count besides the last, as numbers of layers in order; all if empty."""
    curriculum: Literal["rotational", "gradual"] = "rotational"
    rotation: int = 8
    """R: in every step one exit of so many in a row counts, and the last one always."""
    scratch: bool = False
    """The weights are drawn anew. Then dropout begins at 0 and grows."""
    seed: int = 0

    def drop_chance(self, layer: int, layers: int, step: int) -> float:
        """p(l, t) = S(t) D(l) p_max, with D(l) = 2^(l / (L-1)) - 1 and S(t) = 2^(t / T) - 1 from scratch, else 1."""
        depth: float = 2.0 ** (layer / max(layers - 1, 1)) - 1.0
        time: float = 2.0 ** (step / self.steps) - 1.0 if self.scratch else 1.0
        return time * depth * self.dropout

    def exit_weights(self, layers: int, step: int) -> list[float]:
        """How much the loss behind each layer counts in a step: they sum to 1, and most are 0.

        By depth, e(l) = e_scale * (0 + ... + l) for l < L-1, and e(L-1) = L-1 + e_scale * (0 + ... + L-2), over enabled
        exits; evenly, e(l) = e_scale and e(L-1) = 1.
        """
        weights = [0.0] * (layers - 1) + [
            1.0 if self.weighting == "even" else float(self._by_depth(layers - 1, layers))
        ]
        for layer in self.enabled(layers, step):
            weights[layer] = self.exit_scale if self.weighting == "even" else self._by_depth(layer, layers)
        total = sum(weights)
        return [weight / total for weight in weights] if total else [0.0] * (layers - 1) + [1.0]

    def enabled(self, layers: int, step: int) -> list[int]:
        """C(t, l): which layers before the last count: every R-th, one on in each step; or from the top downwards."""
        chosen = [exit_layer - 1 for exit_layer in self.exits] or range(layers - 1)
        if self.curriculum == "rotational":
            return [layer for place, layer in enumerate(chosen) if (place - step) % self.rotation == 0]
        count = len(chosen)
        return [layer for place, layer in enumerate(chosen) if count - place <= 2 * count * step / self.steps]

    def _by_depth(self, layer: int, layers: int) -> float:
        if layer < layers - 1:
            return self.exit_scale * layer * (layer + 1) / 2
        return layers - 1 + self.exit_scale * (layers - 2) * (layers - 1) / 2

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        from math import cos, pi

        rising = max(1, round(self.warmup * self.steps))
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        done = (step - rising) / max(1, self.steps - rising)
        return self.learning_rate * (0.1 + 0.9 * 0.5 * (1.0 + cos(pi * done)))
