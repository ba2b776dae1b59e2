"""Another plugin's drafter over the text in other tokens: what it drafts is translated back.

Shapes: B rows of the batch, M drafted tokens of the inner drafter.
Source: arXiv:2502.05202, string-level exact match, for a drafter of any kind.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Final, Self

from fastllm_core import (
    Batch,
    Context,
    Draft,
    Drafter,
    KVCache,
    Network,
    Proposal,
    Request,
    Row,
    Sampling,
    SamplingParams,
)

from .drafter import LONGEST, agreement, chain_of, length_of
from .reading import Reading
from .translation import translate
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from torch import Tensor

    from .plugin import UagOptions

GREEDY: Final = SamplingParams()


@dataclass(slots=True)
class Text:
    """What is kept for a row."""

    reading: Reading
    inner: Row | None = None
    """The row as the inner drafter knows it, in its tokens; None before there are any."""
    drafted: list[int] = field(default_factory=list)
    """What it drafted behind them, which its caches hold."""


class Relay(Drafter):
    """Hands the text to a drafter in its own tokens. It drafts greedily, and is told nothing of what was kept.

    A row's tokens may change at their end, where the text has not come to a safe place to divide it. The inner drafter
    then begins the row anew: protocols know no way back.
    """

    proposal = Proposal.ONE_HOT

    def __init__(self, inner: Drafter, target: Vocabulary, drafter: Vocabulary, caches: list[KVCache]) -> None:
        """inner: over the tokens of `drafter`.  caches: those that it made."""
        self.inner, self.target, self.vocabulary, self._caches = inner, target, drafter, caches
        self._to_drafter = target.counterparts(drafter, "bos_token_id")
        self._to_target = drafter.counterparts(target, "eos_token_id")
        self._texts: dict[int, Text] = {}
        self._ids = count(1)

    @classmethod
    def of(cls, name: str, options: UagOptions, context: Context) -> Self:
        """Load the draft model, whose tokens are drafted, and compose the other plugin's drafter over them.

        Raises ModelError, ConfigError, or what composing a plugin raises.
        """
        target = Vocabulary(context.target, "model")
        loaded = context.load_model(options.draft_model, options.device, options.dtype, options.revision)
        drafter = Vocabulary(loaded, "options.uag.draft_model")
        caches: list[KVCache] = []

        def make_cache(network: Network) -> KVCache:
            caches.append(context.make_cache(network, foreign=True))
            return caches[-1]

        made = cls(context.make_drafter(name, loaded, make_cache, options.drafter_options), target, drafter, caches)
        logging.getLogger("fastllm").info("uag: %s drafts in the tokens of '%s'", name, drafter.name)
        return made

    def prefill(self, row: Row, start: int, stop: int, hidden: Mapping[int, Tensor]) -> None:
        """Read the same piece of the prompt as the target just did."""
        self._follow(row, row.tokens[:stop])

    def propose(self, batch: Batch) -> Draft:
        """What the inner drafter says of the rows that want a draft, in the target's tokens."""
        texts = [self._follow(row, row.tokens) if row.request.speculate else None for row in batch.rows]
        inner = self._inner_batch(batch, texts)
        lines: list[list[int]] = [[] for _ in batch.rows]
        if any(inner.draft_lengths):
            drafts = _paths(self.inner.propose(inner))
            for slot, text in enumerate(texts):
                if text is not None and inner.draft_lengths[slot]:
                    text.drafted = drafts[slot]
                    lines[slot] = translate(text.reading, drafts[slot], self._to_target)
        return chain_of(batch, lines, self.target.size)

    def release(self, row: Row) -> None:
        """Let the inner drafter's row go."""
        text = self._texts.pop(row.id, None)
        if text is not None and text.inner is not None:
            self.inner.release(text.inner)

    def close(self) -> None:
        """Close the inner drafter."""
        self.inner.close()

    def _inner_batch(self, batch: Batch, texts: Sequence[Text | None]) -> Batch:
        """All rows in their slots. One that never spoke is a token of which nothing is stored."""
        rows, lengths = [], []
        for slot, (row, text, most) in enumerate(zip(batch.rows, texts, batch.draft_lengths, strict=True)):
            known = text.inner if text else None
            rows.append(known or Row(0, Request((0,), 1), [0], row.seed, slot))
            lengths.append(length_of(text.reading, row, most) if text and known and most else 0)
        self._reserve(len(rows), max(row.length for row in rows) + max(lengths))
        return Batch(tuple(rows), tuple(lengths), batch.device, Sampling.of([GREEDY] * len(rows), batch.device))

    def _follow(self, row: Row, tokens: list[int]) -> Text:
        """Read a row's tokens, and hand on what has come."""
        text = self._texts.setdefault(row.id, Text(Reading(self.target, self.vocabulary, self._to_drafter)))
        text.reading.read(tokens)
        own, inner = text.reading.ids, text.inner
        if inner is not None:
            self._keep(row.slot, min(agreement([*inner.tokens, *text.drafted], own), max(0, len(own) - 1)))
            text.drafted = []
            inner.slot = row.slot
            known = len(inner.tokens)
            if own[:known] == inner.tokens and len(own) <= known + _room(inner):
                inner.tokens += own[known:]
                return text
            self.inner.release(inner)
            text.inner = None
        if own:
            self._keep(row.slot, 0)
            left = row.prompt_length + row.request.max_new_tokens - len(tokens)
            request = Request(tuple(own), max(1, LONGEST * left), GREEDY, row.seed)
            text.inner = Row(next(self._ids), request, list(own), row.seed, row.slot)
            if len(own) > 1:  # the last token is the root of what is drafted
                self._reserve(row.slot + 1, len(own))
                self.inner.prefill(text.inner, 0, len(own) - 1, {})
        return text

    def _reserve(self, rows: int, slots: int) -> None:
        for cache in self._caches:
            cache.reserve(rows, cache.extent(slots))

    def _keep(self, slot: int, count: int) -> None:
        """Forget what the inner drafter's caches hold of a row behind its first `count` tokens."""
        for cache in self._caches:
            if slot < len(cache.lengths):
                cache.lengths[slot] = min(cache.lengths[slot], count)


def _room(row: Row) -> int:
    """Tokens that may still come to a row: texts of many bytes outgrow what was foreseen."""
    return row.prompt_length + row.request.max_new_tokens - row.length


def _paths(draft: Draft) -> list[list[int]]:
    """Each row's drafted tokens; of a tree, the path of first children."""
    lines = [line[:length] for line, length in zip(draft.tokens.tolist(), draft.lengths.tolist(), strict=True)]
    if draft.parents is None:
        return lines
    return [_first_path(line, parents) for line, parents in zip(lines, draft.parents.tolist(), strict=True)]


def _first_path(tokens: list[int], parents: list[int]) -> list[int]:
    path, at = [], -1
    for node, token in enumerate(tokens):
        if parents[node] == at:
            path.append(token)
            at = node
    return path
