"""How a head is trained: steps, rates, sizes; and what suits a target of some size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import cos, pi
from typing import Any, Literal

Schedule = Literal["cosine", "linear"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that the weights follow from, besides target, method and data."""

    steps: int
    batch: int
    """Rows of a step."""
    length: int
    """Tokens of a row."""
    learning_rate: float
    schedule: Schedule = "cosine"
    warmup: int = 100
    """Steps in which the rate rises."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 does not clip."""
    weight_decay: float = 0.0
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Of the head's forward, as accelerate names it."""
    seed: int = 0
    held_out: float = 0.05
    """Share of the rows that is held out, at most `HELD_OUT` of them."""
    evaluate_every: int = 100
    patience: int = 0
    """Evaluations without a better one after which training stops; 0 never stops."""

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 0: a rise, then a fall to a tenth."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        fallen = 0.5 * (1.0 + cos(pi * done)) if self.schedule == "cosine" else 1.0 - done
        return self.learning_rate * (0.1 + 0.9 * fallen)

    def to_json(self) -> dict[str, Any]:
        """Everything."""
        return asdict(self)


HELD_OUT = 64
"""Rows that are held out at most."""

SIZES: tuple[tuple[float, dict[str, Any]], ...] = (
    (3e7, {"steps": 600, "batch": 16, "length": 256, "learning_rate": 1e-2, "warmup": 30}),
    (1e9, {"steps": 4000, "batch": 16, "length": 1024, "learning_rate": 1e-3, "warmup": 200}),
    (float("inf"), {"steps": 20_000, "batch": 32, "length": 2048, "learning_rate": 5e-5, "warmup": 500}),
)
"""What is not said otherwise, for targets of at most so many parameters. The last one's rate and row length are those
of Kangaroo's authors (arXiv:2404.18911, their code's script); the first was tried on the demo model."""


def recipe_for(parameters: int, context: int | None, method: Mapping[str, Any] | None = None, **given: Any) -> Recipe:
    """The recipe for a target's size, with what was given in its place. Rows are no longer than its context.

    method: what the method would rather have (`Trainer.recipe`).
    """
    suits = next(values for most, values in SIZES if parameters <= most)
    chosen = {**suits, **(method or {}), **{name: value for name, value in given.items() if value is not None}}
    if context is not None:
        chosen["length"] = min(chosen["length"], context)
    chosen["warmup"] = min(chosen["warmup"], max(1, chosen["steps"] // 10))
    return Recipe(**chosen)
