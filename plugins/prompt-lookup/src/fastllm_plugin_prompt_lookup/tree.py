"""Several guesses, merged where they agree."""

from __future__ import annotations

from collections.abc import Sequence


class Tree:
    """Nodes of a draft in the order in which the core wants them: parents before children."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.tokens: list[int] = []
        self.parents: list[int] = []
        """The node that each node continues, -1 for the root."""
        self.depth = 0
        """Tokens of the longest path."""
        self._nodes: dict[tuple[int, int], int] = {}
        """Node by parent and token."""

    def add(self, path: Sequence[int]) -> bool:
        """Merge a path from the root in; returns whether any of it is new."""
        before, node = len(self.tokens), -1
        for token in path:
            key = (node, token)
            if key not in self._nodes:
                self._nodes[key] = len(self.tokens)
                self.tokens.append(token)
                self.parents.append(node)
            node = self._nodes[key]
        self.depth = max(self.depth, len(path))
        return len(self.tokens) > before
