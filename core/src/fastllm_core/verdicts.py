"""What every acceptance rule needs: paths in a draft, rows of a verification, and the verdict from what was kept.

Shapes: B rows of the batch, N drafted nodes, W = N + 1 rows of a verification, V vocabulary. Row 0 is the root and row
i + 1 is node i, so the row of a node's parent is `parents + 1`. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad

from .protocols import Verdict

if TYPE_CHECKING:
    from torch import Tensor


class HostVerdict(Verdict):
    """A verdict on chains that was found on the host, where the engine wants it: tensors are made if someone asks."""

    committed: list[list[int]]
    """Each row's kept tokens and its extra token."""
    drafted: list[int]
    """Tokens of each row's draft."""
    width: int
    """N"""

    def __init__(self, committed: list[list[int]], drafted: list[int], width: int) -> None:
        """See the attributes."""
        vars(self).update(committed=committed, drafted=drafted, width=width)

    @cached_property
    def accepted(self) -> Tensor:
        """As in `Verdict`."""
        return torch.tensor([len(tokens) - 1 for tokens in self.committed], dtype=torch.long)

    @cached_property
    def path(self) -> Tensor:
        """As in `Verdict`."""
        kept = [len(tokens) - 1 for tokens in self.committed]
        return torch.tensor([[*range(count), *[-1] * (self.width - count)] for count in kept], dtype=torch.long)

    @cached_property
    def tokens(self) -> Tensor:
        """As in `Verdict`."""
        lines = [[*line, *[-1] * (self.width + 1 - len(line))] for line in self.committed]
        return torch.tensor(lines, dtype=torch.long)


def real(tokens: Tensor, lengths: Tensor) -> Tensor:
    """bool[B, N]: which nodes are not padding."""
    return torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]


def row_of(values: Tensor, row: Tensor) -> Tensor:
    """[B, ...]: one verification row of each batch row; the last one stands in for what lies behind.

    values: [B, W, ...]; row: int64[B].
    """
    index = row.clamp(max=values.shape[1] - 1)
    return values[torch.arange(len(row), device=row.device), index]


def of_tokens(values: Tensor, tokens: Tensor, lengths: Tensor, parents: Tensor | None = None) -> Tensor:
    """float64[B, N]: what the row before each node says about its token; padding may hold ids that are out of range.

    values: [B, W, V], or [B, N, V] for a chain; tokens: int64[B, N]; lengths: int64[B].
    parents: int64[B, N], or None for a chain.
    """
    ids = tokens.where(real(tokens, lengths), 0)
    if parents is None:
        return values[:, : tokens.shape[1]].gather(2, ids[:, :, None])[:, :, 0].double()
    batch = torch.arange(len(tokens), device=tokens.device)[:, None]
    return values[batch, parents + 1, ids].double()


def depths(parents: Tensor) -> Tensor:
    """How far each row of a verification is from the root.

    parents: int64[B, N]. Returns int64[B, W]: 0 for the root, then the level of each node.
    """
    return sum_to_root(torch.ones_like(parents), parents)


def sum_to_root(values: Tensor, parents: Tensor) -> Tensor:
    """Sum a value per node over each row's path to the root: [B, N] -> [B, W], in log2(N) steps."""
    up = rows_above(parents)
    sums = pad(values, (1, 0))  # the root is worth 0
    for _ in range(parents.shape[1].bit_length()):  # each step doubles how far up a row has looked
        sums = sums + sums.gather(1, up)
        up = up.gather(1, up)
    return sums


def path_to_root(row: Tensor, parents: Tensor) -> Tensor:
    """bool[B, N]: the nodes between the root and one verification row, int64[B], which is part of it."""
    up = rows_above(parents)
    on_path = torch.zeros_like(up).scatter(1, row[:, None], 1)
    for _ in range(parents.shape[1].bit_length()):
        on_path = on_path.scatter_reduce(1, up, on_path, "amax")
        up = up.gather(1, up)
    return on_path[:, 1:] > 0


def rows_above(parents: Tensor) -> Tensor:
    """int64[B, W]: the row of each row's parent; the root is above itself."""
    return pad(parents + 1, (1, 0))


def chain_verdict(tokens: Tensor, accepted: Tensor, extra: Tensor) -> Verdict:
    """Keep the first `accepted` tokens of a chain.

    tokens: int64[B, N]; accepted, extra: int64[B].
    """
    count = tokens.shape[1]
    return _verdict(tokens, torch.arange(count, device=tokens.device).expand_as(tokens), accepted, extra)


def tree_verdict(tokens: Tensor, kept: Tensor, extra: Tensor) -> Verdict:
    """Keep some nodes of a tree, which are one path from the root.

    tokens: int64[B, N]; kept: bool[B, N]; extra: int64[B].
    """
    # Parents come before children, so the kept nodes in order of index are the path.
    count = tokens.shape[1]
    node = torch.arange(count, device=tokens.device).expand_as(tokens)
    order = node.where(kept, count).sort(1).values.clamp(max=count - 1)
    return _verdict(tokens.gather(1, order), order, kept.sum(1), extra)


def either(first: Tensor, one: Verdict, other: Verdict) -> Verdict:
    """Row by row one verdict or another of the same draft. first: bool[B]."""
    return Verdict(
        torch.where(first, one.accepted, other.accepted),
        torch.where(first[:, None], one.path, other.path),
        torch.where(first[:, None], one.tokens, other.tokens),
    )


def replaced(verdict: Verdict, rows: Sequence[int], other: Verdict) -> Verdict:
    """A verdict in which another has the word on some rows, by index. other: of those rows alone, as wide."""
    index = torch.tensor(rows, device=verdict.accepted.device)
    return Verdict(
        verdict.accepted.index_copy(0, index, other.accepted),
        verdict.path.index_copy(0, index, other.path),
        verdict.tokens.index_copy(0, index, other.tokens),
    )


def _verdict(tokens: Tensor, nodes: Tensor, accepted: Tensor, extra: Tensor) -> Verdict:
    """Keep the first `accepted` of some nodes and their tokens, int64[B, N] both, then the extra token."""
    row = torch.arange(tokens.shape[1] + 1, device=tokens.device)
    last = accepted[:, None]
    path = torch.where(row[:-1] < last, nodes, -1)
    committed = torch.where(row < last, pad(tokens, (0, 1)), -1)
    return Verdict(accepted, path, torch.where(row == last, extra[:, None], committed))
