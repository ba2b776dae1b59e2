"""What a back end gains on a network: forwards of a few rows, timed in turn."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Final

import torch

from .cache import SlotCache
from .layout import chain

if TYPE_CHECKING:
    from .network import Network
    from .port import Answer, Inputs, Passage
    from .slot_layers import Layers

CONTEXT: Final = 64
BLOCKS: Final = 3
TIMED: Final = 7


@dataclass(frozen=True, slots=True)
class Gain:
    """Median seconds of one forward of the whole network over a context of 64 tokens."""

    rows: int
    eager: float
    now: float

    def __str__(self) -> str:
        """For people: `6 rows 29.4 ms eager, 11.8 ms now (2.5x)`."""
        rows = "1 row" if self.rows == 1 else f"{self.rows} rows"
        return f"{rows} {self.eager * 1e3:.2f} ms eager, {self.now * 1e3:.2f} ms now ({self.eager / self.now:.1f}x)"


@torch.inference_mode()
def gain(network: Network, rows: int, hidden_layers: tuple[int, ...] = ()) -> Gain:
    """Time a network's runner and its eager forward, block by block in turn, so that a drifting machine slows both.

    hidden_layers: what rounds ask for besides, so that it is their forward.
    """
    passage = network.whole._replace(hidden_layers=hidden_layers)
    cache = SlotCache(network)
    extent = cache.extent(CONTEXT + rows)
    cache.reserve(1, extent)
    tokens = torch.full((1, rows), 3, device=network.device) % network.vocab_size
    inputs = chain(tokens, torch.tensor([CONTEXT], device=network.device), extent)
    layers = cache.layers(slice(0, 1), extent)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(BLOCKS):
        for eager, times in seconds.items():
            times.append(_block(network.eager if eager else network.runner.forward, passage, inputs, layers))
    return Gain(rows, median(seconds[True]), median(seconds[False]))


def _block(forward: Callable[..., Answer], passage: Passage, inputs: Inputs, layers: Layers) -> float:
    """Median seconds of a few calls after a first one, which brings the weights near."""
    times = []
    for _ in range(1 + TIMED):
        began = time.perf_counter()
        logits = forward(passage, inputs, layers).logits
        if logits is not None and logits.is_cuda:
            torch.cuda.synchronize(logits.device)
        times.append(time.perf_counter() - began)
    return median(times[1:])
