"""What the frozen target says of packed rows: the lessons, made as they are needed.

The target runs through the same port as in generation, so that what a head learns from is what it will meet.
"""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from fastllm_core import Inputs, Lesson, Network, SlotCache, visible

from .rows import Rows


class Teacher:
    """A frozen target that reads rows."""

    def __init__(self, network: Network, hidden_layers: tuple[int, ...]) -> None:
        """hidden_layers: see `fastllm_core.Lesson`."""
        self.network, self.hidden_layers = network, hidden_layers
        self.cache = SlotCache(network)

    def lesson(self, rows: Rows) -> Lesson:
        """Read some rows, all documents at once, each seeing itself only."""
        device = self.network.device
        tokens, documents, positions = (
            part.to(device, torch.long) for part in (rows.tokens, rows.documents, rows.positions)
        )
        count, length = tokens.shape
        extent = self.cache.extent(length)
        self.cache.reserve(count, extent)
        missing = extent - length
        inputs = Inputs(
            tokens=tokens,
            hidden=None,
            positions=positions,
            slots=torch.arange(length, device=device).expand(count, -1),
            mask=pad(visible(documents), (0, missing)),
            key_positions=pad(positions, (0, missing)),
        )
        layers = self.cache.layers(slice(0, count), extent)
        outputs = self.network.forward(inputs, layers, hidden_layers=self.hidden_layers)
        assert outputs.logits is not None
        return Lesson(
            tokens=tokens,
            documents=documents,
            positions=positions,
            answers=rows.answers.to(device),
            # Copies: what was made in inference mode cannot be kept for a backward pass.
            hidden={layer: outputs.hidden[layer].clone() for layer in self.hidden_layers},
            logits=outputs.logits.clone(),
        )
