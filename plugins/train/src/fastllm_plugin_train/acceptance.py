"""What generation will accept, foretold from judgements: rounds walked over a text that is known.

Where the text is the target's own greedy one, this is what generation does, token by token; where it is somebody else's
it is an estimate. Shapes: B rows, S tokens of a row, D drafted tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Final

from torch import Tensor

from fastllm_core import Judgement

Tree = Sequence[tuple[int, ...]]
"""Paths of ranks: (1, 0) is the best candidate for the second draft behind the second best for the first."""
NOTHING: Final = -2
"""The rank that says that nothing is drafted from a place; see `Judgement.ranks`."""


@dataclass(slots=True)
class Foretold:
    """Counts of rounds, as a `RunReport` has them."""

    rounds: int = 0
    tokens: int = 0
    drafted_at: list[int] = field(default_factory=list)
    accepted_at: list[int] = field(default_factory=list)

    @property
    def tokens_per_round(self) -> float:
        """Mean tokens committed per target forward."""
        return self.tokens / self.rounds if self.rounds else 0.0

    @property
    def by_position(self) -> list[float]:
        """Share of the drafts at each position that was accepted."""
        return [kept / made if made else 0.0 for kept, made in zip(self.accepted_at, self.drafted_at, strict=True)]

    def count(self, drafted: Sequence[int], accepted: int) -> None:
        """Add a round.

        drafted: tokens at each position, which are more than one in a tree.
        """
        self.rounds += 1
        self.tokens += accepted + 1
        missing = len(drafted) - len(self.drafted_at)
        self.drafted_at += [0] * missing
        self.accepted_at += [0] * missing
        for position, width in enumerate(drafted):
            self.drafted_at[position] += width
            self.accepted_at[position] += position < accepted

    def add(self, other: Foretold) -> None:
        """Add the counts of other texts."""
        self.rounds += other.rounds
        self.tokens += other.tokens
        for mine, theirs in ((self.drafted_at, other.drafted_at), (self.accepted_at, other.accepted_at)):
            mine += [0] * (len(theirs) - len(mine))
            for position, count in enumerate(theirs):
                mine[position] += count

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "rounds": self.rounds,
            "tokens": self.tokens,
            "tokens_per_round": self.tokens_per_round,
            "by_position": self.by_position,
        }


def foretell(counted: Tensor, judgement: Judgement, length: int, threshold: float = 0.0) -> Foretold:
    """Walk over every document: draft, keep what is right, commit one token more, and go on from there.

    counted: bool[B, S], see `Lesson.counted`.  length: the most tokens of a draft.
    threshold: as in `Batch.thresholds`.
    """
    found = Foretold()
    right, chance = judgement.right.tolist(), judgement.chance.tolist()
    length = min(length, judgement.right.shape[2])
    for row, start, stop in _answers(counted):
        root = start
        while root < stop:
            most = min(length, stop - root - 1)  # the extra token needs room as well
            unsure = (d + 1 for d in range(most) if chance[row][root][d] < threshold)
            drafted = next(unsure, most)
            wrong = (d for d in range(drafted) if not right[row][root][d])
            accepted = next(wrong, drafted)
            found.count([1] * drafted, accepted)
            root += accepted + 1
    return found


def foretell_tree(counted: Tensor, ranks: Tensor, tree: Tree) -> Foretold:
    """Walk over every document with the same tree in every round.

    counted: bool[B, S], see `Lesson.counted`.  ranks: int[B, S, D], as in `Judgement`.
    """
    found = Foretold()
    paths, levels = {*tree}, widths(tree)
    at = ranks.tolist()
    for row, start, stop in _answers(counted):
        root = start
        while root < stop:
            here = at[row][root]
            most = min(len(levels), stop - root - 1) if here[0] != NOTHING else 0
            kept = (depth for depth in range(most, 0, -1) if tuple(here[:depth]) in paths)
            accepted = next(kept, 0)
            found.count(levels[:most], accepted)
            root += accepted + 1
    return found


def widths(tree: Tree) -> list[int]:
    """Nodes on each level of a tree."""
    deepest = max(map(len, tree), default=0)
    return [sum(len(path) == depth for path in tree) for depth in range(1, deepest + 1)]


def expected(tree: Tree, accuracies: Tensor) -> float:
    """Tokens per round if heads were right independently of each other: 1, and the chance of every node to be kept.

    accuracies: float[D, R], see `Trainer.tree`. Source: Medusa, arXiv:2401.10774, section 2.3.3.
    """
    shares: list[list[float]] = accuracies.tolist()
    return 1.0 + sum(prod(shares[depth][rank] for depth, rank in enumerate(path)) for path in tree)


def _answers(counted: Tensor) -> Iterator[tuple[int, int, int]]:
    """(row, first, last + 1) of every run of counted places: the roots of its rounds."""
    for row, line in enumerate(counted.tolist()):
        start = None
        for place, here in enumerate([*line, False]):
            if here and start is None:
                start = place
            elif not here and start is not None:
                yield row, start, place
                start = None
