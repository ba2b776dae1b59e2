"""Trees of ranks: which of each head's best tokens are put together into the paths that a round verifies.

A node is a path of ranks: (1, 0) is the second best token of head 0 and, behind it, the best of head 1. A tree holds
with a path all its beginnings, so its shape is fixed while its tokens change.

Source: Medusa, arXiv:2401.10774, sections 2.1.2 and 2.3.3. Shapes: K heads, N nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import heappop, heappush
from itertools import islice, product
from math import prod
from typing import Final

from fastllm_core import ConfigError

Path = tuple[int, ...]
"""Ranks from the root on, 0 the best."""
Accuracies = Sequence[Sequence[float]]
"""K rows: the chance that a head's token of rank r is the right one, for each r; not cumulative."""

PUBLISHED: Final[Accuracies] = tuple(
    (one, two - one, three - two, (five - three) / 2, (five - three) / 2)
    for one, two, three, five in (
        (0.560, 0.672, 0.727, 0.780),
        (0.316, 0.424, 0.485, 0.563),
        (0.201, 0.288, 0.348, 0.417),
        (0.147, 0.225, 0.274, 0.340),
        (0.118, 0.187, 0.235, 0.300),
    )
)
"""Of the authors' heads for Vicuna 7B, from their training log (among the best 1, 2, 3 and 5); ranks 3 and 4 share
evenly."""


@dataclass(frozen=True)
class Tree:
    """Paths by depth, then in order of rank: parents before children, and shallower trees are beginnings of it."""

    paths: tuple[Path, ...]

    @classmethod
    def of(cls, paths: Iterable[Sequence[int]]) -> Tree:
        """From paths in any order. Raises ConfigError unless every path's beginnings are among them."""
        found = {tuple(path) for path in paths}
        for path in found:
            if not path or any(type(rank) is not int or rank < 0 for rank in path):
                raise ConfigError(f"a tree's paths are lists of ranks, 0 or more, and {list(path)} is none")
            if len(path) > 1 and path[:-1] not in found:
                raise ConfigError(f"the tree has the path {list(path)} and lacks {list(path[:-1])}, where it begins")
        if not found:
            raise ConfigError("the tree has no paths")
        return cls(tuple(sorted(found, key=lambda path: (len(path), path))))

    def __len__(self) -> int:
        """N."""
        return len(self.paths)

    @property
    def depth(self) -> int:
        """Tokens of the longest path, and how many heads it takes."""
        return len(self.paths[-1])

    @property
    def ranks(self) -> int:
        """How many of a head's best tokens are looked at."""
        return max(path[-1] for path in self.paths) + 1

    @cached_property
    def parents(self) -> tuple[int, ...]:
        """The node that each node continues, -1 for the root."""
        index = {path: node for node, path in enumerate(self.paths)}
        return tuple(index.get(path[:-1], -1) for path in self.paths)

    @cached_property
    def levels(self) -> tuple[int, ...]:
        """Nodes within each depth, from depth 0 on: what a row that drafts so deep has of the tree."""
        return tuple(sum(len(path) <= depth for path in self.paths) for depth in range(self.depth + 1))

    @property
    def is_chain(self) -> bool:
        """Whether it is one path."""
        return len(self) == self.depth

    def cut(self, depth: int) -> Tree:
        """What of it is no deeper."""
        return Tree(tuple(path for path in self.paths if len(path) <= depth))

    def value(self, accuracies: Accuracies) -> float:
        """Tokens that a round is expected to commit, if heads are right independently of each other."""
        return 1.0 + sum(_chance(path, accuracies) for path in self.paths)

    def __str__(self) -> str:
        """Nodes in all and by level, as in "16 (6, 7, 3)"."""
        wide = [after - before for before, after in zip(self.levels, self.levels[1:], strict=False)]
        return f"{len(self)} ({', '.join(map(str, wide))})"


def chain(depth: int) -> Tree:
    """The best token of every head."""
    return Tree.of([(0,) * length for length in range(1, depth + 1)])


def cartesian(widths: Sequence[int]) -> Tree:
    """Every way to take one of the `widths[k]` best tokens of each head k."""
    levels = (product(*map(range, widths[:depth])) for depth in range(1, len(widths) + 1))
    return Tree.of(path for level in levels for path in level)


def best_cartesian(accuracies: Accuracies, nodes: int, depth: int | None = None) -> Tree:
    """The Cartesian tree of at most so many nodes that is expected to commit most; of equals the smallest."""
    deepest = min(len(accuracies), depth or len(accuracies))
    best: tuple[float, int, tuple[int, ...]] = (0.0, 0, ())

    def widen(widths: tuple[int, ...], leaves: int, count: int, chance: float, value: float) -> None:
        nonlocal best
        if widths:
            best = max(best, (value, -count, widths))
        if len(widths) == deepest:
            return
        ranks = accuracies[len(widths)]
        for width in range(1, len(ranks) + 1):
            wider = count + leaves * width
            if wider > nodes:
                return
            right = chance * sum(ranks[:width])
            widen((*widths, width), leaves * width, wider, right, value + right)

    widen((), 1, 0, 1.0, 1.0)
    return cartesian(best[2])


def grown(accuracies: Accuracies, nodes: int, depth: int | None = None) -> Tree:
    """The tree of so many nodes that is expected to commit most; fewer if there are no more paths.

    depth: of its longest path, at most; None is one for each head.
    Source: arXiv:2401.10774, section 2.3.3.
    """
    return Tree.of(islice(growth(accuracies, depth), nodes))


def growth(accuracies: Accuracies, depth: int | None = None) -> Iterator[Path]:
    """Paths by falling chance, a path's beginnings before it: the first N are the best tree of N nodes.

    A heap holds the next sibling and the first child of what has been taken. That is the best tree as long as a better
    rank is as likely as a worse one, which few measurements may break by chance: then it is nearly the best.
    """
    deepest = min(len(accuracies), depth or len(accuracies))
    heap: list[tuple[float, int, Path]] = []

    def offer(path: Path) -> None:
        if len(path) <= deepest and path[-1] < len(accuracies[len(path) - 1]):
            heappush(heap, (-_chance(path, accuracies), len(path), path))

    offer((0,))
    while heap:
        path = heappop(heap)[2]
        yield path
        offer((*path[:-1], path[-1] + 1))
        offer((*path, 0))


def _chance(path: Path, accuracies: Accuracies) -> float:
    """That all of a path is right; 0 for what the accuracies do not tell."""
    known = len(path) <= len(accuracies) and all(rank < len(accuracies[head]) for head, rank in enumerate(path))
    return prod(accuracies[head][rank] for head, rank in enumerate(path)) if known else 0.0
