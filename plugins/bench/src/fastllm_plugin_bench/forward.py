"""How long forwards of a few rows take, beside what the machine's memory and arithmetic would allow."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import torch

from fastllm_core import Network, SlotCache, chain

from .device import synchronize

if TYPE_CHECKING:
    from fastllm_core import Pipeline

ROWS: Final = (1, 2, 4, 8, 16, 32, 64)
COPIED: Final = 1 << 28
"""Bytes of the copy that bandwidth is measured with: more than any processor's cache."""
SQUARE: Final = 2048
"""Side of the matrices that the rate is measured with."""
TRIES: Final = 7


@dataclass(frozen=True, slots=True)
class Machine:
    """What the hardware did, in the same run."""

    bytes_per_s: float
    """Copying a large tensor, what is read and what is written counted."""
    flops: float
    """Multiplying two large matrices in the model's number format, floating-point operations per second."""


@dataclass(frozen=True, slots=True)
class Timing:
    """One forward."""

    rows: int
    context: int
    """Tokens in the cache before them."""
    seconds: float
    """Median."""
    fastest: float
    floor: float
    """What reading weights and cache once, or the arithmetic if that is more, would take at the machine's own rates."""

    @property
    def ratio(self) -> float:
        """Times the floor."""
        return self.seconds / self.floor


@dataclass(frozen=True, slots=True)
class Size:
    """What a forward must read and compute."""

    weights: int
    """Bytes of the matrices that every row is multiplied with."""
    multiplied: int
    """Their elements."""
    cache: int
    """Bytes of keys and values of one token."""
    attention: int
    """Floating-point operations of one row over one cached token."""

    def floor(self, rows: int, context: int, machine: Machine) -> float:
        """Seconds."""
        reading = (self.weights + self.cache * context) / machine.bytes_per_s
        computing = rows * (2 * self.multiplied + self.attention * context) / machine.flops
        return max(reading, computing)


def size_of(network: Network) -> Size:
    """Count a model's weights; an embedding that is only looked up is not read as a whole."""
    model: Any = network.loaded.model
    table = model.get_input_embeddings().weight
    looked_up = None if network.loaded.config.tie_word_embeddings else table
    weights = [each for each in model.parameters() if each is not looked_up]
    shapes = [shape for shape in network.kv_shapes if shape is not None]
    cached = sum(heads * (keys + values) for heads, keys, values in shapes)
    groups = network.loaded.config.num_attention_heads
    return Size(
        sum(each.nbytes for each in weights),
        sum(each.numel() for each in weights if each.dim() > 1),
        cached * table.element_size(),
        sum(2 * groups * (keys + values) for _, keys, values in shapes),
    )


@torch.inference_mode()
def machine_of(device: torch.device, dtype: torch.dtype) -> Machine:
    """Measure copy bandwidth and matrix rate, each the best of a few tries."""
    source = torch.ones(COPIED // 4, device=device)
    target = torch.empty_like(source)
    copied = min(_times(lambda: target.copy_(source), device, TRIES))
    left = torch.ones(SQUARE, SQUARE, device=device, dtype=dtype)
    multiplied = min(_times(lambda: left @ left, device, TRIES))
    return Machine(2 * COPIED / copied, 2 * SQUARE**3 / multiplied)


@torch.inference_mode()
def measure(
    pipeline: Pipeline, rows: Sequence[int], contexts: Sequence[int], repeats: int, machine: Machine
) -> Iterator[Timing]:
    """Time every number of rows at every context, the rows in turn so that a drifting machine slows all alike.

    Rows that do not fit behind a context are left out.
    """
    network = pipeline.engine.parts.network  # with the back end that the configuration asks for
    cache, size = SlotCache(network), size_of(network)
    limit = pipeline.target.context_length or max(contexts) + max(rows)
    device = network.device
    for context in contexts:
        fitting = [count for count in rows if context + count <= limit]
        cache.reserve(1, context + max(fitting, default=1))
        forwards = {count: _forward(network, cache, context, count) for count in fitting}
        spent: dict[int, list[float]] = {count: [] for count in fitting}
        for forward in forwards.values():
            _times(forward, device, 2)  # warm up
        for _ in range(repeats):
            for count, forward in forwards.items():
                spent[count] += _times(forward, device, 1)
        for count, times in spent.items():
            yield Timing(count, context, median(times), min(times), size.floor(count, context, machine))


def _forward(network: Network, cache: SlotCache, context: int, rows: int) -> Callable[[], object]:
    """A verification of some rows behind a context of anything."""
    tokens = torch.zeros(1, rows, dtype=torch.long, device=network.device)
    extent = cache.extent(context + rows)
    inputs = chain(tokens, torch.tensor([context], device=network.device), extent)
    layers = cache.layers(slice(0, 1), extent)
    return lambda: network.forward(inputs, layers)


def _times(work: Callable[[], object], device: torch.device, count: int) -> list[float]:
    found = []
    for _ in range(count):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        found.append(time.perf_counter() - start)
    return found
