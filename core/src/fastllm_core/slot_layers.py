"""One layer of a preallocated cache, as transformers and as a compiled forward want to see it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

KVShape = tuple[int, int, int]
"""Heads, key width and value width of one layer's cache."""
CacheLayers = Sequence[tuple[Tensor, Tensor]]
"""Keys and values of every layer, float[B, heads, T, width], written in place by a forward. An empty pair stands for a
layer that keeps none of its own."""


class Layers(list[tuple[Tensor, Tensor]]):
    """What a cache hands to a forward. It also knows the buffers behind its views, which a compiled forward takes."""

    @cached_property
    def buffers(self) -> tuple[Tensor, ...] | None:
        """Keys and values of every layer that keeps some, as `buffers_of` finds them, looked up once."""
        return buffers_of(self)

    @cached_property
    def places(self) -> tuple[object, ...]:
        """Where it all lies in memory, as `places_of` finds it, looked up once."""
        return places_of(self)


def places_of(layers: CacheLayers) -> tuple[object, ...]:
    """Where the stores lie: layers that lie elsewhere are another cache to a captured graph."""
    return tuple((store.data_ptr(), store.stride(), tuple(store.shape)) for pair in layers for store in pair)


def buffers_of(layers: CacheLayers) -> tuple[Tensor, ...] | None:
    """float[B, heads, capacity, width], keys and values in turn: the whole slots of which the layers show the first.

    Contiguous, so that one program serves every extent, and longer than what is shown. None if the layers lie in memory
    in another way.
    """
    found = [_whole(store) for pair in layers for store in pair if store.numel()]
    return None if any(store is None for store in found) else tuple(store for store in found if store is not None)


def _whole(view: Tensor) -> Tensor | None:
    batch, heads, extent, width = view.shape
    capacity = view.stride(1) // width
    strides = (heads * capacity * width, capacity * width, width, 1)
    if view.stride()[1:] != strides[1:] or (batch > 1 and view.stride(0) != strides[0]) or capacity <= extent:
        return None
    return view.as_strided((batch, heads, capacity, width), strides, view.storage_offset())


class SlotLayer(CacheLayerMixin):
    """One layer of a preallocated cache, as transformers wants to see it."""

    keys: Tensor
    values: Tensor
    is_compileable = True
    is_sliding = False

    def __init__(self, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        """keys, values: float[B, heads, T, width].  slots: int64[B, 1, R, 1], where this forward's rows go."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys, self.values, self.slots = keys, values, slots
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write this forward's rows, each into its slot, and return the whole extent."""
        self.keys.scatter_(2, self.slots.expand_as(key_states), key_states)
        self.values.scatter_(2, self.slots.expand_as(value_states), value_states)
        return self.keys, self.values

    def lazy_initialization(self, *_: Any) -> None:
        """Nothing to do: the slots exist."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The extent; only asked by a model that would build its own mask."""
        return self.keys.shape[2], 0

    def get_seq_length(self) -> int:
        """0: positions are explicit, and nothing here depends on how much is filled."""
        return 0

    def get_max_length(self) -> int:
        """The extent."""
        return int(self.keys.shape[2])

    get_max_cache_shape = get_max_length  # its name in the first releases of transformers 5


class ProbeLayer(SlotLayer):
    """A layer without a store, which notes the shapes that a model writes."""

    def __init__(self) -> None:
        """Know nothing yet: the extent of 1 is for the first releases of transformers 5, which ask before an update."""
        nothing = torch.empty(1, 1, 1, 0)
        super().__init__(nothing, nothing, nothing)
        self.shape: KVShape | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Note the shapes."""
        self.shape = (key_states.shape[1], key_states.shape[3], value_states.shape[3])
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Just the rows of this forward."""
        return query_length, 0
