"""The core's verifier: one target forward of fixed width over the root and every drafted node."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from . import layout
from .protocols import Draft, Scores
from .ties import Best, best_of

if TYPE_CHECKING:
    from .batch import Batch
    from .context import Context
    from .port import Advance, Inputs


def round_widths(draft_length: int) -> tuple[int, ...]:
    """The few widths W that verification forwards take: 1, 2, 3, 5, 9, ... and `draft_length + 1`.

    A back end prepares one program for each, and a round without drafts costs what plain decoding costs.
    """
    widths = {1, draft_length + 1}
    nodes = 1
    while nodes < draft_length:
        widths.add(nodes + 1)
        nodes *= 2
    return tuple(sorted(widths))


class TargetVerifier:
    """Scores a chain or a tree, whole or resumed at a layer, with extra rows riding along. Implements `Verifier`."""

    def __init__(self, context: Context, hidden_layers: tuple[int, ...] = ()) -> None:
        """context: the target's network and cache.  hidden_layers: what `Scores.hidden` shall hold."""
        assert context.cache is not None
        self.network, self.cache = context.network, context.cache
        self.widths = round_widths(context.draft_length)
        self._padded = {
            width: next(fixed for fixed in self.widths if fixed >= width) for width in range(1, self.widths[-1] + 1)
        }
        self.hidden_layers = hidden_layers
        self._tokens = layout.Slate(context.network.device)
        self._seen: tuple[Tensor, Tensor] | None = None
        """The last tree's parents, and what its rows see of each other."""
        self._behind: tuple[tuple[int, ...], Inputs] | None = None
        """The rows behind those of the last round, if it was a plain one, and the lengths at which they are roots."""

    def score(self, batch: Batch, draft: Draft) -> Scores:
        """Score root and nodes in one forward. See `Verifier.score`."""
        width = draft.width + 1
        extra = 0 if draft.extra is None else draft.extra.tokens.shape[1]
        rows = self.padded(width) + extra
        extent = self.cache.extent(max(batch.root_positions) + rows)
        self.cache.reserve(len(batch), extent)  # a tree or extra rows may need more room than the engine set aside
        outputs = self.network.forward(
            self._inputs(batch, draft, rows, extent),
            self.cache.layers(slice(0, len(batch)), extent),
            start=0 if draft.resume is None else draft.resume.layer,
            hidden_layers=self.hidden_layers,
        )
        assert outputs.logits is not None
        self._behind = None if outputs.next is None else (tuple([length + 1 for length in batch.lengths]), outputs.next)
        logits, hidden, best, extra_logits = outputs.logits, outputs.hidden, outputs.best, None
        if rows > width:
            extra_logits = logits[:, width : width + extra] if extra else None
            logits = logits[:, :width]
            hidden = {layer: states[:, :width] for layer, states in hidden.items()}
            best = best and Best(best.tokens[:, :width], best.close[:, :width])
        if best is None and batch.sampling.greedy:
            best = best_of(logits, self.network.dtype)
        return Scores(logits, hidden, extra_logits, best, resumed=draft.resume is not None)

    def go_on(self, batch: Batch, steps: int) -> Advance:
        """Some plain rounds in one call, each from the most likely token behind the last."""
        extent = self.cache.extent(max(batch.root_positions) + steps)
        self.cache.reserve(len(batch), extent)
        layers = self.cache.layers(slice(0, len(batch)), extent)
        said = self.network.advance(self._roots(batch, extent), layers, steps=steps)
        self._behind = tuple([length + steps for length in batch.lengths]), said.next
        return said

    def padded(self, width: int) -> int:
        """The smallest of the fixed widths that holds `width` rows; a wider draft (a large tree) keeps its own."""
        return self._padded.get(width, width)

    def _inputs(self, batch: Batch, draft: Draft, rows: int, extent: int) -> Inputs:
        """Rows in order: root, nodes, extra rows, padding."""
        hidden = None if draft.resume is None else _widened(draft.resume.hidden, rows)
        if rows == 1 and hidden is None:
            return self._roots(batch, extent)
        if draft.parents is None and draft.extra is None:
            return layout.chain(self._chain(batch, draft, rows), batch.root_positions, extent, hidden=hidden)
        tokens = torch.cat([batch.roots.unsqueeze(1), draft.tokens], dim=1)
        sees = self._ancestors(draft)
        depths = sees.sum(-1) - 1
        if draft.extra is not None:
            tokens = torch.cat([tokens, draft.extra.tokens], dim=1)
            sees = torch.cat([pad(sees, (0, draft.extra.tokens.shape[1])), draft.extra.mask], dim=1)
            depths = torch.cat([depths, draft.extra.depths], dim=1)
        missing = rows - sees.shape[1]
        sees, depths = pad(sees, (0, missing, 0, missing)), pad(depths, (0, missing))
        # Padding sees itself: a row that sees nothing may become NaN, and a masked NaN value still poisons its readers.
        sees = sees | torch.eye(rows, dtype=torch.bool, device=sees.device)
        return layout.tree(_widened(tokens, rows), sees, depths, batch.starts, extent, hidden=hidden)

    def _chain(self, batch: Batch, draft: Draft, rows: int) -> Tensor:
        """int64[B, rows]: root, nodes, padding."""
        if not draft.tokens.is_cpu:  # to read them is to wait for it
            return _widened(torch.cat([batch.roots.unsqueeze(1), draft.tokens], dim=1), rows)
        lines = [[row.tokens[-1], *line] for row, line in zip(batch.rows, draft.tokens.tolist(), strict=True)]
        return self._tokens.write([line + [line[-1]] * (rows - len(line)) for line in lines])

    def _roots(self, batch: Batch, extent: int) -> Inputs:
        """The roots alone. Behind a plain round they are there already, but for tokens that were not the most likely.

        Where a chain's rows stand and what they see follows from their lengths, whoever they are.
        """
        if self._behind is not None:
            lengths, inputs = self._behind
            if lengths == batch.lengths and inputs.mask.shape[2] == extent and inputs.tokens is not None:
                if inputs.tokens.tolist() == [[row.tokens[-1]] for row in batch.rows]:
                    return inputs
                return inputs.of_tokens(batch.roots.unsqueeze(1))
        return layout.chain(batch.roots.unsqueeze(1), batch.root_positions, extent)

    def _ancestors(self, draft: Draft) -> Tensor:
        """bool[B, W, W]: which rows are on the path to each. A tree handed over again is not looked at again."""
        if draft.parents is None:
            return layout.ancestors(_parents(draft))
        if self._seen is None or self._seen[0] is not draft.parents:
            self._seen = draft.parents, layout.ancestors(draft.parents)
        return self._seen[1]


def _widened(rows: Tensor, width: int) -> Tensor:
    """Repeat the last row up to `width` rows: padding must hold a valid token."""
    missing = width - rows.shape[1]
    return rows if missing == 0 else torch.cat([rows, rows[:, -1:].expand(-1, missing, *rows.shape[2:])], dim=1)


def _parents(draft: Draft) -> Tensor:
    """int64[B, N], also for a chain."""
    if draft.parents is not None:
        return draft.parents
    chain = torch.arange(draft.width, device=draft.tokens.device) - 1
    return chain.expand(draft.tokens.shape[0], -1)
