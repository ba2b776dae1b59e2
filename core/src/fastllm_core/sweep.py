"""Processors called for every node of a draft, for acceptors that want all logits at once.

Only those can be that remember nothing, or whose state can be put back: each node continues the state of its parent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from .processors import Memory, process, put_back, take

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from .protocols import Draft
    from .rows import LiveRow


@dataclass(slots=True)
class Sweep:
    """The processors of a row, and their states behind every row of the verification."""

    row: LiveRow
    states: list[list[object]] = field(default_factory=list)

    def run(self, index: int, draft: Draft, logits: Tensor) -> None:
        """Call them for the root and for every node. index: of the row; `logits`, float32[B, W, V], is written into."""
        assert self.row.history is not None
        committed = self.row.history.ids(logits.device)
        count = int(draft.lengths[index])
        nodes = draft.tokens[index, :count]
        parents = [*range(-1, count - 1)] if draft.parents is None else draft.parents[index, :count].tolist()
        paths: list[list[int]] = [[]]
        start = self._take()
        for row in range(count + 1):
            if row:
                paths.append([*paths[parents[row - 1] + 1], row - 1])
            self._put_back(self.states[parents[row - 1] + 1] if row else start)
            ids = torch.cat([committed, nodes[paths[row]][None]], 1)
            logits[index, row] = process(self.row.request.controls.processors, ids, logits[index, row][None])[0]
            self.states.append(self._take())

    def settle(self, path: Sequence[int], kept: int) -> None:
        """So many tokens stay, the last of them chosen behind the nodes of a path before it: forget the rest."""
        self._put_back(self.states[0 if kept == 1 else path[kept - 2] + 1])

    def _take(self) -> list[object]:
        return [
            take(processor) if memory is Memory.SNAPSHOT else None
            for processor, memory in zip(self.row.request.controls.processors, self.row.memories, strict=True)
        ]

    def _put_back(self, states: Sequence[object]) -> None:
        for processor, memory, state in zip(
            self.row.request.controls.processors, self.row.memories, states, strict=True
        ):
            if memory is Memory.SNAPSHOT:
                put_back(processor, state)
