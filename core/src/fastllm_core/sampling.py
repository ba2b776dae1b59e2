"""From logits to the distribution that a row samples from, and from a distribution and a uniform to a token.

Shapes: B rows, W rows of a verification, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from .request import SamplingParams


_COLDEST: Final = 1e-30  # logits over anything colder, or -inf over anything hotter, leave float32
_HOTTEST: Final = 1e30
_ALL: Final = 2**31  # tokens of any vocabulary


@dataclass(frozen=True, slots=True)
class Sampling:
    """The sampling settings of a batch: one tensor per setting, and on the host what any row needs at all."""

    temperature: Tensor
    """float32[B]; 0 is a greedy row."""
    top_k: Tensor
    """int64[B]; 0 keeps all."""
    top_p: Tensor
    """float32[B]; 1 keeps all."""
    min_p: Tensor
    """float32[B]; 0 keeps all."""
    top_p_tail: Tensor
    """float32[B]: 1 - top_p, rounded once as transformers does; 1 - float32(top_p) is off by an ulp and flips ties."""
    greedy: bool
    """All rows are greedy."""
    mixed: bool
    """Some rows are greedy and some are not."""
    largest_k: int
    """The largest top_k of any sampling row; 0 if none uses it."""
    uses_top_p: bool
    """Some sampling row has top_p < 1."""
    uses_min_p: bool
    """Some sampling row has min_p > 0."""

    @staticmethod
    def of(params: Sequence[SamplingParams], device: torch.device | str) -> Sampling:
        """The settings of the rows of a batch, in batch order. Not to be written to: equal settings have the same."""
        return _sampling(tuple(params), torch.device(device))


@lru_cache(maxsize=256)
def _sampling(params: tuple[SamplingParams, ...], device: torch.device) -> Sampling:
    """Made once: texts of the same settings come and go."""
    with torch.inference_mode(False):
        drawing = [row for row in params if row.temperature > 0]  # a greedy row ignores its truncations
        settings = [(_bounded(row.temperature), row.top_p, row.min_p, 1 - row.top_p) for row in params]
        floats = torch.tensor(settings, dtype=torch.float32).view(-1, 4).to(device)  # one transfer
        temperature, top_p, min_p, tail = floats.unbind(1)
        return Sampling(
            temperature=temperature,
            top_k=torch.tensor([min(row.top_k, _ALL) for row in params], dtype=torch.int64).to(device),
            top_p=top_p,
            min_p=min_p,
            top_p_tail=tail,
            greedy=not drawing,
            mixed=0 < len(drawing) < len(params),
            largest_k=max((min(row.top_k, _ALL) for row in drawing), default=0),
            uses_top_p=any(row.top_p < 1 for row in drawing),
            uses_min_p=any(row.min_p > 0 for row in drawing),
        )


def warp(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution that each row samples from: temperature, then top-k, top-p and min-p, each on what is left.

    logits: float[B, W, V].
    Returns float32[B, W, V], each row summing to 1; a greedy row is one-hot at its first largest logit.
    Source: the logits warpers of transformers 5, in the order and with the tie rules of `generate`.
    """
    if sampling.greedy:
        return _one_hot(logits)
    probs = truncated(logits, sampling).softmax(-1)
    if sampling.mixed:
        probs = torch.where(_per_row(sampling.temperature > 0), probs, _one_hot(logits))
    return probs


def truncated(logits: Tensor, sampling: Sampling) -> Tensor:
    """The logits of the distribution that each row samples from; those of a greedy row stay as they are.

    logits: float[B, W, V]. Returns float32[B, W, V], -inf for what was cut.
    """
    scores = logits.float() / _per_row(torch.where(sampling.temperature > 0, sampling.temperature, 1.0))
    if sampling.largest_k:
        scores = _keep_top_k(scores, sampling)
    if sampling.uses_top_p:
        scores = _keep_top_p(scores, sampling)
    if sampling.uses_min_p:
        scores = _keep_min_p(scores, sampling)
    return torch.where(_per_row(sampling.temperature > 0), scores, logits.float()) if sampling.mixed else scores


def draw(probs: Tensor, u: Tensor) -> Tensor:
    """The token at which the cumulative distribution passes u (inverse transform in float64).

    probs: float[..., V], not negative, need not sum to 1.
    u: float64[...] in [0, 1).
    Returns int64[...], never a token of probability 0 (unless all are).
    """
    cumulative = probs.cumsum(-1, dtype=torch.float64)
    total = cumulative[..., -1]
    # u * total may round up to total, which no token passes.
    goal = torch.minimum(u * total, torch.nextafter(total, torch.zeros_like(total)))
    token = torch.searchsorted(cumulative, goal[..., None], right=True).clamp(max=probs.shape[-1] - 1)
    # A parallel scan (GPU) need not be monotonic in its last bit, so it can pass the goal at a token of probability 0.
    possible = probs.gather(-1, token) > 0
    return torch.where(possible, token, probs.argmax(-1, keepdim=True))[..., 0]


def _bounded(temperature: float) -> float:
    return min(max(temperature, _COLDEST), _HOTTEST) if temperature else 0.0


def _per_row(setting: Tensor) -> Tensor:
    return setting[:, None, None]


def _one_hot(logits: Tensor) -> Tensor:
    best = logits.argmax(-1, keepdim=True)
    return torch.zeros_like(logits, dtype=torch.float32).scatter_(-1, best, 1.0)


def _keep_top_k(scores: Tensor, sampling: Sampling) -> Tensor:
    largest = scores.topk(min(sampling.largest_k, scores.shape[-1]), dim=-1).values
    last = _per_row(sampling.top_k - 1).clamp(0, largest.shape[-1] - 1).expand(-1, scores.shape[1], 1)
    floor = largest.gather(-1, last).masked_fill(_per_row(sampling.top_k == 0), -torch.inf)
    return scores.masked_fill(scores < floor, -torch.inf)


def _keep_top_p(scores: Tensor, sampling: Sampling) -> Tensor:
    # Stable, so that ties are cut in the same place on every device.
    ascending, order = scores.sort(dim=-1, stable=True)
    cumulative = ascending.softmax(-1).cumsum(-1)
    drop = cumulative <= _per_row(sampling.top_p_tail)  # for top_p = 1 that is what has probability 0 anyway
    drop[..., -1] = False
    return scores.masked_fill(torch.empty_like(drop).scatter_(-1, order, drop), -torch.inf)


def _keep_min_p(scores: Tensor, sampling: Sampling) -> Tensor:
    probs = scores.softmax(-1)
    floor = _per_row(sampling.min_p) * probs.amax(-1, keepdim=True)
    return scores.masked_fill(probs < floor, -torch.inf)
