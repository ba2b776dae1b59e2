"""The live rows of a round, as every role sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Self

import torch

from .layout import numbers
from .randomness import Purpose, uniforms
from .sampling import Sampling

if TYPE_CHECKING:
    from torch import Tensor

    from .request import Request


@dataclass(slots=True, eq=False)
class Row:
    """One request inside the engine. Roles read it; only the engine changes it."""

    id: int
    request: Request
    tokens: list[int]
    """Committed tokens: the prompt, then what was generated."""
    seed: int
    slot: int = -1
    """Its row in every cache; changes when another row leaves."""
    prompt_length: int = field(init=False)
    """Tokens of the prompt."""

    def __post_init__(self) -> None:
        """Look once at what every round asks for."""
        self.prompt_length = len(self.request.prompt)

    @property
    def length(self) -> int:
        """n, committed tokens so far."""
        return len(self.tokens)


@dataclass(eq=False)
class Batch:
    """The rows of one round: `rows[b].slot == b`. Shapes as in `protocols`. To be read only."""

    rows: tuple[Row, ...]
    draft_lengths: tuple[int, ...]
    """The most tokens (for a tree: levels) that each row may draft in this round; 0 for a row that decodes plainly."""
    device: torch.device
    sampling: Sampling
    thresholds: tuple[float, ...] = field(default=(), kw_only=True)
    """A row's draft ends behind a token that the drafter finds less likely than this; the token stays in the draft. 0
    ends none; () is 0 for every row. A drafter that heeds them says so (`Drafter.heeds_thresholds`)."""
    lengths: tuple[int, ...] = field(init=False)
    """n of each row when the round began."""
    root_positions: tuple[int, ...] = field(init=False)
    """n - 1: `starts` on the host."""

    def __post_init__(self) -> None:
        """Freeze the lengths, since rows grow when the round is committed."""
        self.lengths = tuple([len(row.tokens) for row in self.rows])
        self.root_positions = tuple([length - 1 for length in self.lengths])

    def __len__(self) -> int:
        """B."""
        return len(self.rows)

    def later(self, index: Sequence[int], rows: tuple[Row, ...]) -> Self:
        """Some of its rows, by index, as they are a few tokens later, before a draft of one level."""
        sampling = Sampling.of([row.request.sampling for row in rows], self.device)
        return replace(self, rows=rows, draft_lengths=(1,) * len(rows), sampling=sampling, thresholds=())

    @cached_property
    def roots(self) -> Tensor:
        """int64[B]: the last committed token of each row; not to be written to, like all that is handed around."""
        return numbers([row.tokens[-1] for row in self.rows], self.device)

    @cached_property
    def starts(self) -> Tensor:
        """int64[B]: the root's position, which is also its slot, n - 1."""
        return numbers(self.root_positions, self.device)

    def uniforms(self, purpose: Purpose, count: int) -> Tensor:
        """Uniforms of this round alone, keyed by (seed, purpose, n, index): float64[B, count] in [0, 1).

        For drafting, accepting and residuals. A key by position alone would meet discarded draws again in the next
        round, which is biased wherever they decided how much was accepted.
        """
        return self._keyed(purpose, [[(n, i) for i in range(count)] for n in self.lengths])

    def position_uniforms(self, count: int) -> Tensor:
        """Uniforms of the sequence, keyed by (seed, position): float64[B, count] for positions n .. n + count - 1.

        For the match rule: the text is then a function of the seed, whatever was drafted.
        """
        return self._keyed(Purpose.TARGET, [[(n + i, 0) for i in range(count)] for n in self.lengths])

    def _keyed(self, purpose: Purpose, counters: list[list[tuple[int, int]]]) -> Tensor:
        values = uniforms([row.seed for row in self.rows], purpose, counters)
        return torch.from_numpy(values).to(self.device)
