"""Where the rows of a forward stand: their positions, their cache slots and what each of them may see.

Shapes as in `protocols`; R is the number of rows of the forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor

from .port import Inputs

if TYPE_CHECKING:
    from numpy.typing import NDArray

LINE: Final = 1 << 18
"""More than there are tokens in a vocabulary, or positions in most texts."""
SMALL: Final = 1024
"""Slots up to which what every row sees is kept, a megabyte at most: behind more of them no forward is so quick that
making a mask shows."""


def chain(tokens: Tensor, starts: Tensor | Sequence[int], extent: int, *, hidden: Tensor | None = None) -> Inputs:
    """Rows that continue each other: row r of batch row b stands at position and slot `starts[b] + r`.

    tokens: int64[B, R].  starts: int64[B]; numbers on the host, if they are known, spare one text most of the work.
    extent: T.  hidden: float[B, R, H], used instead of the tokens if given.
    """
    rows, device = tokens.shape[1], tokens.device
    entry = None if hidden is not None else tokens
    if not isinstance(starts, Tensor):
        if len(starts) == 1:
            small = starts[0] + rows <= extent <= SMALL
            return Inputs(entry, hidden, *(_known if small else _alone)(starts[0], rows, extent, device), None)
        starts = numbers(starts, device)
    positions = starts[:, None] if rows == 1 else starts[:, None] + counted(rows, device)
    mask = counted(extent, device) <= positions.unsqueeze(2)
    # Padding beyond the capacity shares the last slot, which nothing else uses; a single row is no padding.
    slots = positions if rows == 1 else positions.clamp(max=extent - 1)
    return Inputs(entry, hidden, positions, slots, mask, None)


def _alone(start: int, rows: int, extent: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Positions, slots and mask of one text's chain: as far as can be, views of what was made once."""
    line = counted(1 << (max(start, extent) + rows).bit_length(), device)
    positions = line.as_strided((1, rows), (rows, 1), start)
    slots = positions if rows == 1 or start + rows <= extent else positions.clamp(max=extent - 1)
    if rows == 1:
        before = max(extent - 1 - start, 0)  # a row behind the extent, which nobody will run, sees all of it
        mask = _steps(extent, device).as_strided((1, 1, extent), (extent, extent, 1), before)
    elif start + rows <= extent <= SMALL:
        mask = _triangle(extent, device).as_strided((1, rows, extent), (rows * extent, extent, 1), start * extent)
    else:
        mask = counted(extent, device) <= positions.unsqueeze(2)
    return positions, slots, mask


_known = lru_cache(maxsize=1024)(_alone)
"""The same where it is views alone, kept: every text comes by the same places."""


@lru_cache(maxsize=256)
def counted(count: int, device: torch.device) -> Tensor:
    """int64[count]: 0, 1, 2, ... Made once: a few of them are in every round, where each operation shows."""
    with torch.inference_mode(False):
        return torch.arange(count, device=device)


def numbers(values: Sequence[int], device: torch.device) -> Tensor:
    """int64[B]: some numbers. A single one is a view of the line of all numbers, and so not to be written to.

    Making a tensor takes a processor 20 us behind a forward, and a GPU has to be waited for.
    """
    if len(values) == 1 and 0 <= values[0] < LINE:
        return _number(values[0], device)
    return torch.tensor(values, device=device)


@lru_cache(maxsize=1024)
def _number(value: int, device: torch.device) -> Tensor:
    return counted(LINE, device).as_strided((1,), (1,), value)


class Slate:
    """The tokens of a forward, int64[B, R], written down from the host.

    A processor's are written over the last ones of the same size, since making a tensor takes 20 us behind a forward:
    so what `write` returns holds until it is called again.
    """

    def __init__(self, device: torch.device) -> None:
        """device: where the tokens are wanted."""
        self.device, self._on_host = device, device.type == "cpu"
        self._kept: dict[tuple[int, int], tuple[Tensor, NDArray[np.int64]]] = {}

    def write(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """rows: of one length."""
        if not self._on_host:
            return torch.tensor(rows, device=self.device)
        size = len(rows), len(rows[0])
        if size not in self._kept:
            with torch.inference_mode(False):
                tokens = torch.zeros(size, dtype=torch.long)
            self._kept[size] = tokens, tokens.numpy()
        tokens, memory = self._kept[size]
        memory[:] = rows
        return tokens


@lru_cache(maxsize=64)
def _steps(extent: int, device: torch.device) -> Tensor:
    """bool[2 T - 1]: T times true, then false. Its part from T - 1 - n on is what a row at position n sees."""
    with torch.inference_mode(False):
        return torch.arange(2 * extent - 1, device=device) < extent


@lru_cache(maxsize=16)
def _triangle(extent: int, device: torch.device) -> Tensor:
    """bool[T, T]: what a row at each position sees."""
    with torch.inference_mode(False):
        return torch.ones(extent, extent, dtype=torch.bool, device=device).tril()


def tree(
    tokens: Tensor, sees: Tensor, depths: Tensor, starts: Tensor, extent: int, *, hidden: Tensor | None = None
) -> Inputs:
    """Rows that see the committed cache and some of each other: row r stands in slot `starts[b] + r`.

    tokens: int64[B, R].  sees: bool[B, R, R], which rows of this forward each row sees, itself included.
    depths: int64[B, R], position minus the root's.  starts: int64[B].
    """
    rows = tokens.shape[1]
    offsets = torch.arange(rows, device=tokens.device)
    slots = torch.arange(extent, device=tokens.device)
    relative = slots - starts[:, None]  # (B, T)
    inside = (relative >= 0) & (relative < rows)
    index = relative.clamp(0, rows - 1)
    within = sees.gather(2, index[:, None].expand(-1, rows, -1))  # (B, R, T)
    mask = (relative < 0)[:, None] | (inside[:, None] & within)
    key_positions = torch.where(inside, starts[:, None] + depths.gather(1, index), slots)
    positions = starts[:, None] + depths
    return Inputs(tokens if hidden is None else None, hidden, positions, starts[:, None] + offsets, mask, key_positions)


def ancestors(parents: Tensor) -> Tensor:
    """Which rows lie on the path from the root to each row, itself included: bool[B, W, W], without a host read.

    parents: int64[B, N], node indices, -1 for the root. The path relation is the transitive closure of the parent
    relation, so log2(W) squarings of the matrix find it.
    """
    batch, nodes = parents.shape
    width = nodes + 1
    paths = torch.eye(width, device=parents.device).expand(batch, -1, -1).clone()
    paths[:, 1:].scatter_(2, parents[:, :, None] + 1, 1.0)
    for _ in range((width - 1).bit_length()):
        paths = (paths @ paths).clamp_(max=1.0)
    return paths > 0
