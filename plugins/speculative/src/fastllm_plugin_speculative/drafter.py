"""Drafting with a small causal LM.

Shapes: B rows of the batch, N drafted tokens, V vocabulary of the target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from fastllm_core import (
    Batch,
    Context,
    Draft,
    Drafter,
    Inputs,
    Proposal,
    Purpose,
    Row,
    chain,
    draw,
    read,
    verify_same_vocabulary,
    warp,
)

if TYPE_CHECKING:
    from .plugin import SpeculativeOptions


class DraftModel(Drafter):
    """A chain of tokens drawn one by one from the draft model, with the distribution that each was drawn from."""

    def __init__(self, options: SpeculativeOptions, context: Context) -> None:
        """Load the draft model. Raises ModelError if its vocabulary is not the target's."""
        target = context.target
        self.loaded = context.load_model(
            options.draft_model,
            device=context.device.name if options.device == "auto" else options.device,
            dtype=str(target.dtype).removeprefix("torch.") if options.dtype == "auto" else options.dtype,
            revision=options.revision,
        )
        verify_same_vocabulary(target, self.loaded)
        self.proposal = Proposal.SAMPLED if options.sample else Proposal.ONE_HOT
        self.network = context.make_network(self.loaded)
        self.cache = context.make_cache(self.network)
        self.vocab_size = context.network.vocab_size

    @property
    def model(self) -> torch.nn.Module:
        """The draft model as transformers loaded it."""
        return self.loaded.model

    def prefill(self, row: Row, start: int, stop: int, hidden: Mapping[int, Tensor]) -> None:
        """Read the same piece of the prompt as the target just did."""
        self._read(row, start, stop)

    def propose(self, batch: Batch) -> Draft:
        """Draft `max(batch.draft_lengths)` tokens for every row; what a row did not ask for is padding.

        Source: arXiv:2211.17192, algorithm 1, the first loop.
        """
        count = max(batch.draft_lengths)
        extent = self.cache.extent(max(batch.lengths) - 1 + count)
        rows = chain(batch.roots.new_zeros(len(batch), count), batch.starts, extent).to(self.network.device)
        uniforms = batch.uniforms(Purpose.DRAFT, count) if self._draws(batch) else None
        tokens: list[Tensor] = []
        probs: list[Tensor] = []
        for step in range(count):
            if step == 0:
                logits = self._first_logits(batch, extent)
            else:
                logits = self._logits(batch, rows.row(step, tokens[-1][:, None].to(self.network.device)), extent)[:, 0]
            if uniforms is None:
                tokens.append(logits.argmax(-1))
            else:
                probs.append(warp(logits[:, None], batch.sampling))
                tokens.append(draw(probs[-1][:, 0], uniforms[:, step]))
        for row in _drafting(batch):
            self.cache.lengths[row.slot] = row.length - 1 + count  # the last draft has not been read
        lengths = torch.tensor(batch.draft_lengths, device=batch.device)
        return Draft(torch.stack(tokens, dim=1), lengths, probs=torch.cat(probs, dim=1) if probs else None)

    def _draws(self, batch: Batch) -> bool:
        """Whether drafts are drawn, rather than the most likely token taken."""
        return self.proposal is Proposal.SAMPLED and not batch.sampling.greedy

    def _first_logits(self, batch: Batch, extent: int) -> Tensor:
        """float[B, V] after the last committed token, reading whatever the cache lacks.

        After a draft that was accepted whole it lacks two tokens, the last draft and the bonus; after plain rounds,
        more. A row that drafts nothing is not worth reading for: its logits are padding.
        """
        for row in _drafting(batch):
            have = self.cache.lengths[row.slot]
            if have < row.length - 2:
                self._read(row, have, row.length - 2)
        behind = any(self.cache.lengths[row.slot] < row.length - 1 for row in _drafting(batch))
        width = 2 if behind else 1
        starts = [max(row.length - width, 0) for row in batch.rows]
        tokens = [(row.tokens[start:] * 2)[:width] for row, start in zip(batch.rows, starts, strict=True)]
        known = torch.tensor([self._known(pair) for pair in tokens])
        inputs = chain(known, torch.tensor(starts), extent).to(self.network.device)
        logits = self._logits(batch, inputs, extent)
        last = [row.length - 1 - start for row, start in zip(batch.rows, starts, strict=True)]
        return logits[torch.arange(len(last)), last]

    def _read(self, row: Row, start: int, stop: int) -> None:
        """Read some of a row's tokens into the cache."""
        read(self.network, self.cache, row.slot, self._known(row.tokens[start:stop]), start)

    def _known(self, tokens: Sequence[int]) -> list[int]:
        """Tokens with another id in place of those that only the target's vocabulary has: drafts there are worse."""
        last = self.network.vocab_size - 1
        return [min(token, last) for token in tokens]

    def _logits(self, batch: Batch, inputs: Inputs, extent: int) -> Tensor:
        """float[B, R, V] on the target's device, as wide as the target's vocabulary.

        Families pad their embedding to different sizes: ids that the drafter lacks are never drafted.
        """
        outputs = self.network.forward(inputs, self.cache.layers(slice(0, len(batch)), extent))
        assert outputs.logits is not None
        logits = outputs.logits.to(batch.device)
        missing = self.vocab_size - logits.shape[-1]
        return pad(logits, (0, missing), value=float("-inf")) if missing > 0 else logits[..., : self.vocab_size]


def _drafting(batch: Batch) -> list[Row]:
    """The rows that draft in this round."""
    return [row for row, wanted in zip(batch.rows, batch.draft_lengths, strict=True) if wanted]
