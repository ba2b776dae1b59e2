"""A forward as a function of tensors alone, with open sizes, as torch.export wants it.

One program serves every number of rows, every extent and every capacity of the cache; a batch of one text has a program
of its own, in which nothing needs a batch. The cache's whole buffers come in and are written in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from .network import Network
from .port import Answer, Inputs, Passage, following, last_only
from .slot_layers import SlotLayer
from .ties import best_of

MOST_ROWS: Final = 1 << 16
MOST_SLOTS: Final = 1 << 24
MOST_TEXTS: Final = 1 << 12
"""Bounds of the open sizes, beyond anything that is run."""


class Form(NamedTuple):
    """Which arguments a forward has: programs differ in it, besides the passage."""

    hidden: bool = False
    """Hidden states enter, not tokens."""
    keyed: bool = False
    """Key positions are given: a tree's rows."""
    many: bool = False
    """More than one text."""
    steps: int = 0
    """Above 0: so many tokens in turn, each the most likely one behind the last, and the row behind them comes out as
    well: of a plain round, and of a chain (`Network.advance`)."""
    rows: int = 1
    """Where it steps: rows that enter."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The open sizes of a call."""

    rows: int
    extent: int
    capacity: int
    read: int
    """Rows whose logits are wanted."""


TRACED: Final = Sizes(rows=7, extent=192, capacity=320, read=5)
"""Sizes to trace with. No two are equal, or they would be taken for one."""


class OpenLayer(SlotLayer):
    """A layer of which the forward is given the whole buffer and reads the first slots."""

    def __init__(self, keys: Tensor, values: Tensor, slots: Tensor, extent: int) -> None:
        """keys, values: float[B, heads, capacity, width].  slots: int64[B, R].  extent: T."""
        super().__init__(keys, values, slots)
        self.extent = extent

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write this forward's rows, each into its slot, and return the extent.

        By index_put, which the compiler does in place; of a scatter it would make two copies of the cache.
        """
        texts = torch.arange(key_states.shape[0], device=key_states.device)[:, None, None]
        heads = torch.arange(key_states.shape[1], device=key_states.device)[None, None]
        where = (texts, heads, self.slots[:, :, None])
        self.keys.index_put_(where, key_states.transpose(1, 2))
        self.values.index_put_(where, value_states.transpose(1, 2))
        return self.keys[:, :, : self.extent], self.values[:, :, : self.extent]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The extent; only asked by a model that would build its own mask."""
        return self.extent, 0


