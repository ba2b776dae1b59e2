"""Drafting a tree of fixed shape with the heads, from what verification leaves behind.

Shapes: B rows of the batch, N nodes, W = N + 1 rows of a verification, K heads, V entries of a head, H hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastllm_core import (
    Batch,
    Context,
    Draft,
    Drafter,
    Network,
    Proposal,
    Row,
    Scores,
    TargetIdentity,
    Verdict,
    chain,
    load_head,
)

from .heads import METHOD, TOKEN_MAP, HeadsShape, build_heads
from .model import as_model
from .tree import Tree
from .treefile import tree_for

if TYPE_CHECKING:
    from .plugin import MedusaOptions

SLOTS = 2
"""Slots that the heads' forward is told of; it has no cache, and an open size cannot be 1."""


class MedusaDrafter(Drafter):
    """Top tokens of every head, put together as a tree says.

    Head k reads the hidden state from which the target chose the root, so that forward is the last verification's, or
    the prompt's. What a controller asks for is a depth: the tree is cut there.
    """

    proposal = Proposal.ONE_HOT

    def __init__(self, options: MedusaOptions, context: Context) -> None:
        """Read heads and tree. Raises ModelError or ConfigError if they do not fit the target, or each other."""
        self.options, self.network = options, context.network
        head = load_head(options.heads, options.revision)
        head.check(METHOD, TargetIdentity.of(self.network, body=head.target.body is not None))
        shape = HeadsShape.read(head.settings, head.source)
        shape.check(self.network, head.source)
        self.all_heads = build_heads(shape, self.network, head.weights, head.source)
        self.hidden_layers = (self.network.layers,)
        self._make_network = context.make_network
        self._networks: dict[int, Network] = {}
        """By how many of the heads they run."""
        self._entries = shape.vocab_size
        self.token_map = head.weights[TOKEN_MAP].to(self.network.device) if TOKEN_MAP in head.weights else None
        """int64[V], if the heads' vocabulary is truncated."""
        self.draw(tree_for(options, head, shape, context))
        self._states: dict[int, Tensor] = {}
        """float[H] by row id: the last hidden state behind which the root was chosen."""

    def draw(self, tree: Tree) -> None:
        """Draft this tree from now on, which is no deeper than there are heads. Those beyond it are not run."""
        self.tree = tree
        if tree.depth not in self._networks:
            self._networks[tree.depth] = self._make_network(as_model(self.all_heads.first(tree.depth), self.network))
        self.heads = self._networks[tree.depth]
        places = [tree.ranks * (len(path) - 1) + path[-1] for path in tree.paths]
        self._places = torch.tensor(places, device=self.network.device)
        """int64[N]: which of the heads' best tokens, head by head, each node is."""
        self._parents: dict[tuple[int, int], Tensor] = {}

    @property
    def model(self) -> torch.nn.Module:
        """The heads."""
        return self.heads.loaded.model

    def prefill(self, row: Row, start: int, stop: int, hidden: Mapping[int, Tensor]) -> None:
        """Keep what the target thought before the prompt's last token, which is the first root."""
        self._states[row.id] = hidden[self.network.layers][0, -1].clone()

    def propose(self, batch: Batch) -> Draft:
        """The tree with each row's tokens. A row whose prompt was one token drafts from its second round on."""
        depths = [
            min(wanted, self.tree.depth) if row.id in self._states else 0
            for row, wanted in zip(batch.rows, batch.draft_lengths, strict=True)
        ]
        lengths = torch.tensor([self.tree.levels[depth] for depth in depths], device=batch.device)
        deepest = max(depths)
        nodes = self.tree.levels[deepest]
        if not nodes:
            return Draft(lengths.new_zeros(len(batch), 0), lengths)
        tokens = self._best(batch)[:, self._places[:nodes]]
        return Draft(tokens, lengths, None if self.tree.is_chain else self._parents_of(len(batch), deepest))

    def observe(self, batch: Batch, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        """Keep the hidden state of each row's last committed node: from it the target chose the new root."""
        hidden = scores.hidden[self.network.layers]
        last = torch.zeros_like(verdict.accepted)
        if verdict.path.shape[1]:
            node = verdict.path.gather(1, (verdict.accepted - 1).clamp(min=0)[:, None])[:, 0]
            last = torch.where(verdict.accepted > 0, node + 1, last)
        states = hidden[torch.arange(len(batch), device=last.device), last]
        for row, state in zip(batch.rows, states, strict=True):
            if row.request.speculate:
                self._states[row.id] = state

    def release(self, row: Row) -> None:
        """Forget the row's hidden state."""
        self._states.pop(row.id, None)

    def _best(self, batch: Batch) -> Tensor:
        """int64[B, K * ranks]: every head's best tokens, the best first."""
        unknown = torch.zeros(self.network.hidden_size, dtype=self.network.dtype, device=batch.device)
        states = torch.stack([self._states.get(row.id, unknown) for row in batch.rows])[:, None]
        places = torch.zeros(len(batch), dtype=torch.long, device=batch.device)
        inputs = chain(states[..., 0], places, SLOTS, hidden=states)
        logits = self.heads.forward(inputs, ()).logits
        assert logits is not None
        by_head = logits.view(len(batch), -1, self._entries)
        best = by_head.topk(self.tree.ranks, dim=-1).indices.flatten(1)
        return best if self.token_map is None else self.token_map[best]

    def _parents_of(self, rows: int, depth: int) -> Tensor:
        """int64[B, N]: one tensor for each shape, so that the verifier knows it again."""
        key = rows, depth
        if key not in self._parents:
            nodes = self.tree.levels[depth]
            parents = torch.tensor(self.tree.parents[:nodes], device=self.network.device)
            self._parents[key] = parents.repeat(rows, 1)
        return self._parents[key]
