"""Drafting by looking up what followed the last tokens before.

Shapes: B rows of the batch, N drafted nodes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from fastllm_core import Batch, ConfigError, Context, Draft, Drafter, Proposal, Row, Scores, Verdict

from .corpus import Memory, read
from .index import Index
from .lengths import Lengths
from .record import FARTHEST, Record
from .tree import Tree

if TYPE_CHECKING:
    from torch import Tensor

    from .plugin import PromptLookupOptions

LOOKED_AT: Final = 16
"""Places that a look-up tries at most: a bound, so that a tree costs as much in any text."""


class Match(NamedTuple):
    """A place behind an n-gram that also ends a row's text."""

    source: Index
    end: int
    size: int
    """n."""

    def length(self, tokens: Sequence[int]) -> int:
        """How far back the place and the end of a text agree, up to `FARTHEST` tokens."""
        there, size = self.source.tokens, self.size
        most = min(FARTHEST, self.end, len(tokens))
        while size < most and there[self.end - size - 1] == tokens[-size - 1]:
            size += 1
        return size


class LookUp(Drafter):
    """The continuation of the longest n-gram at the end of a text that stood there, or in the corpus, before.

    Source: prompt look-up decoding, https://github.com/apoorvumang/prompt-lookup-decoding.
    """

    proposal = Proposal.ONE_HOT

    def __init__(self, options: PromptLookupOptions, context: Context) -> None:
        """Read the corpus, if there is one. Raises ConfigError if its files cannot be tokenized."""
        self.options = options
        self.sizes = range(options.min_ngram, options.max_ngram + 1)
        self.indexes: dict[int, Index] = {}
        """Each row's index of its own text, by the row's id."""
        self.lengths = Lengths() if options.adapt else None
        self.drafted: dict[int, int] = {}
        """Levels of each row's draft in the round that is not decided yet."""
        self.records: dict[int, Record] = {}
        self.first: dict[int, tuple[int, Match]] = {}
        """Where each row's text stood before, best place first, how much of it, if that was asked in this round."""
        self.memory = Memory(self._index, options.corpus_tokens) if options.remember else None
        self.files = self._files(context) if options.corpus else None

    def prefill(self, row: Row, start: int, stop: int, hidden: Mapping[int, Tensor]) -> None:
        """Index the piece of the prompt that the target has read."""
        self._own(row, stop)

    def expected_acceptance(self, rows: Sequence[Row]) -> Sequence[float]:
        """How often it was right lately where as much of the text was found; 0 where nothing is found now."""
        return [self._expected(row) for row in rows]

    def propose(self, batch: Batch) -> Draft:
        """A chain for each row, or a tree where rows have several continuations; nothing where nothing is found."""
        trees = [self.tree(row, most) for row, most in zip(batch.rows, batch.draft_lengths, strict=True)]
        self.drafted = {row.id: tree.depth for row, tree in zip(batch.rows, trees, strict=True)}
        return draft_of(trees, batch.device)

    def observe(self, batch: Batch, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        """Learn what look-ups are worth, without asking the device: the text has grown by what is kept."""
        for row, before in zip(batch.rows, batch.lengths, strict=True):
            if row.id in self.first:
                matched, match = self.first.pop(row.id)
                came = row.tokens[before:]
                self.records[row.id].count(matched, match.source.copy(match.end, len(came)), came)
            drafted = self.drafted.pop(row.id, 0)  # in a round in which no row drafts, nobody is asked to propose
            if drafted and self.lengths:
                self.lengths.observe(row.id, drafted, row.length - before - 1)

    def release(self, row: Row) -> None:
        """Forget the row, or remember what it wrote."""
        self.indexes.pop(row.id, None)
        self.drafted.pop(row.id, None)
        self.records.pop(row.id, None)
        self.first.pop(row.id, None)
        if self.lengths:
            self.lengths.release(row.id)
        if self.memory and row.request.speculate:
            self.memory.add(row.tokens[row.prompt_length :])

    def close(self) -> None:
        """Drop every index."""
        self.indexes.clear()
        self.memory = self.files = None

    def tree(self, row: Row, most: int) -> Tree:
        """The row's continuations of at most `most` tokens, merged."""
        tree = Tree()
        if not most:
            return tree
        own = self._own(row, row.length)
        weighed = row.id in self.first  # then whoever asked has chosen the length for what was expected
        count = self.lengths.of(row.id, most) if self.lengths and not weighed else most
        found_at = [self.first[row.id][1]] if weighed and self.options.branches == 1 else self._matches(own)
        copies = (match.source.copy(match.end, count) for match in found_at)
        paths = (cut(path, row.request.eos_token_ids) for path in copies)
        found = 0
        for path in islice(paths, LOOKED_AT):
            found += tree.add(path)
            if found == self.options.branches:
                break
        return tree

    def _expected(self, row: Row) -> float:
        own = self._own(row, row.length)
        match = next(self._matches(own), None)
        if match is None:
            self.first.pop(row.id, None)
            return 0.0
        matched = match.length(own.tokens)
        self.first[row.id] = matched, match
        return self.records.setdefault(row.id, Record()).expected(matched)

    def _matches(self, own: Index) -> Iterator[Match]:
        """Where the end of a text stood before: as the longest n-gram first, of equals in the text itself first."""
        sources = [own, *(self.memory.indexes if self.memory else ()), *([self.files] if self.files else ())]
        for size in reversed(self.sizes):
            if size <= len(own):
                gram = own.tokens[-size:]
                yield from (Match(source, end, size) for source in sources for end in source.ends(gram))

    def _own(self, row: Row, stop: int) -> Index:
        """The index of a row's own text, which takes in what it lacks of the first `stop` tokens."""
        if row.id not in self.indexes:
            self.indexes[row.id] = self._index(row.prompt_length + row.request.max_new_tokens)
        own = self.indexes[row.id]
        own.extend(row.tokens[len(own) : stop])
        return own

    def _index(self, capacity: int) -> Index:
        return Index(self.sizes, capacity, self.options.pick)

    def _files(self, context: Context) -> Index:
        if context.target.tokenizer is None:
            raise ConfigError(
                "options.prompt-lookup.corpus: files of text need a tokenizer, and the model was loaded without one; "
                "give load(..., tokenizer=...)"
            )
        limit = self.options.corpus_tokens
        tokens, whole = read(self.options.corpus, context.target.tokenizer, context.network.vocab_size, limit)
        if not whole:
            logging.getLogger("fastllm").warning(
                "options.prompt-lookup.corpus: only the first %d tokens are used; raise corpus_tokens for more", limit
            )
        index = self._index(len(tokens))
        index.extend(tokens)
        return index


def cut(path: Sequence[int], ends: frozenset[int]) -> Sequence[int]:
    """A path up to the first token that ends a text, which stays: if it is right, the text ends a round sooner."""
    if ends.isdisjoint(path):  # nearly always, and quick
        return path
    return next(path[: at + 1] for at, token in enumerate(path) if token in ends)


def draft_of(trees: Sequence[Tree], device: torch.device) -> Draft:
    """The trees of a batch, padded; a chain if all of them are.

    Returns tokens: int64[B, N], lengths: int64[B], parents: int64[B, N] or None.
    """
    width = max(len(tree.tokens) for tree in trees)
    padded = partial(torch.tensor, dtype=torch.long, device=device)
    tokens = padded([tree.tokens + [0] * (width - len(tree.tokens)) for tree in trees]).reshape(len(trees), width)
    lengths = padded([len(tree.tokens) for tree in trees])
    if all(tree.depth == len(tree.tokens) for tree in trees):
        return Draft(tokens, lengths)
    parents = padded([tree.parents + [-1] * (width - len(tree.parents)) for tree in trees])
    return Draft(tokens, lengths, parents)
