"""The slot cache: preallocated keys and values, each batch row with its own length.

Rolling back is not advancing the length: a rejected row is never seen again, because every forward brings an explicit
mask, and is overwritten by the next round. A tree's accepted path is gathered into place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from .slot_layers import Layers

if TYPE_CHECKING:
    from .network import Network


SPARE: Final = 1
"""Slots behind the capacity that nobody uses: what a forward reads is then never the whole buffer, which a program that
is compiled for any extent would have to be told apart."""


class SlotCache:
    """Keys and values of every layer, float[rows, heads, capacity, width], grown in blocks. Implements `KVCache`."""

    def __init__(self, network: Network, block: int = 64) -> None:
        """network: whose keys and values these are.  block: slots by which capacity and extent grow."""
        self.network = network
        self.block = block
        self.lengths: list[int] = []
        self.capacity = 0
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._views: dict[tuple[int, int, int], Layers] = {}

    def reserve(self, rows: int, slots: int) -> None:
        """Make room for `rows` rows of `slots` slots. Rows double, so that joining one by one copies seldom."""
        if rows <= len(self.lengths) and slots <= self.capacity:
            return
        rows = max(rows, 2 * len(self.lengths) if rows > len(self.lengths) else len(self.lengths))
        self.capacity = max(self.capacity, self.extent(slots))
        self._views.clear()
        self._keys = [self._grown(i, 1, rows) for i in range(self.network.stores)]
        self._values = [self._grown(i, 2, rows) for i in range(self.network.stores)]
        self.lengths += [0] * (rows - len(self.lengths))

    @torch.inference_mode()
    def _grown(self, layer: int, width: int, rows: int) -> Tensor:
        shape = self.network.kv_shapes[layer]
        if shape is None:
            return torch.empty(0, device=self.network.device)
        size = (rows, shape[0], self.capacity + SPARE, shape[width])
        new = torch.zeros(size, dtype=self.network.dtype, device=self.network.device)
        stores = self._keys if width == 1 else self._values
        if stores:
            old = stores[layer]
            new[: old.shape[0], :, : old.shape[2]] = old
        return new

    def extent(self, slots: int) -> int:
        """`slots`, rounded up to a block."""
        return -(-slots // self.block) * self.block

    def layers(self, rows: slice, extent: int) -> Layers:
        """The first `extent` slots of some rows, without a copy.

        Views are kept until the cache grows: a round asks for the same few again and again.
        """
        key = (rows.start, rows.stop, extent)
        if key not in self._views:
            self._views[key] = Layers(
                (keys[rows, :, :extent], values[rows, :, :extent]) if keys.numel() else (keys, values)
                for keys, values in zip(self._keys, self._values, strict=True)
            )
        return self._views[key]

    def commit(self, starts: Sequence[int], kept: Sequence[int], path: Tensor | None) -> None:
        """Keep the root and the first `kept[b]` nodes of each row's path; see `KVCache.commit`."""
        if path is not None and max(kept, default=0):
            self._gather(starts, path)
        for slot, (start, count) in enumerate(zip(starts, kept, strict=True)):
            self.lengths[slot] = start + 1 + count

    @torch.inference_mode()
    def _gather(self, starts: Sequence[int], path: Tensor) -> None:
        """Copy each row's path behind its root. Reading all before writing any: sources and destinations overlap."""
        batch, depth = path.shape
        first = torch.tensor(starts, device=path.device)[:, None] + 1
        destination = first + torch.arange(depth, device=path.device)
        source = torch.where(path >= 0, first + path, destination)
        for store in (*self._keys, *self._values):
            if store.numel():
                rows = store[:batch]
                shape = (batch, store.shape[1], depth, store.shape[3])
                kept = rows.gather(2, source[:, None, :, None].expand(shape))
                rows.scatter_(2, destination[:, None, :, None].expand(shape), kept)

    @torch.inference_mode()  # a row may be cancelled, and another moved, between steps
    def move(self, source: int, target: int) -> None:
        """Row `source` becomes row `target`."""
        if max(source, target) < len(self.lengths):
            used = self.extent(self.lengths[source])
            for store in (*self._keys, *self._values):
                if store.numel():
                    store[target, :, :used] = store[source, :, :used]
            self.lengths[target] = self.lengths[source]
            self.lengths[source] = 0

    @torch.inference_mode()
    def copy(self, source: int, target: int, length: int) -> None:
        """The first `length` slots of one row are those of another as well."""
        used = self.extent(length)
        for store in (*self._keys, *self._values):
            if store.numel():
                store[target, :, :used] = store[source, :, :used]
        self.lengths[target] = length

    def release(self, slot: int) -> None:
        """Forget a row."""
        if slot < len(self.lengths):
            self.lengths[slot] = 0
