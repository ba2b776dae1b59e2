"""The draft model and its cache, which is counted in its own tokens.

Shapes: B rows of the batch, C rows of a forward that catches up, U vocabulary of the drafter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from fastllm_core import Advance, Context, advanced, chain, read

if TYPE_CHECKING:
    from .plugin import UagOptions

AT_ONCE: Final = 8
"""The most tokens of a text that all rows read in one forward; what lacks more is read before, alone."""


class DraftModel:
    """Continues texts in its own tokens. A text is named by its slot, and says what of it is stored already."""

    def __init__(self, options: UagOptions, context: Context) -> None:
        """Load the model. Raises ModelError."""
        self.loaded = context.load_model(options.draft_model, options.device, options.dtype, options.revision)
        self.network = context.make_network(self.loaded)
        self.cache = context.make_cache(self.network, foreign=True)

    def window(self, tokens: list[int], count: int) -> list[int]:
        """The end of a text that leaves room for `count` more in the model's context.

        It moves by half a context at a time, so that the cache is read anew only then.
        """
        limit = self.loaded.context_length
        excess = 0 if limit is None else len(tokens) + count - limit
        if limit is None or excess <= 0:
            return tokens
        half = max(1, limit // 2)
        return tokens[-(-excess // half) * half :]

    def keep(self, slot: int, count: int) -> None:
        """Forget what is stored of a text behind its first `count` tokens."""
        if slot < len(self.cache.lengths):
            self.cache.lengths[slot] = min(self.cache.lengths[slot], count)

    def stored(self, slot: int) -> int:
        """Tokens of a text that need not be read any more."""
        return self.cache.lengths[slot] if slot < len(self.cache.lengths) else 0

    def read(self, slot: int, tokens: Sequence[int]) -> None:
        """Read what is not stored yet of a text."""
        have = self.stored(slot)
        if have < len(tokens):
            read(self.network, self.cache, slot, tokens[have:], have)

    def start(self, texts: Mapping[int, list[int]], rows: int, count: int) -> Advance:
        """Read the texts up to their ends, where `count` drafts will follow. What other rows say is padding.

        texts: tokens by slot, never empty.  rows: B, the slots.  Returns logits float[B, U] on the model's device.
        """
        size = self._catch_up(texts)
        for slot, tokens in texts.items():
            self.read(slot, tokens[:-size])
        # A row that does not draft writes behind what is stored of it, which nobody sees.
        first = [len(texts[slot]) - size if slot in texts else self.stored(slot) for slot in range(rows)]
        self.extent = self.cache.extent(max(first) + size + count - 1)
        self.cache.reserve(rows, self.extent)
        self.rows = slice(0, rows)
        ends = [texts.get(slot, [0] * size)[-size:] for slot in range(rows)]
        inputs = chain(torch.tensor(ends, device=self.network.device), first, self.extent)
        for slot, text in texts.items():
            self.cache.lengths[slot] = len(text) + count - 1  # the last draft will not have been read
        if size == 1:
            return self.network.advance(inputs, self.cache.layers(self.rows, self.extent))
        logits = self.network.forward(inputs, self.cache.layers(self.rows, self.extent)).logits
        assert logits is not None
        return advanced(logits[:, -1:], inputs.last())

    def go_on(self, said: Advance, tokens: Tensor) -> Advance:
        """Read each row's draft, int64[B, 1]."""
        row = said.next if tokens is said.next.tokens else said.next.of_tokens(tokens)
        return self.network.advance(row, self.cache.layers(self.rows, self.extent))

    def _catch_up(self, texts: Mapping[int, list[int]]) -> int:
        """C, a power of two: enough for what most texts lack, and no more than the shortest has."""
        lacking = max(len(tokens) - self.stored(slot) for slot, tokens in texts.items())
        size = 1
        while size < min(lacking, AT_ONCE) and 2 * size <= min(map(len, texts.values())):
            size *= 2
        return size
