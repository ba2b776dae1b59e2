"""Drafting with a small causal LM.

Shapes: B rows of the batch, N drafted tokens, V vocabulary of the target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor
from torch.nn.functional import pad

from fastllm_core import (
    Advance,
    Batch,
    Confidence,
    Context,
    Draft,
    Drafter,
    Proposal,
    Purpose,
    Row,
    Slate,
    chain,
    draw,
    read,
    verify_same_vocabulary,
    warp,
)

if TYPE_CHECKING:
    from .plugin import SpeculativeOptions


MOST_MISSING: Final = 2
"""Tokens that enter in one forward with a text's last one; what else the cache lacks is read before."""


class DraftModel(Drafter):
    """A chain of tokens drawn one by one from the draft model, with the distribution that each was drawn from."""

    heeds_thresholds = True

    def __init__(self, options: SpeculativeOptions, context: Context) -> None:
        """Load the draft model. Raises ModelError if its vocabulary is not the target's."""
        target = context.target
        self.loaded = context.load_model(options.draft_model, options.device, options.dtype, options.revision)
        verify_same_vocabulary(target, self.loaded)
        self.proposal = Proposal.SAMPLED if options.sample else Proposal.ONE_HOT
        self.network = context.make_network(self.loaded)
        self.cache = context.make_cache(self.network)
        self._slate = Slate(self.network.device)
        self.vocab_size = context.network.vocab_size
        self._fits = self.network.vocab_size == self.vocab_size and self.network.device == context.network.device

    @property
    def model(self) -> torch.nn.Module:
        """The draft model as transformers loaded it."""
        return self.loaded.model

    def prefill(self, row: Row, start: int, stop: int, hidden: Mapping[int, Tensor]) -> None:
        """Read the same piece of the prompt as the target just did."""
        self._read(row, start, stop)

    def copy(self, source: Row, row: Row) -> bool:
        """Nothing is kept for a row beside the cache."""
        return True

    def propose(self, batch: Batch) -> Draft:
        """Draft `max(batch.draft_lengths)` tokens for every row, or fewer where all are unsure; the rest is padding.

        Source: arXiv:2211.17192, algorithm 1, the first loop.
        """
        count = max(batch.draft_lengths)
        extent = self.cache.extent(max(batch.root_positions) + count)
        confidence = Confidence(batch)
        probs = None
        looked_at = self._draws(batch) or confidence.watches or not self._fits
        if not looked_at and self.network.at_once(len(batch), count, MOST_MISSING):
            tokens = self._first(batch, extent, count).likely
            confidence.told(tokens)
        else:  # which ends with a token that ends the text
            tokens, probs = self._one_by_one(batch, count, extent, confidence)
        for row in _drafting(batch):
            self.cache.lengths[row.slot] = row.length - 1 + tokens.shape[1]  # the last draft has not been read
        return Draft(tokens, confidence.lengths, probs=probs)

    def _one_by_one(
        self, batch: Batch, count: int, extent: int, confidence: Confidence
    ) -> tuple[Tensor, Tensor | None]:
        """Draft, and look at every token before the next: int64[B, N], and what they were drawn from."""
        uniforms = batch.uniforms(Purpose.DRAFT, count) if self._draws(batch) else None
        said = self._first(batch, extent)
        layers = self._layers(batch, extent)
        tokens: list[Tensor] = []
        probs: list[Tensor] = []
        for step in range(count):
            if step:
                behind = said.next
                if tokens[-1] is not behind.tokens:  # drawn, or of another device or vocabulary
                    behind = behind.of_tokens(tokens[-1].to(self.network.device))
                said = self._fitted(self.network.advance(behind, layers), batch)
            if uniforms is None:
                tokens.append(said.likely)
            else:
                probs.append(warp(said.logits[:, None], batch.sampling))
                tokens.append(draw(probs[-1][:, 0], uniforms[:, step])[:, None])
            if not confidence.goes_on(said.logits, tokens[-1]):
                break
        return torch.cat(tokens, dim=1), torch.cat(probs, dim=1) if probs else None

    def _layers(self, batch: Batch, extent: int) -> Sequence[tuple[Tensor, Tensor]]:
        return self.cache.layers(slice(0, len(batch)), extent)

    def _draws(self, batch: Batch) -> bool:
        """Whether drafts are drawn, rather than the most likely token taken."""
        return self.proposal is Proposal.SAMPLED and not batch.sampling.greedy

    def _first(self, batch: Batch, extent: int, steps: int = 1) -> Advance:
        """Read the last committed token of every row, and before it whatever the cache lacks, then go on drafting.

        After a draft that was accepted whole it lacks two tokens, the last draft and the bonus; after plain rounds,
        more. A row that drafts nothing is not worth reading for: what it says is padding. Where all steps are one call,
        two rows enter in any case, so that one program serves every round.
        """
        most = min(MOST_MISSING, *batch.lengths)  # a text of one token has nothing before its root
        behind = steps > 1
        for row in _drafting(batch):
            have = self.cache.lengths[row.slot]
            if have < row.length - most:
                self._read(row, have, row.length - most)
            behind = behind or have < row.length - 1
        count = most if behind else 1
        starts = [place + 1 - count for place in batch.root_positions]
        inputs = chain(self._last(batch, count), starts, extent)
        return self._fitted(self.network.advance(inputs, self._layers(batch, extent), steps=steps), batch)

    def _last(self, batch: Batch, count: int) -> Tensor:
        """int64[B, count]: the last tokens of every row, on the drafter's device."""
        if count == 1 and self._fits:
            return batch.roots.unsqueeze(1)
        known = [self._known(row.tokens[-count:]) for row in batch.rows]
        return self._slate.write(known)

    def _read(self, row: Row, start: int, stop: int) -> None:
        """Read some of a row's tokens into the cache."""
        read(self.network, self.cache, row.slot, self._known(row.tokens[start:stop]), start)

    def _known(self, tokens: Sequence[int]) -> list[int]:
        """Tokens with another id in place of those that only the target's vocabulary has: drafts there are worse."""
        if self._fits:
            return list(tokens)
        last = self.network.vocab_size - 1
        return [min(token, last) for token in tokens]

    def _fitted(self, said: Advance, batch: Batch) -> Advance:
        """The same on the target's device and over the target's vocabulary.

        Families pad their embedding to different sizes: ids that the drafter lacks are never drafted.
        """
        if self._fits:
            return said
        logits = said.logits.to(batch.device)
        missing = self.vocab_size - logits.shape[-1]
        logits = pad(logits, (0, missing), value=float("-inf")) if missing > 0 else logits[..., : self.vocab_size]
        return Advance(logits, logits.max(-1, keepdim=True).indices, said.next)


def _drafting(batch: Batch) -> list[Row]:
    """The rows that draft in this round."""
    return [row for row, wanted in zip(batch.rows, batch.draft_lengths, strict=True) if wanted]
