"""The tokens that two vocabularies share, and distributions over them.

Shapes: B rows, V vocabulary of the target, U of the drafter, S shared tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from torch import Tensor


class Overlap:
    """Pairs of equal tokens. Each token is in one pair at most, or two drafted ones would share a probability."""

    def __init__(self, target: Vocabulary, drafter: Vocabulary, device: torch.device) -> None:
        """device: where the target computes."""
        words = pairs(target, drafter)
        self.words = len(words)
        """Shared tokens that are text."""
        self.share = len(words) / max(1, len(target.words))
        """How much of the target's vocabulary the drafter can say, 0..1."""
        paired = words | _specials(target, drafter)
        self.vocab_size = target.size
        self.drafters = torch.tensor(list(paired), dtype=torch.long, device=device)
        """int64[S]: the drafter's ids."""
        self.targets = torch.tensor(list(paired.values()), dtype=torch.long, device=device)
        """int64[S]: the target's."""
        self.to_drafter = torch.zeros(target.size, dtype=torch.long, device=device)
        """int64[V]: the drafter's id of each shared token of the target; 0 for others, which are never drafted."""
        self.to_drafter[self.targets] = self.drafters

    def restricted(self, logits: Tensor) -> Tensor:
        """The drafter's logits, each in the place of the same token of the target; -inf where there is none.

        logits: float[B, U]. Returns float[B, V].
        Source: arXiv:2502.05202, token-level intersection: the softmax of it is q' = q / q(shared).
        """
        nothing = logits.new_full((len(logits), self.vocab_size), -torch.inf)
        return nothing.index_copy(1, self.targets, logits.index_select(1, self.drafters))


def pairs(target: Vocabulary, drafter: Vocabulary) -> dict[int, int]:
    """The target's id of every token that is text and that the drafter has too, by the drafter's id.

    Compared are bytes, so marks of word starts and alphabets of bytes do not matter. Some vocabularies have two tokens
    of the same bytes, a character and its byte, say: like is then paired with like, and nothing twice.
    """
    made: dict[int, int] = {}
    for alike in (True, False):
        free: dict[tuple[bytes, bool], int] = {}
        taken = {*made.values()}
        for index in sorted(target.words, reverse=True):
            if index not in taken:
                free[target.words[index], alike and index in target.bytes] = index
        for index in sorted(drafter.words.keys() - made.keys()):
            there = free.pop((drafter.words[index], alike and index in drafter.bytes), None)
            if there is not None:
                made[index] = there
    return made


def _specials(target: Vocabulary, drafter: Vocabulary) -> dict[int, int]:
    """The special tokens that correspond, one to one."""
    made: dict[int, int] = {}
    for index, there in drafter.counterparts(target, "eos_token_id").items():
        if there not in made.values():
            made[index] = there
    return made
