"""What a round came to, as numbers on the host: read once a round, at its end."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .ties import best_of, of_committed
from .verdicts import HostVerdict

if TYPE_CHECKING:
    from torch import Tensor

    from .batch import Batch
    from .deciding import Decision
    from .protocols import Draft


class Outcome(NamedTuple):
    """For each row of the batch."""

    drafted: list[int]
    """Tokens of its draft."""
    committed: list[list[int]]
    """The drafted tokens that were kept, and the extra one."""
    ties: list[list[bool]]
    """Whether each committed token won by no more than rounding, nothing where nobody asks; beyond them, no matter."""


def outcome_of(batch: Batch, draft: Draft, decision: Decision, dtype: torch.dtype | None) -> Outcome:
    """Read a decision.  dtype: the one that rounds; None if near-ties need not be counted."""
    verdict, ties = decision.verdict, _ties(batch, draft, decision, dtype)
    if isinstance(verdict, HostVerdict):
        return Outcome(verdict.drafted, verdict.committed, ties.tolist())
    if not draft.width:
        tokens, near = on_host(verdict.tokens, ties)
        return Outcome([0] * len(batch), tokens, near)
    drafted, accepted, tokens, near = on_host(draft.lengths, verdict.accepted, verdict.tokens, ties)
    committed = [line[: kept + 1] for line, kept in zip(tokens, accepted, strict=True)]
    return Outcome(drafted, committed, near)


def _ties(batch: Batch, draft: Draft, decision: Decision, dtype: torch.dtype | None) -> Tensor:
    """bool[B, D + 1]; [B, 0] where nobody asks."""
    scores = decision.scores
    if dtype is None or not (batch.sampling.greedy or batch.sampling.mixed):
        return draft.tokens[:, :0]
    close = scores.best.close if scores.best else best_of(scores.logits, dtype).close
    if batch.sampling.mixed:
        close = close & (batch.sampling.temperature == 0)[:, None]
    return close if draft.parents is None else of_committed(close, decision.verdict)  # a chain's path is its rows


def on_host(*parts: Tensor) -> list[Any]:
    """Tensors of numbers, one or two dimensions each, as lists: a device is waited for once."""
    return [part.tolist() for part in parts] if parts[0].is_cpu else at_once(parts)


def at_once(parts: Sequence[Tensor]) -> list[Any]:
    """The same by way of one tensor; truth values as 0 and 1."""
    line = iter(torch.cat([part.reshape(-1).long() for part in parts]).tolist())
    return [
        list(islice(line, len(part)))
        if part.dim() == 1
        else [list(islice(line, part.shape[1])) for _ in range(len(part))]
        for part in parts
    ]