class Step(nn.Module):
    """One forward of a network, by tensors."""

    def __init__(self, network: Network, passage: Passage, form: Form) -> None:
        """network: a twin of it is run, with an attention that a compiler fuses."""
        super().__init__()
        self.origin, self.network = network, network.for_export()
        self.passage, self.form = passage, form
        self.view = self.network.view(passage)  # so that export finds the weights
        self.reads = passage.stop == network.layers and not form.steps
        """Whether a call says which rows' logits it wants."""
        self.shapes = network.kv_shapes

    def forward(
        self,
        entry: Tensor,
        positions: Tensor,
        slots: Tensor,
        mask: Tensor,
        key_positions: Tensor | None,
        logits_to_keep: Tensor | None,
        buffers: Sequence[Tensor],
    ) -> tuple[Tensor, ...]:
        """entry: int64[B, R] or float[B, R, H].  logits_to_keep: int64[K].  buffers: see `slot_layers.buffers_of`.

        The others: see `Inputs`. Returns logits and what is best in them, if the last layer ran, and the passage's
        hidden states; or what is known of rows in turn: the last one's logits, what is best behind each, positions,
        slots and mask of the row behind, and the hidden states. Of several the logits are float[B, V], and the last of
        the best tokens comes again before the positions, int64[B, 1]: so nothing need be cut out behind a call.
        """

        def run(inputs: Inputs) -> Answer:
            stores = iter(buffers)
            nothing = torch.empty(0)
            layers = [
                SlotLayer(nothing, nothing, inputs.slots)
                if shape is None
                else OpenLayer(next(stores), next(stores), inputs.slots, mask.shape[2])
                for shape in self.shapes
            ]
            return self.network.compute(self._asked(inputs), inputs, layers, logits_to_keep)

        return self._answers(self._inputs(entry, positions, slots, mask, key_positions), run)

    def eager(self, arguments: tuple[Any, ...], tokens: Tensor | None = None) -> tuple[Tensor, ...]:
        """What the network itself answers to `forward`'s arguments, with all rows' logits: a program must agree.

        tokens: int64[B, S], where rows follow each other: what it shall go on with, instead of its own choice.
        """
        entry, positions, slots, mask, key_positions, _, buffers = arguments

        def run(inputs: Inputs) -> Answer:
            stores: Iterator[Tensor] = iter([buffer[:, :, : mask.shape[2]] for buffer in buffers])
            nothing = torch.empty(0)
            cache = [(nothing, nothing) if shape is None else (next(stores), next(stores)) for shape in self.shapes]
            return self.origin.eager(self._asked(inputs), inputs, cache)

        return self._answers(self._inputs(entry, positions, slots, mask, key_positions), run, tokens)

    def _asked(self, inputs: Inputs) -> Passage:
        """Of rows that enter together, the last one is gone on from."""
        entering = self.form.steps and inputs.positions.shape[1] > 1
        return last_only(self.passage) if entering else self.passage

    def _inputs(
        self, entry: Tensor, positions: Tensor, slots: Tensor, mask: Tensor, key_positions: Tensor | None
    ) -> Inputs:
        tokens, hidden = (None, entry) if self.form.hidden else (entry, None)
        return Inputs(tokens, hidden, positions, slots, mask, key_positions)

    def _answers(
        self, inputs: Inputs, run: Callable[[Inputs], Answer], tokens: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        if not self.form.steps:
            logits, hidden, *_ = run(inputs)
            return hidden if logits is None else (logits, *best_of(logits, self.network.dtype), *hidden)
        said, likely, close, states = [], [], [], []
        for step in range(self.form.steps):
            logits, hidden, *_ = run(inputs)
            assert logits is not None
            best = best_of(logits, self.network.dtype)
            said.append(logits)
            likely.append(best.tokens)
            close.append(best.close)
            states.append([state[:, -1:] for state in hidden])
            row = inputs if inputs.positions.shape[1] == 1 else inputs.last()
            inputs = following(row, best.tokens if tokens is None else tokens[:, step : step + 1])
        early = [_in_line(parts) for parts in zip(*states, strict=True)]
        behind = inputs.positions, inputs.slots, inputs.mask
        if self.form.steps == 1:
            return (said[-1], _in_line(likely), _in_line(close), *behind, *early)
        return (said[-1][:, 0], _in_line(likely), _in_line(close), likely[-1], *behind, *early)

    def example(self, sizes: Sizes = TRACED) -> tuple[Any, ...]:
        """Arguments of some sizes, for a call in the middle of the extent."""
        network, device = self.network, self.network.device
        texts, rows = (3 if self.form.many else 1), self.form.rows if self.form.steps else sizes.rows
        positions = (torch.arange(rows, device=device) + sizes.extent // 3).repeat(texts, 1)
        entry: Tensor = torch.arange(3, 3 + rows, device=device).repeat(texts, 1) % network.vocab_size
        if self.form.hidden:
            entry = torch.randn(texts, rows, network.hidden_size, dtype=network.dtype, device=device)
        mask = torch.arange(sizes.extent, device=device) <= positions[:, :, None]
        keyed = torch.arange(sizes.extent, device=device).repeat(texts, 1) if self.form.keyed else None
        read = torch.arange(sizes.read, device=device) if self.reads else None
        buffers = [
            torch.randn(texts, shape[0], sizes.capacity, width, dtype=network.dtype, device=device)
            for shape in self.shapes
            if shape is not None
            for width in shape[1:]
        ]
        return entry, positions, positions.clone(), mask, keyed, read, buffers

    def open_sizes(self) -> tuple[Any, ...]:
        """Which sizes of the arguments are open, as torch.export wants to be told."""
        from torch.export import Dim  # half a second, and nobody who only loads a program needs it

        texts = {0: Dim("texts", min=2, max=MOST_TEXTS)} if self.form.many else {}
        rows = {} if self.form.steps else {1: Dim("rows", min=2, max=MOST_ROWS)}
        extent, capacity = Dim("extent", min=2, max=MOST_SLOTS), Dim("capacity", min=2, max=MOST_SLOTS)
        read = {0: Dim("read", min=2, max=MOST_ROWS)} if self.reads else None
        row = {**texts, **rows}
        keys = {**texts, 1: extent} if self.form.keyed else None
        stores = [{**texts, 2: capacity} for shape in self.shapes if shape is not None for _ in shape[1:]]
        return row, row, row, {**row, 2: extent}, keys, read, stores


def _in_line(parts: Sequence[Tensor]) -> Tensor:
    """[B, S, ...]: what each of some steps said, [B, 1, ...]."""
    return parts[0] if len(parts) == 1 else torch.cat([*parts], 1)
