"""What the engine knows of the rows of a round for as long as the same ones take part: most of a text's rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import torch

from .protocols import Draft
from .rows import LiveRow
from .sampling import Sampling


@dataclass(frozen=True, slots=True, eq=False)
class Company:
    """The rows of a round and what follows from their requests."""

    rows: tuple[LiveRow, ...]
    ids: tuple[int, ...]
    sampling: Sampling
    """Their settings as tensors."""
    draws: tuple[bool, ...]
    """Which rows sample."""
    speculates: tuple[bool, ...]
    """Which rows may draft."""
    drafting: tuple[LiveRow, ...]
    """Those that may."""
    asks: bool
    """Some row wants to know how likely its tokens were, or their logits."""
    controlled: bool
    """Some row's controls change its logits, or processors see them."""
    unwatched: bool
    """All are greedy, nobody changes or asks for logits: what follows from a round is its most likely token."""
    nothing: Draft
    """A draft in which no row has any token."""

    @classmethod
    def of(cls, rows: Sequence[LiveRow], device: torch.device) -> Self:
        """What can be known before a round."""
        requests = [row.request for row in rows]
        settings = [request.sampling for request in requests]
        sampling = Sampling.of(settings, device)
        asks = any(
            request.keep_logits or request.logprobs is not None or request.prompt_logprobs is not None
            for request in requests
        )
        controlled = any(not request.controls.neutral or request.controls.processors for request in requests)
        speculates = tuple([request.speculate for request in requests])
        return cls(
            rows=tuple(rows),
            ids=tuple([row.id for row in rows]),
            sampling=sampling,
            draws=tuple([each.temperature > 0 for each in settings]),
            speculates=speculates,
            drafting=tuple([row for row, may in zip(rows, speculates, strict=True) if may]),
            asks=asks,
            controlled=controlled,
            unwatched=sampling.greedy and not asks and not controlled,
            nothing=_nothing(len(rows), device),
        )


@lru_cache(maxsize=64)
def _nothing(count: int, device: torch.device) -> Draft:
    with torch.inference_mode(False):
        lengths = torch.zeros(count, dtype=torch.long, device=device)
        return Draft(lengths[:, None][:, :0], lengths)
