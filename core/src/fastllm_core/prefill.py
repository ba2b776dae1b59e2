"""Reading known tokens into a cache: a prompt before the first round, and what a drafter has missed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from . import layout

if TYPE_CHECKING:
    from .network import Network
    from .port import Outputs
    from .protocols import KVCache


def read(
    network: Network,
    cache: KVCache,
    slot: int,
    tokens: Sequence[int],
    start: int,
    *,
    hidden_layers: tuple[int, ...] = (),
) -> dict[int, torch.Tensor]:
    """Read tokens into one row of a cache, at positions `start, start + 1, ...`, in a forward of a few fixed widths.

    Returns the hidden states asked for, float[1, len(tokens), H] each.
    """
    outputs = _read(network, cache, slot, tokens, start, hidden_layers, last_logits_only=True)
    return {layer: states[:, : len(tokens)] for layer, states in outputs.hidden.items()}


def read_and_score(
    network: Network,
    cache: KVCache,
    slot: int,
    tokens: Sequence[int],
    start: int,
    *,
    hidden_layers: tuple[int, ...] = (),
) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
    """As `read`, and the logits behind every token as well: float[len(tokens), V]."""
    outputs = _read(network, cache, slot, tokens, start, hidden_layers, last_logits_only=False)
    assert outputs.logits is not None
    hidden = {layer: states[:, : len(tokens)] for layer, states in outputs.hidden.items()}
    return hidden, outputs.logits[0, : len(tokens)]


def _read(
    network: Network,
    cache: KVCache,
    slot: int,
    tokens: Sequence[int],
    start: int,
    hidden_layers: tuple[int, ...],
    *,
    last_logits_only: bool,
) -> Outputs:
    width = 1 << (len(tokens) - 1).bit_length()
    padded = torch.tensor([[*tokens, *[tokens[-1]] * (width - len(tokens))]], device=network.device)
    cache.reserve(slot + 1, start + width)  # so that the shapes depend on the prompt alone (see `exact`)
    extent = cache.extent(start + width)
    inputs = layout.chain(padded, torch.tensor([start], device=network.device), extent)
    outputs = network.forward(
        inputs,
        cache.layers(slice(slot, slot + 1), extent),
        hidden_layers=hidden_layers,
        last_logits_only=last_logits_only,
    )
    cache.lengths[slot] = start + len(tokens)
    return outputs
