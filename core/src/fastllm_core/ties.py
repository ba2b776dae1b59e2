"""Near-ties: greedy choices so close that rounding alone may decide them.

Forwards of different widths round differently, so where the two best logits are closer than that, plain decoding and a
method that loses nothing may continue differently. `exact = true` rules it out; without it, near-ties are counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

if TYPE_CHECKING:
    from .protocols import Verdict

NOISE: Final = {torch.float32: 16.0, torch.float64: 16.0, torch.float16: 2.0, torch.bfloat16: 2.0}
"""How far rounding moves two logits apart at most, in units of the dtype's epsilon times the row's largest logit.

Measured (docs/benchmarks.md, "Near-ties"). More in the wide formats, whose sums round as coarsely as their results."""


class Best(NamedTuple):
    """The most likely token behind each row, the first of equals, and whether rounding alone may have decided it."""

    tokens: Tensor
    """int64[B, W]"""
    close: Tensor
    """bool[B, W]: the second-best logit is within rounding."""


def best_of(logits: Tensor, dtype: torch.dtype) -> Best:
    """Read logits greedily. Pure tensor arithmetic, so that a compiled forward can bring it along.

    logits: float[B, W, V].  dtype: in which the model computes.
    """
    high, tokens = logits.max(-1)  # several times faster than argmax on a processor
    second = logits.scatter(-1, tokens[..., None], -torch.inf).amax(-1)
    largest = torch.maximum(-logits.amin(-1).float(), high.float())
    return Best(tokens, second.float() >= high.float() - noise_of(dtype) * largest)


def noise_of(dtype: torch.dtype) -> float:
    """How far rounding moves two logits apart at most, as a share of the row's largest."""
    return NOISE.get(dtype, 16.0) * torch.finfo(dtype).eps


def of_committed(rows: Tensor, verdict: Verdict) -> Tensor:
    """What holds for a verification row, for each committed token: the one that is chosen behind that row.

    rows: bool[B, W]. Returns bool[B, D + 1]; what lies beyond `verdict.accepted` means nothing.
    """
    return rows.gather(1, pad(verdict.path.clamp(min=-1) + 1, (1, 0)))
