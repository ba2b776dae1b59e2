"""Toy drafters that force a situation: full acceptance, none, trees, resuming at a layer, extra rows.

Shapes as in `fastllm_core.protocols`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..batch import Batch, Row
from ..protocols import Draft, Drafter, Proposal

Guess = Callable[[Row, int], Sequence[int]]
"""(row, count) -> the tokens to draft after the row's committed ones, at most `count`."""


class Scripted(Drafter):
    """A chain of whatever a function says."""

    proposal = Proposal.ONE_HOT

    def __init__(self, guess: Guess) -> None:
        """guess: the tokens to draft; may be fewer than asked, or none."""
        self.guess = guess

    def propose(self, batch: Batch) -> Draft:
        """Ask for each row's tokens; rows without any have an empty draft."""
        drafts = [
            list(self.guess(row, count))[:count] for row, count in zip(batch.rows, batch.draft_lengths, strict=True)
        ]
        width = max(len(draft) for draft in drafts)
        tokens = [draft + [0] * (width - len(draft)) for draft in drafts]
        return Draft(
            torch.tensor(tokens, dtype=torch.long, device=batch.device).reshape(len(batch), width),
            torch.tensor([len(draft) for draft in drafts], device=batch.device),
        )


class Oracle(Scripted):
    """Drafts the continuation that it was told, with some of its tokens spoilt.

    No spoilt token forces full acceptance, all of them forces none.
    """

    def __init__(
        self,
        continuations: Mapping[tuple[int, ...], Sequence[int]],
        spoil: Callable[[int], bool],
        vocab_size: int = 64,
    ) -> None:
        """continuations: whole greedy sequences by prompt.  spoil: which positions of the sequence to get wrong."""
        self.continuations = {prompt: list(tokens) for prompt, tokens in continuations.items()}
        self.spoil, self.vocab_size = spoil, vocab_size
        super().__init__(self._next)

    def _next(self, row: Row, count: int) -> Sequence[int]:
        known = self.continuations[row.request.prompt]
        positions = range(row.length, min(row.length + count, len(known)))
        return [(known[i] + 1) % self.vocab_size if self.spoil(i) else known[i] for i in positions]


class Branching(Drafter):
    """A tree: a chain from a guess, and before each of its nodes `branches` wrong siblings.

    So the chain's nodes are not the first ones, and accepting them needs a real gather.
    """

    proposal = Proposal.ONE_HOT

    def __init__(self, guess: Guess, branches: int = 1, vocab_size: int = 64) -> None:
        """guess: as in `Scripted`.  branches: wrong siblings of each node."""
        self.guess, self.branches, self.vocab_size = guess, branches, vocab_size

    def propose(self, batch: Batch) -> Draft:
        """Level by level: the wrong siblings first, then the right node, on which the next level hangs."""
        trees = [
            self._tree(list(self.guess(row, count))[:count])
            for row, count in zip(batch.rows, batch.draft_lengths, strict=True)
        ]
        width = max(len(tokens) for tokens, _ in trees)
        tokens = [tokens + [0] * (width - len(tokens)) for tokens, _ in trees]
        parents = [parents + [-1] * (width - len(parents)) for _, parents in trees]
        shape = (len(batch), width)
        return Draft(
            torch.tensor(tokens, dtype=torch.long, device=batch.device).reshape(shape),
            torch.tensor([len(tokens) for tokens, _ in trees], device=batch.device),
            parents=torch.tensor(parents, dtype=torch.long, device=batch.device).reshape(shape),
        )

    def _tree(self, chain: Sequence[int]) -> tuple[list[int], list[int]]:
        tokens: list[int] = []
        parents: list[int] = []
        above = -1
        for token in chain:
            tokens += [(token + 1 + i) % self.vocab_size for i in range(self.branches)] + [token]
            parents += [above] * (self.branches + 1)
            above = len(tokens) - 1
        return tokens, parents


class TableDrafter(Drafter):
    """A chain drawn from a fixed distribution, with q: for tests of the output law."""

    proposal = Proposal.SAMPLED

    def __init__(self, probs: Tensor) -> None:
        """probs: float[V], the distribution of every drafted token."""
        self.probs = probs

    def propose(self, batch: Batch) -> Draft:
        """Draw each token with the row's own keyed uniforms."""
        from ..randomness import Purpose
        from ..sampling import draw

        count = max(batch.draft_lengths)
        probs = self.probs.to(batch.device).expand(len(batch), count, -1)
        tokens = draw(probs, batch.uniforms(Purpose.DRAFT, count))
        return Draft(tokens, torch.tensor(batch.draft_lengths, device=batch.device), probs=probs)
