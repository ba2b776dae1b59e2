"""Acceptance one token at a time, for rows whose callers bring logits processors of their own.

A processor may keep a state, so it must see what it would see under plain decoding: every token of the text once, in
order, and none that is rejected. So such a row walks down its draft: its processors change the logits at the row of
the verification where it stands, the rule decides about that row's children, and the walk goes on at the child that was
kept, or ends. Of a tree only the nodes that are visited cost anything.

A rule that decides about a node's children by what it has decided above and by that node's logits (*match* and
*rejection*) gives the same law this way as in one piece. Every level is keyed as a round of its own that begins there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch

from .batch import Row
from .processors import process
from .protocols import Draft, Verdict
from .rows import ends

if TYPE_CHECKING:
    from torch import Tensor

    from .batch import Batch
    from .rows import LiveRow


class Follower(Protocol):
    """An acceptor that can decide one level at a time."""

    def follow(self, batch: Batch, children: Draft, logits: Tensor) -> Verdict:
        """As `ExactAcceptor.follow`."""
        ...


@dataclass(slots=True)
class Walker:
    """A row on its way down its draft."""

    row: LiveRow
    nodes: list[int]
    """Tokens of the drafted nodes."""
    parents: list[int]
    at: int = 0
    """The row of the verification where it stands."""
    path: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    reason: str | None = None
    """Why the text ends behind the last token."""
    done: bool = False

    @property
    def children(self) -> list[int]:
        """The nodes that continue the one where it stands."""
        return [node for node, parent in enumerate(self.parents) if parent + 1 == self.at]

    def here(self) -> Row:
        """The row as it is once the tokens so far are committed."""
        return Row(self.row.id, self.row.request, [*self.row.tokens, *self.tokens], self.row.seed, self.row.slot)

    def step(self, token: int, node: int | None) -> None:
        """Write a token, which is that of a drafted node or of none."""
        self.tokens.append(token)
        self.reason = ends(self.row, token, self.row.length + len(self.tokens))
        self.done = node is None or self.reason is not None
        if node is not None and not self.done:  # one that ends the text counts as the extra token
            self.path.append(node)
            self.at = node + 1


def walk(
    rows: Sequence[LiveRow], chosen: Sequence[int], batch: Batch, draft: Draft, logits: Tensor, rule: Follower
) -> list[Walker]:
    """Decide some rows of a batch, by index.

    logits: float32[B, W, V]; what the processors answer is written into them.
    """
    tokens, lengths = draft.tokens.tolist(), draft.lengths.tolist()
    parents = [[*range(-1, draft.width - 1)]] * len(rows) if draft.parents is None else draft.parents.tolist()
    walkers = {b: Walker(rows[b], tokens[b][: lengths[b]], parents[b][: lengths[b]]) for b in chosen}
    while walking := [b for b, walker in walkers.items() if not walker.done]:
        those = [walkers[b] for b in walking]
        at = [walker.at for walker in those]
        for b, walker in zip(walking, those, strict=True):
            row, history = walker.row, walker.row.history
            assert history is not None
            scores = logits[b, walker.at][None]
            logits[b, walker.at] = process(row.request.controls.processors, history.ids(logits.device), scores)[0]
        children, level = _level(those, draft, walking, at)
        later = batch.later(walking, tuple(walker.here() for walker in those))
        verdict = rule.follow(later, level, logits[walking, at])
        kept = torch.cat([verdict.tokens[:, :1], verdict.path[:, :1]], 1).tolist()
        for walker, nodes, (token, *child) in zip(those, children, kept, strict=True):
            walker.step(token, nodes[child[0]] if child and child[0] >= 0 else None)
    return list(walkers.values())


def verdict_of(walkers: Sequence[Walker], width: int, device: torch.device) -> Verdict:
    """What walkers have decided, for drafts of `width` nodes."""
    accepted = torch.tensor([len(walker.tokens) - 1 for walker in walkers])
    path = torch.tensor([_filled(walker.path, width) for walker in walkers], dtype=torch.long).view(len(walkers), width)
    tokens = torch.tensor([_filled(walker.tokens, width + 1) for walker in walkers])
    return Verdict(accepted.to(device), path.to(device), tokens.to(device))


def _level(
    walkers: Sequence[Walker], draft: Draft, chosen: Sequence[int], at: Sequence[int]
) -> tuple[list[list[int]], Draft]:
    """The children of where each walker stands, by node and as a draft of one level."""
    children = [walker.children for walker in walkers]
    width, device = max(map(len, children)), draft.tokens.device
    tokens = [
        _filled([walker.nodes[node] for node in nodes], width) for walker, nodes in zip(walkers, children, strict=True)
    ]
    lengths = torch.tensor([len(nodes) for nodes in children], device=device)
    made = torch.tensor(tokens, dtype=torch.long, device=device).view(len(walkers), width)
    parents = None if draft.parents is None or not width else torch.full_like(made, -1)
    probs = None
    if draft.probs is not None:  # a chain's have no row for what follows its last node, and it has no children
        rows = [min(row, draft.probs.shape[1] - 1) for row in at]
        probs = draft.probs[list(chosen), rows][:, None]
    return children, Draft(made, lengths, parents, probs)


def _filled(values: list[int], count: int) -> list[int]:
    return values + [-1] * (count - len(values))
