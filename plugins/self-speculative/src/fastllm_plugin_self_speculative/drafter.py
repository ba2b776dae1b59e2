"""Drafting with the target itself, some of its sub-layers skipped.

Shapes: B rows of the batch, N drafted tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastllm_core import (
    Batch,
    Confidence,
    Context,
    Draft,
    Drafter,
    Inputs,
    Network,
    Proposal,
    Purpose,
    Resume,
    SlotCache,
    chain,
    draw,
    warp,
)

if TYPE_CHECKING:
    from .skipset import SkipSet


class SkippingDrafter(Drafter):
    """A chain of tokens from the skipped model, on the target's weights and in the target's own cache.

    A draft begins behind what the whole model has stored. Its rows, the root's among them, lie beyond the committed
    length, where nobody else looks, and verification overwrites every one of them: there is nothing to roll back. A
    layer whose attention is skipped leaves no row.

    If whole layers from E on are skipped, and nothing else, a draft's work over the first E layers is the target's
    own. Then verification resumes at layer E, and those layers' rows stay (LayerSkip, arXiv:2404.16710, section 3.3).
    """

    heeds_thresholds = True

    def __init__(self, context: Context, skipped: SkipSet, *, sample: bool = True) -> None:
        """skipped: what drafts leave out; if that is nothing, nothing is drafted.

        sample: draw drafts where the target samples. Raises UnsupportedModel if the model cannot be run like that.
        """
        assert context.cache is not None
        self.network, self.cache = context.network, context.cache
        self.skipped = skipped
        self.proposal = Proposal.SAMPLED if sample else Proposal.ONE_HOT
        self.resume_layer = skipped.exit_layer(self.network.layers)
        self.hidden = () if self.resume_layer is None else (self.resume_layer,)
        try_once(self.network, skipped, self.hidden)

    def propose(self, batch: Batch) -> Draft:
        """Draft, unless the whole model would: that costs as much as the text itself."""
        if self.skipped:
            return self.draft(batch)
        nothing = torch.zeros(len(batch), 0, dtype=torch.long, device=batch.device)
        return Draft(nothing, torch.zeros(len(batch), dtype=torch.long, device=batch.device))

    def draft(self, batch: Batch) -> Draft:
        """Draft until the longest row has what it asked for, or every row has come to a token that it is unsure of.

        Source: arXiv:2309.08168, algorithm 1, with a threshold of each row's own.
        """
        count = max(batch.draft_lengths)
        extent = self.cache.extent(max(batch.lengths) + count)
        self.cache.reserve(len(batch), extent)
        layers = self.cache.layers(slice(0, len(batch)), extent)
        uniforms = batch.uniforms(Purpose.DRAFT, count) if self._draws(batch) else None
        row = chain(batch.roots[:, None], batch.root_positions, extent)
        confidence = Confidence(batch)
        tokens: list[Tensor] = []
        probs: list[Tensor] = []
        early: list[Tensor] = []
        goes_on = True
        while goes_on:
            said = self.network.advance(
                row,
                layers,
                skip_attention=self.skipped.attention,
                skip_mlp=self.skipped.mlp,
                hidden_layers=self.hidden,
            )
            early += said.hidden
            if uniforms is None:
                tokens.append(said.likely)
                row = said.next
            else:
                probs.append(warp(said.logits[:, None], batch.sampling))
                tokens.append(draw(probs[-1][:, 0], uniforms[:, len(tokens)])[:, None])
                row = said.next.of_tokens(tokens[-1])
            goes_on = confidence.goes_on(said.logits, tokens[-1])
        return Draft(
            torch.cat(tokens, dim=1),
            confidence.lengths,
            probs=torch.cat(probs, dim=1) if probs else None,
            resume=self._resume(row, early, layers),
        )

    def _draws(self, batch: Batch) -> bool:
        """Whether drafts are drawn, rather than the most likely token taken."""
        return self.proposal is Proposal.SAMPLED and not batch.sampling.greedy

    def _resume(self, last: Inputs, early: list[Tensor], layers: Sequence[tuple[Tensor, Tensor]]) -> Resume | None:
        """The first layers' work over root and drafts, of which the last has not been through them yet.

        early: float[B, 1, H] for the root and each draft but the last.
        """
        if self.resume_layer is None:
            return None
        outputs = self.network.forward(last, layers, stop=self.resume_layer)
        return Resume(self.resume_layer, torch.cat([*early, outputs.hidden[self.resume_layer]], dim=1))


def try_once(network: Network, skipped: SkipSet, hidden_layers: tuple[int, ...]) -> None:
    """Run the skipped model over one token. Raises UnsupportedModel if the port cannot."""
    cache = SlotCache(network)
    cache.reserve(1, 1)
    zero = torch.zeros(1, 1, dtype=torch.long, device=network.device)
    passage = network.whole._replace(
        skip_attention=skipped.attention, skip_mlp=skipped.mlp, hidden_layers=hidden_layers
    )
    with torch.inference_mode():
        network.eager(passage, chain(zero, zero[0], cache.capacity), cache.layers(slice(0, 1), cache.capacity))
