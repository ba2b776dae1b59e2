"""Controls that depend on the tokens before a position alone, for all rows and nodes of a round at once.

Each drafted node is judged with its own prefix: the committed tokens, then its path. What a control makes of a logit is
a function of that logit and of counts, so a node's numbers are the bits that plain decoding would find there. Nothing
here reads from the device.

Shapes as in `protocols`; b rows that have a control, U tokens that occur in a row's text, L tokens of it, both padded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor
from torch.nn.functional import pad

from . import layout
from .verdicts import real

if TYPE_CHECKING:
    from .history import History
    from .protocols import Draft
    from .request import Request
    from .rows import LiveRow

Biases = tuple[tuple[tuple[int, ...], float], ...]

BEFORE: Final = -1
"""Stands before the first token of a text."""
BEHIND: Final = -2
"""Stands behind the last one, so that it is no token either, and not taken for what stands before."""


@dataclass(frozen=True)
class Paths:
    """The drafted tokens before every row of a verification."""

    tokens: Tensor
    """int64[B, N], in its padding the root."""
    on: Tensor
    """bool[B, W, N]: which nodes lie on the path from the root to each row, which is part of it."""
    roots: Tensor
    """int64[B]: the last committed tokens."""

    @classmethod
    def of(cls, draft: Draft, roots: Tensor) -> Paths:
        """The paths of a chain or of a tree."""
        tokens = draft.tokens.where(real(draft.tokens, draft.lengths), roots[:, None])
        if draft.parents is not None and draft.width:
            return cls(tokens, layout.ancestors(draft.parents)[:, :, 1:], roots)
        nodes = torch.arange(draft.width + 1, device=tokens.device)
        on = nodes[:-1] < nodes[:, None]
        return cls(tokens, on.expand(len(tokens), -1, -1), roots)

    def pick(self, rows: Sequence[int]) -> Paths:
        """Those of some rows of the batch."""
        index = torch.tensor(rows, device=self.roots.device)
        return Paths(self.tokens[index], self.on[index], self.roots[index])

    @cached_property
    def depth(self) -> Tensor:
        """int64[B, W]: drafted tokens before each row."""
        return self.on.sum(-1)

    @cached_property
    def in_order(self) -> Tensor:
        """int64[B, W, N]: the tokens of each path from the root down, then `BEHIND`."""
        count = self.tokens.shape[1]
        nodes = torch.arange(count, device=self.tokens.device).expand_as(self.on)
        order = nodes.where(self.on, count).sort(-1).values  # parents come before their children
        tokens = pad(self.tokens, (0, 1), value=BEHIND)[:, None].expand(-1, order.shape[1], -1)
        return tokens.gather(2, order)

    def texts(self, tails: Tensor) -> Tensor:
        """int64[B, W, L + N]: committed tokens and path of each row. tails: int64[B, L], `BEFORE` in front."""
        return torch.cat([tails[:, None].expand(-1, self.on.shape[1], -1), self.in_order], -1)

    def ends(self, tails: Tensor, count: int) -> Tensor:
        """int64[B, W, count]: the last tokens before what follows each row. tails: as in `texts`, `count` or more."""
        first = tails.shape[1] + self.depth - count
        index = first[:, :, None] + torch.arange(count, device=first.device)
        return self.texts(tails).gather(2, index)


def controlled(rows: Sequence[LiveRow], draft: Draft, logits: Tensor) -> Tensor:
    """What the rows' controls make of the target's logits, short of the callers' own processors.

    logits: float[B, W, V]. Returns float32[B, W, V], never the input itself.
    Source: the logits processors of transformers 5, in their order; frequency and presence penalty as OpenAI has them.
    """
    logits = logits.to(torch.float32, copy=True)
    paths = Paths.of(draft, torch.tensor([row.tokens[-1] for row in rows], device=logits.device))
    for index, row in enumerate(rows):
        _add(logits[index], paths, index, _history(row), row.request.controls.sequence_bias)
    _penalise(logits, paths, rows)
    _ban_repeats(logits, paths, rows)
    for index, row in enumerate(rows):
        forbidden = tuple((words, -torch.inf) for words in row.request.controls.bad_words)
        _add(logits[index], paths, index, _history(row), forbidden)
        _ban_ends(logits[index], paths.depth[index], row.request, row.length - row.prompt_length)
    return logits


def _add(logits: Tensor, paths: Paths, index: int, history: History, biases: Biases) -> None:
    """Add to the last token of each sequence where the text ends with those before it. logits: float32[W, V]."""
    if not biases:
        return
    columns, groups = _by_length(biases, logits.device)
    added = logits.new_zeros(logits.shape[0], len(columns))
    paths = paths.pick([index])
    for prefixes, places, values in groups:
        length = prefixes.shape[1]
        ends = paths.ends(history.last(length).to(logits.device)[None], length)[0]
        here = (ends[:, None] == prefixes).all(-1)  # (W, sequences)
        added.index_add_(1, places, torch.where(here, values, 0.0))
    logits.index_add_(1, columns, added)


@lru_cache(maxsize=256)  # a request asks for the same in every round
def _by_length(biases: Biases, device: torch.device) -> tuple[Tensor, list[tuple[Tensor, Tensor, Tensor]]]:
    """The tokens that are biased, and for sequences of each length what stands before, which token, and how much."""
    place = {token: at for at, token in enumerate(dict.fromkeys(tokens[-1] for tokens, _ in biases))}
    by_length: dict[int, list[tuple[tuple[int, ...], float]]] = defaultdict(list)
    for tokens, bias in biases:
        by_length[len(tokens)].append((tokens, bias))
    groups = []
    with torch.inference_mode(False):
        for length, group in by_length.items():
            prefixes = torch.tensor([tokens[:-1] for tokens, _ in group], dtype=torch.long, device=device)
            places = torch.tensor([place[tokens[-1]] for tokens, _ in group], device=device)
            values = torch.tensor([bias for _, bias in group], dtype=torch.float32, device=device)
            groups.append((prefixes.view(len(group), length - 1), places, values))
        return torch.tensor(list(place), device=device), groups


def _penalise(logits: Tensor, paths: Paths, rows: Sequence[LiveRow]) -> None:
    """Repetition, frequency and presence penalties."""
    wanted = [index for index, row in enumerate(rows) if row.request.controls.penalises]
    if not wanted:
        return
    device = logits.device
    histories = [_history(rows[index]) for index in wanted]
    controls = [rows[index].request.controls for index in wanted]
    settings = [(one.repetition_penalty, one.frequency_penalty, one.presence_penalty) for one in controls]
    numbers = torch.tensor(settings, dtype=torch.float32, device=device)
    repetition, frequency, presence = numbers[:, :, None, None].unbind(1)
    most = max(len(history.seen) for history in histories)
    # Padding repeats a token that is there, with its count: it is written twice, with one value.
    seen = torch.stack([_padded(history.seen, most) for history in histories]).to(device)
    written = torch.stack([_padded(history.written, most) for history in histories]).to(device)
    paths = paths.pick(wanted)
    batch = torch.tensor(wanted, device=device)[:, None, None]
    verification = layout.counted(logits.shape[1], device)[:, None]
    seen_at = batch, verification, seen[:, None]
    # A path's tokens count on top, from the logits as they were; beside the path stands the root, which has occurred.
    path = paths.tokens[:, None].where(paths.on, paths.roots[:, None, None])
    path_at = batch, verification, path
    committed = logits.new_zeros(len(wanted), logits.shape[2]).scatter(1, seen, written)
    before = committed[torch.arange(len(wanted), device=device)[:, None, None], path]
    drafted = ((path[..., None] == path[:, :, None]) & paths.on[:, :, None]).sum(-1)

    def penalised(values: Tensor, counts: Tensor) -> Tensor:
        values = torch.where(values < 0, values * repetition, values / repetition)
        return values - frequency * counts - presence * (counts > 0)

    seen_values = penalised(logits[seen_at], written[:, None])
    path_values = penalised(logits[path_at], before + drafted)
    logits[seen_at] = seen_values
    logits[path_at] = path_values


def _ban_repeats(logits: Tensor, paths: Paths, rows: Sequence[LiveRow]) -> None:
    """Forbid tokens that would complete a sequence a second time."""
    by_size: dict[int, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        if row.request.controls.no_repeat_ngram_size:
            by_size[row.request.controls.no_repeat_ngram_size].append(index)
    for size, wanted in by_size.items():
        longest = max(size, *(rows[index].length for index in wanted))
        tails = torch.stack([_history(rows[index]).last(longest) for index in wanted]).to(logits.device)
        those = paths.pick(wanted)
        windows = those.texts(tails).unfold(-1, size, 1)
        ends = those.ends(tails, size - 1)
        tokens = windows[..., -1]
        again = (windows[..., :-1] == ends[:, :, None]).all(-1) & (tokens >= 0)
        # The least of several: a token stays only if no window forbids it.
        limits = torch.full_like(tokens, torch.inf, dtype=logits.dtype).masked_fill(again, -torch.inf)
        for place, index in enumerate(wanted):
            logits[index].scatter_reduce_(1, tokens[place].clamp(min=0), limits[place], "amin")


def _ban_ends(logits: Tensor, depth: Tensor, request: Request, written: int) -> None:
    """Forbid tokens that end the text while it is too short. logits: float32[W, V]; depth: int64[W]."""
    missing = request.controls.min_new_tokens - written
    ends = [token for token in request.eos_token_ids if token < logits.shape[1]]
    if missing <= 0 or not ends:
        return
    logits[:, ends] = logits[:, ends].masked_fill((depth < missing)[:, None], -torch.inf)


def _history(row: LiveRow) -> History:
    assert row.history is not None
    return row.history


def _padded(values: Tensor, count: int) -> Tensor:
    return torch.cat([values, values[-1:].expand(count - len(values))])
