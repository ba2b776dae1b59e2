"""The exact law of what several rounds write: every draft, uniform and round, through a real drafter and acceptor.

Nothing is sampled. `GridBatch` asks for uniforms by the keys of a real `Batch`, but the number of each key runs over
the cells of a grid, and every combination is a row of the batch. A key that is asked for again, in the same round or in
a later one, gives the same number again, so randomness that is reused shows in the law as it would show in life.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise, product
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ..batch import Batch, Row
from ..controls import Controls
from ..deciding import decide
from ..history import History
from ..protocols import Acceptor, Draft, Drafter, Proposal, Scores, Verdict
from ..randomness import Purpose
from ..request import Request, SamplingParams
from ..rows import LiveRow
from ..sampling import Sampling, draw
from ..verdicts import depths
from .laws import Law, Table

Key = tuple[Purpose, int, int]
"""(purpose, first counter, second counter). The first counter is a position, or the committed length of a round."""
Borders = Mapping[Purpose | Key, Sequence[float]]
"""Where a number may change a decision, within (0, 1): for a key, or else for all keys of a purpose.

A superset will do. What has no borders decides nothing.
"""

PROMPT = (0,)
WARM = SamplingParams(temperature=1.0)
NEUTRAL = Controls()
_UNKNOWN = -1.0


@dataclass(frozen=True)
class Texts:
    """R texts of equal length, so far, each with its probability and the numbers that may be asked for again."""

    tokens: Tensor
    """int64[R, n], without the prompt."""
    weights: Tensor
    """float64[R]"""
    numbers: Mapping[Key, Tensor] = field(default_factory=dict)
    """float64[R] each; -1 where a text has none yet."""

    def split(self, key: Key, cells: Sequence[tuple[float, float]]) -> Texts:
        """Give a number to the texts that lack it: one text for each cell."""
        known = self.numbers.get(key, torch.full_like(self.weights, _UNKNOWN))
        parts = torch.where(known == _UNKNOWN, len(cells), 1)
        source = torch.arange(len(parts)).repeat_interleave(parts)
        cell = torch.arange(len(source)) - (parts.cumsum(0) - parts)[source]
        middles, widths = torch.tensor(cells, dtype=torch.float64).unbind(1)
        old = known[source] != _UNKNOWN
        picked = self.pick(source)
        numbers = {**picked.numbers, key: torch.where(old, known[source], middles[cell])}
        return Texts(picked.tokens, picked.weights * torch.where(old, 1.0, widths[cell]), numbers)

    def pick(self, index: Tensor) -> Texts:
        """Some of the texts."""
        return Texts(
            self.tokens[index], self.weights[index], {key: value[index] for key, value in self.numbers.items()}
        )

    def merged(self) -> Texts:
        """Equal texts with equal numbers are one."""
        keys = list(self.numbers)
        table = torch.cat([self.tokens.double(), *[self.numbers[key][:, None] for key in keys]], 1)
        unique, inverse = np.unique(table.numpy(), axis=0, return_inverse=True)
        weights = torch.from_numpy(np.bincount(inverse.reshape(-1), weights=self.weights.numpy()))
        rows, size = torch.from_numpy(unique), self.tokens.shape[1]
        return Texts(rows[:, :size].long(), weights, {key: rows[:, size + i] for i, key in enumerate(keys)})

    def __add__(self, other: Texts) -> Texts:
        keys = dict.fromkeys([*self.numbers, *other.numbers])
        numbers = {
            key: torch.cat([each.numbers.get(key, torch.full_like(each.weights, _UNKNOWN)) for each in (self, other)])
            for key in keys
        }
        return Texts(torch.cat([self.tokens, other.tokens]), torch.cat([self.weights, other.weights]), numbers)


@dataclass(eq=False)
class GridBatch(Batch):
    """A batch of texts of one length. Subclass it and override `uniforms` to show what wrong keys do."""

    texts: Texts

    def later(self, index: Sequence[int], rows: tuple[Row, ...]) -> Self:
        """Some of its texts, with their numbers."""
        return replace(super().later(index, rows), texts=self.texts.pick(torch.tensor(index)))

    def _keyed(self, purpose: Purpose, counters: list[list[tuple[int, int]]]) -> Tensor:
        keys = [(purpose, *pair) for pair in counters[0]]
        if any(key[1] < self.lengths[0] for key in keys):
            raise AssertionError(f"a number of {purpose.name} that an earlier round used up is asked for again")
        known = self.texts.numbers
        new = [key for key in dict.fromkeys(keys) if key not in known or bool((known[key] == _UNKNOWN).any())]
        if new:
            raise _NewKeys(new)
        return torch.stack([known[key] for key in keys], 1) if keys else torch.zeros(len(self), 0, dtype=torch.float64)


class _NewKeys(Exception):
    """Numbers are asked for that some texts do not have yet."""

    def __init__(self, keys: Sequence[Key]) -> None:
        super().__init__(keys)
        self.keys = keys


@dataclass(frozen=True)
class Enumeration:
    """What is to be enumerated: texts of `count` tokens by a target that follows the table p."""

    p: Table
    drafter: Drafter | None
    acceptor: Acceptor
    borders: Borders
    count: int
    draft_length: int
    sampling: SamplingParams = WARM
    batch: type[GridBatch] = GridBatch
    controls: Controls = NEUTRAL
    """What is done to the table's logits. Processors may remember nothing: a round is repeated until it is whole."""

    def law(self) -> Law:
        """The law of the texts."""
        start = Texts(torch.zeros(1, 0, dtype=torch.long), torch.ones(1, dtype=torch.float64))
        waiting = {0: start}
        for length in range(self.count):  # every round adds a token, so nothing comes back to a length
            if length in waiting:
                for texts in self._round(waiting.pop(length)):
                    size = texts.tokens.shape[1]
                    waiting[size] = (waiting[size] + texts if size in waiting else texts).merged()
        done = waiting[self.count]
        law = np.zeros((len(self.p(())),) * self.count)
        np.add.at(law, tuple(done.tokens.T.numpy()), done.weights.numpy())
        return law

    def _round(self, texts: Texts) -> Iterator[Texts]:
        """Every outcome of a round, by the number of tokens that it adds; first split until no number is missing."""
        while True:
            batch = self._batch(texts)
            try:
                draft = self._propose(batch)
                verdict = self._decide(batch, draft)
                break
            except _NewKeys as new:
                for key in new.keys:
                    borders = self.borders.get(key, self.borders.get(key[0], ()))
                    texts = texts.split(key, _cells(tuple(borders)))
        length = batch.lengths[0]
        for accepted in sorted(set(verdict.accepted.tolist())):
            index = (verdict.accepted == accepted).nonzero()[:, 0]
            some = texts.pick(index)
            ahead = {key: value for key, value in some.numbers.items() if key[1] > length + accepted}
            yield Texts(torch.cat([some.tokens, verdict.tokens[index, : accepted + 1]], 1), some.weights, ahead)

    def _batch(self, texts: Texts) -> GridBatch:
        request = Request(PROMPT, self.count, self.sampling, controls=self.controls)
        rows = tuple(Row(i, request, [*PROMPT, *text], 0, i) for i, text in enumerate(texts.tokens.tolist()))
        most = min(self.draft_length, self.count - texts.tokens.shape[1] - 1)  # the extra token needs room
        sampling = Sampling.of([self.sampling] * len(rows), "cpu")
        return self.batch(rows, (most,) * len(rows), torch.device("cpu"), sampling, texts)

    def _propose(self, batch: GridBatch) -> Draft:
        if self.drafter is not None and any(batch.draft_lengths):
            return self.drafter.propose(batch)
        nothing = torch.zeros(len(batch), 0, dtype=torch.long)
        return Draft(nothing, torch.zeros(len(batch), dtype=torch.long))

    def _decide(self, batch: GridBatch, draft: Draft) -> Verdict:
        scores = self._score(batch, draft)
        if self.controls == NEUTRAL:
            return self.acceptor.decide(batch, draft, scores)
        rows = [_live(row, self.count) for row in batch.rows]
        return decide(self.acceptor, batch, rows, draft, scores, torch.float32).verdict

    def _score(self, batch: GridBatch, draft: Draft) -> Scores:
        return Scores(_rows(self.p, batch, draft.tokens, draft.parents).log())


