"""Controls that depend on the tokens before a position alone, for all rows and nodes of a round at once.

Each drafted node is judged with its own prefix: the committed tokens, then its path. What a control does to a logit is a
function of that logit and of counts, so a node's numbers are the bits that plain decoding would find there. Nothing here
reads from the device.

Shapes as in `protocols`; b rows that have a control, U tokens that occur in a row's text (padded), L tokens of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from . import layout
from .history import History
from .protocols import Draft
from .request import Request
from .verdicts import real

NOTHING = -1
"""Where there is no token; behind a path another number, so that neither is taken for the other."""


@dataclass(frozen=True)
class Paths:
    """The drafted tokens before every row of a verification."""

    tokens: Tensor
    """int64[B, N], padding replaced by the root."""
    on: Tensor
    """bool[B, W, N]: which nodes lie on the path from the root to each row, itself included."""

    @classmethod
    def of(cls, draft: Draft, roots: Tensor) -> Paths:
        """roots: int64[B], the last committed tokens."""
        tokens = draft.tokens.where(real(draft.tokens, draft.lengths), roots[:, None])
        if draft.parents is not None:
            return cls(tokens, layout.ancestors(draft.parents)[:, :, 1:])
        nodes = layout.counted(draft.width, tokens.device)
        on = nodes < layout.counted(draft.width + 1, tokens.device)[:, None]
        return cls(tokens, on.expand(len(tokens), -1, -1))

    def pick(self, index: Tensor) -> Paths:
        """Some rows of the batch."""
        return Paths(self.tokens[index], self.on[index])

    @cached_property
    def depth(self) -> Tensor:
        """int64[B, W]: drafted tokens before each row."""
        return self.on.sum(-1)

    @cached_property
    def in_order(self) -> Tensor:
        """int64[B, W, N]: each path's tokens from the root down, then padding below `NOTHING`."""
        count = self.tokens.shape[1]
        nodes = torch.arange(count, device=self.tokens.device).expand_as(self.on)
        order = nodes.where(self.on, count).sort(-1).values  # parents come before their children
        tokens = pad(self.tokens, (0, 1), value=NOTHING - 1)[:, None].expand(-1, order.shape[1], -1)
        return tokens.gather(2, order)


def apply(requests: Sequence[Request], histories: Sequence[History | None], draft: Draft, logits: Tensor) -> Tensor:
    """The logits that the rows' controls make of the target's, without the callers' own processors.

    histories: of every row that has controls.  logits: float[B, W, V]. Returns float32[B, W, V], never the input itself.
    """
    logits = logits.float().clone()
    device = logits.device
    known = [history for history in histories if history is not None]
    if not known:
        return logits
    last = [NOTHING if history is None else int(history.last(1)) for history in histories]
    paths = Paths.of(draft, torch.tensor(last, device=device).clamp(min=0))
    for index, request in enumerate(requests):
        if request.controls.sequence_bias:
            _bias(logits[index], paths, index, histories[index], request.controls.sequence_bias)
    _penalise(logits, paths, requests, histories)
    _ban_repeats(logits, paths, requests, histories)
    for index, request in enumerate(requests):
        controls = request.controls
        if controls.bad_words:
            forbidden = [(tokens, -torch.inf) for tokens in controls.bad_words]
            _bias(logits[index], paths, index, histories[index], forbidden)
        if controls.min_new_tokens and request.eos_token_ids:
            _ban_end(logits[index], paths.depth[index], request, histories[index])
    return logits


def _bias(
    logits: Tensor,
    paths: Paths,
    index: int,
    history: History | None,
    biases: Sequence[tuple[tuple[int, ...], float]],
) -> None:
    """Add to the last token of each sequence where the text ends with those before it. logits: float32[W, V]."""
    assert history is not None
    device = logits.device
    by_length: dict[int, list[tuple[tuple[int, ...], float]]] = defaultdict(list)
    for tokens, bias in biases:
        by_length[len(tokens)].append((tokens, bias))
    added = torch.zeros_like(logits)
    for length, group in by_length.items():
        sequences = torch.tensor([tokens for tokens, _ in group], device=device)
        bias = torch.tensor([bias for _, bias in group], device=device)
        ends = _ends(paths.pick(torch.tensor([index], device=device)), history.last(length - 1)[None], length - 1)[0]
        here = (ends[:, None] == sequences[:, :-1]).all(-1)  # (W, S)
        added.index_add_(1, sequences[:, -1], torch.where(here, bias, 0.0))
    logits += added


def _ends(paths: Paths, tails: Tensor, length: int) -> Tensor:
    """int64[b, W, length]: the last tokens before every row.

    tails: int64[b, at least `length`], the last committed tokens.
    """
    device = paths.tokens.device
    width = paths.on.shape[1]
    texts = torch.cat([tails.to(device)[:, None].expand(-1, width, -1), paths.in_order], -1)
    first = tails.shape[1] + paths.depth - length
    return texts.gather(2, first[:, :, None] + torch.arange(length, device=device))


def _penalise(
    logits: Tensor, paths: Paths, requests: Sequence[Request], histories: Sequence[History | None]
) -> None:
    """Repetition, frequency and presence penalties."""
    wanted = [
        (index, history, request.controls)
        for index, (request, history) in enumerate(zip(requests, histories, strict=True))
        if (controls := request.controls).repetition_penalty != 1
        or controls.frequency_penalty
        or controls.presence_penalty
        if history is not None
    ]
    if not wanted:
        return
    device = logits.device
    rows = torch.tensor([index for index, _, _ in wanted], device=device)
    most = max(len(history.seen) for _, history, _ in wanted)
    # Padding repeats a token that is there: it is given its own value twice.
    seen = torch.stack([_padded(history.seen, most) for _, history, _ in wanted]).to(device)
    written = torch.stack([_padded(history.written, most) for _, history, _ in wanted]).to(device)
    settings = [(c.repetition_penalty, c.frequency_penalty, c.presence_penalty) for _, _, c in wanted]
    repetition, frequency, presence = torch.tensor(settings, device=device)[:, :, None, None].unbind(1)

    def penalised(values: Tensor, counts: Tensor) -> Tensor:
        values = torch.where(values < 0, values * repetition, values / repetition)
        return values - frequency * counts - presence * (counts > 0)

    own, those = logits[rows], paths.pick(rows)
    width = own.shape[1]
    ids = seen[:, None].expand(-1, width, -1)
    changed = own.scatter(2, ids, penalised(own.gather(2, ids), written[:, None]))
    if those.tokens.shape[1]:
        # Then the tokens of each row's path, from the logits as they were: in padding the root, which has occurred.
        counts = torch.zeros(len(rows), own.shape[2], device=device).scatter(1, seen, written)
        path = those.tokens[:, None].where(those.on, those.tokens.new_tensor(seen.tolist()[0][0]))
        raise NotImplementedError
    logits[rows] = changed


def _padded(values: Tensor, count: int) -> Tensor:
    return pad(values, (0, count - len(values)), value=values[-1].item()) if len(values) < count else values
