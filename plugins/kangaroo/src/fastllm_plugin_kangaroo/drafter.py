"""Drafting with the target's first layers and the adapter behind them.

Shapes: B rows of the batch, N drafted tokens, H hidden size, V vocabulary, P features that the adapter has not read.
A *feature* is the hidden state of a token behind the first layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastllm_core import (
    Batch,
    Confidence,
    Context,
    Draft,
    Drafter,
    Proposal,
    Purpose,
    Resume,
    Row,
    Scores,
    TargetIdentity,
    Verdict,
    chain,
    draw,
    load_head,
    warp,
)

from .adapter import METHOD, AdapterShape, build, skipped

if TYPE_CHECKING:
    from .plugin import KangarooOptions

CHUNK = 64
"""Features that one forward reads, where the adapter has fallen behind."""


class KangarooDrafter(Drafter):
    """A chain of tokens by double early exiting; verification resumes where drafting left the target.

    The first layers run in the target's own cache, behind what is committed: their rows stay, and what they computed is
    handed on. The adapter has a cache of its own, whose rows follow the target's. It lacks the last token of a draft
    that was accepted whole, and what was decoded without it: such features wait in `_unread` until it drafts again.
    """

    heeds_thresholds = True

    def __init__(self, options: KangarooOptions, context: Context) -> None:
        """Load the adapter. Raises ModelError if it is for another target, UnsupportedModel if the port cannot."""
        assert context.cache is not None
        self.network, self.target_cache = context.network, context.cache
        head = load_head(options.adapter, options.revision)
        head.check(METHOD, TargetIdentity.of(self.network))
        self.shape = AdapterShape.read(head.settings, head.source)
        self.shape.check(self.network, head.source)
        self.loaded = build(self.shape, self.network, head.weights, head.source)
        self.adapter = context.make_network(self.loaded)
        self.cache = context.make_cache(self.adapter)
        self.proposal = Proposal.SAMPLED if options.sample else Proposal.ONE_HOT
        self.threshold = options.threshold
        self.exit_layer = self.resume_layer = self.shape.exit_layer
        self.hidden_layers = (self.shape.exit_layer,)
        self._skipped = skipped(self.shape)
        self._unread: dict[int, Tensor] = {}
        """float[P, H] by row id: features of the last committed tokens before the root."""

    @property
    def model(self) -> torch.nn.Module:
        """The adapter, with the target's output matrix."""
        return self.loaded.model

    def prefill(self, row: Row, start: int, stop: int, hidden: Mapping[int, Tensor]) -> None:
        """Read the features of the piece of the prompt that the target just read."""
        self._read(row, hidden[self.exit_layer][0], start)

    def copy(self, source: Row, row: Row) -> bool:
        """The adapter has read all of a prompt that the target has read: behind it nothing is kept but the cache."""
        return True

    def propose(self, batch: Batch) -> Draft:
        """Draft until the longest row has what it asked for, or every row has come to a token that it is unsure of.

        The token at which a draft ends stays in it: the first layers have read it, the adapter has not.
        Source: arXiv:2404.18911, section 3.2.
        """
        uniforms = batch.uniforms(Purpose.DRAFT, max(batch.draft_lengths)) if self._draws(batch) else None
        confidence = Confidence(self._with_threshold(batch))
        features = [self._feature(batch, batch.roots[:, None], 0)]
        logits = self._first(batch, features[0])
        tokens: list[Tensor] = []
        probs: list[Tensor] = []
        while True:
            if uniforms is None:
                tokens.append(logits.max(-1, keepdim=True).indices)
            else:
                probs.append(warp(logits[:, None], batch.sampling))
                tokens.append(draw(probs[-1][:, 0], uniforms[:, len(probs) - 1])[:, None])
            features.append(self._feature(batch, tokens[-1], len(tokens)))
            if not confidence.goes_on(logits, tokens[-1]):
                break
            logits = self._say(features[-1], batch.starts + len(tokens), max(batch.lengths) + len(tokens))[:, 0]
        for row in _drafting(batch):
            self.cache.lengths[row.slot] = row.length - 1 + len(tokens)  # the last draft has not been read
        return Draft(
            torch.cat(tokens, dim=1),
            confidence.lengths,
            probs=torch.cat(probs, dim=1) if probs else None,
            resume=Resume(self.exit_layer, torch.cat(features, dim=1)),
        )

    def observe(self, batch: Batch, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        """Keep the features of committed tokens that the adapter has not read; all but the new root's are known."""
        features = scores.hidden[self.exit_layer]
        for index, (row, before) in enumerate(zip(batch.rows, batch.lengths, strict=True)):
            missing = row.length - 1 - self.cache.lengths[row.slot]
            if not missing or not row.request.speculate:
                self._unread.pop(row.id, None)
                continue
            new = features[index, : row.length - before]
            known = torch.cat([self._unread[row.id], new]) if row.id in self._unread else new
            self._unread[row.id] = known[-missing:].clone()

    def release(self, row: Row) -> None:
        """Forget the row's features."""
        self._unread.pop(row.id, None)

    # -- the two networks ------------------------------------------------------------------------------------------

    def _feature(self, batch: Batch, tokens: Tensor, step: int) -> Tensor:
        """float[B, 1, H]: one token of each row through the first layers, `step` places behind the root.

        tokens: int64[B, 1]
        """
        extent = self.target_cache.extent(max(batch.lengths) + step)
        self.target_cache.reserve(len(batch), extent)
        layers = self.target_cache.layers(slice(0, len(batch)), extent)
        row = chain(tokens, [place + step for place in batch.root_positions], extent)
        return self.network.forward(row, layers, stop=self.exit_layer).hidden[self.exit_layer]

    def _first(self, batch: Batch, roots: Tensor) -> Tensor:
        """What the adapter says behind the root of every row, float[B, V]: it reads what it lacks, then the root.

        roots: float[B, 1, H]. Usually nothing is lacking, or the last token of a draft that was accepted whole.
        """
        drafting = _drafting(batch)
        lacking = [self._catch_up(row) if row in drafting else None for row in batch.rows]
        if all(part is None for part in lacking):
            return self._say(roots, batch.starts, max(batch.lengths))[:, 0]
        # A row that lacks nothing has its root twice: what the second writes is behind the root, and is overwritten.
        behind = torch.tensor([part is not None for part in lacking], device=batch.device)
        first = torch.stack([root if part is None else part for part, root in zip(lacking, roots, strict=True)])
        both = torch.cat([first, roots], dim=1)
        logits = self._say(both, batch.starts - behind.long(), max(batch.lengths) + 1)
        return logits.gather(1, behind.long()[:, None, None].expand(-1, 1, logits.shape[-1]))[:, 0]

    def _catch_up(self, row: Row) -> Tensor | None:
        """float[1, H]: the feature before the root's, if the adapter lacks it; what is older is read here."""
        unread = self._unread.pop(row.id, None)
        if unread is None:
            return None
        first = row.length - 1 - len(unread)
        for start in range(0, len(unread) - 1, CHUNK):
            self._read(row, unread[start : min(start + CHUNK, len(unread) - 1)], first + start)
        return unread[-1:]

    def _read(self, row: Row, features: Tensor, start: int) -> None:
        """Read features, float[P, H], of the tokens from `start` on, in a forward of a few fixed widths."""
        count = len(features)
        width = 1 << (count - 1).bit_length()
        padded = torch.cat([features, features[-1:].expand(width - count, -1)])[None]
        self.cache.reserve(row.slot + 1, start + width)
        first = torch.tensor([start], device=features.device)
        self._run(padded, first, start + width, slice(row.slot, row.slot + 1), last_logits_only=True)
        self.cache.lengths[row.slot] = start + count

    def _say(self, features: Tensor, starts: Tensor, slots: int) -> Tensor:
        """Features of every row through the adapter: float[B, R, H] to float[B, R, V]."""
        self.cache.reserve(len(features), self.cache.extent(slots))
        return self._run(features, starts, slots, slice(0, len(features)))

    def _run(
        self, features: Tensor, starts: Tensor, slots: int, rows: slice, *, last_logits_only: bool = False
    ) -> Tensor:
        extent = self.cache.extent(slots)
        inputs = chain(features[..., 0], starts, extent, hidden=features)  # in place of tokens, which it only counts
        outputs = self.adapter.forward(
            inputs, self.cache.layers(rows, extent), last_logits_only=last_logits_only, skip_mlp=self._skipped
        )
        assert outputs.logits is not None
        return outputs.logits[..., : self.network.vocab_size]

    # -- the second exit -------------------------------------------------------------------------------------------

    def _draws(self, batch: Batch) -> bool:
        """Whether drafts are drawn, rather than the most likely token taken."""
        return self.proposal is Proposal.SAMPLED and not batch.sampling.greedy

    def _with_threshold(self, batch: Batch) -> Batch:
        """The batch with the configured threshold, unless the controller brings thresholds of its own."""
        if any(batch.thresholds) or not self.threshold:
            return batch
        return replace(batch, thresholds=(self.threshold,) * len(batch))


def _drafting(batch: Batch) -> Sequence[Row]:
    """The rows that draft in this round."""
    return [row for row, wanted in zip(batch.rows, batch.draft_lengths, strict=True) if wanted]