class TableTree(Drafter):
    """Draws a tree of fixed shape, each node from its parent's distribution in a table; or takes the most likely ones.

    With `Proposal.ONE_HOT` the children of a node are the table's most likely tokens, in order.
    """

    def __init__(self, q: Table, parents: Sequence[int], proposal: Proposal) -> None:
        """parents: as in `Draft`, level by level, so that a short draft is the first few nodes."""
        self.q, self.proposal = q, proposal
        self.parents = torch.tensor([parents], dtype=torch.long)
        self.levels = depths(self.parents)[0, 1:]

    def propose(self, batch: Batch) -> Draft:
        """The levels that are asked for."""
        count = int((self.levels <= max(batch.draft_lengths)).sum())
        parents = self.parents[:, :count].expand(len(batch), -1)
        one_hot = self.proposal is Proposal.ONE_HOT
        uniforms = None if one_hot else batch.uniforms(Purpose.DRAFT, count)
        tokens = torch.zeros(len(batch), count, dtype=torch.long)
        for node in range(count):
            above = int(self.parents[0, node])
            left = _rows(self.q, batch, tokens[:, :node], parents[:, :node])[:, above + 1]
            if one_hot or self.proposal is Proposal.WITHOUT_REPLACEMENT:
                siblings = [i for i in range(node) if self.parents[0, i] == above]
                left = left.scatter(1, tokens[:, siblings], 0.0)
            tokens[:, node] = left.argmax(-1) if uniforms is None else draw(left, uniforms[:, node])
        probs = None if one_hot else _rows(self.q, batch, tokens, parents)
        chain = bool((self.parents == torch.arange(self.parents.shape[1]) - 1).all())
        lengths = torch.full((len(batch),), count)
        return Draft(tokens, lengths, None if chain else parents, probs)


def _live(row: Row, count: int) -> LiveRow:
    """A row with its history."""
    live = LiveRow(row.id, row.request, row.tokens, row.seed, row.slot, history=History(row.request.prompt, count))
    assert live.history is not None
    for token in row.tokens[row.prompt_length :]:
        live.history.append(token)
    return live


def _rows(table: Table, batch: Batch, tokens: Tensor, parents: Tensor | None) -> Tensor:
    """float64[B, W, V]: what a table says after each row's text, and after each node."""
    base, count = len(table(())) + 1, tokens.shape[1]
    texts = torch.tensor([row.tokens[row.prompt_length :] for row in batch.rows], dtype=torch.long)
    texts = texts.view(len(batch), -1)  # all of one length
    codes = [torch.zeros(len(batch), dtype=torch.long)]
    for token in texts.unbind(1):
        codes[0] = codes[0] * base + token + 1
    for node in range(count):
        above = codes[node] if parents is None else torch.stack(codes, 1).gather(1, parents[:, node, None] + 1)[:, 0]
        codes.append(above * base + tokens[:, node] + 1)
    return _by_code(table, texts.shape[1] + count)[torch.stack(codes, 1)]


@cache
def _by_code(table: Table, longest: int) -> Tensor:
    """float64[codes, V]: a table by the codes of its contexts."""
    size = len(table(()))
    values = torch.zeros((size + 1) ** longest, size, dtype=torch.float64)
    for length in range(longest + 1):
        for text in product(range(size), repeat=length):
            code = sum((token + 1) * (size + 1) ** i for i, token in enumerate(reversed(text)))
            values[code] = torch.tensor(table(text), dtype=torch.float64)
    return values


@cache
def _cells(borders: tuple[float, ...]) -> list[tuple[float, float]]:
    """The middle and the width of each cell."""
    return [((low + high) / 2, high - low) for low, high in pairwise([0.0, *sorted(borders), 1.0])]
