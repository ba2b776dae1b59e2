"""Ending a draft where the drafter is unsure, or has ended the text, row by row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .layout import numbers

if TYPE_CHECKING:
    from .batch import Batch


class Confidence:
    """How long each row's draft has become, told token by token.

    The decision looks at drafted tokens and at the round's thresholds, and the token that ends a draft stays in it: to
    drop a token that was drawn because it is unlikely would bias the text.

    A row also ends behind a token that ends its text, since nothing behind that is ever kept. Without thresholds this
    is looked at on the CPU only: to read a token of another device is to wait for it, in every step, for the sake of a
    few steps of a text's last round.
    """

    def __init__(self, batch: Batch) -> None:
        """batch: whose `draft_lengths` and `thresholds` hold."""
        self.batch = batch
        self.drafted = 0
        """Tokens told so far."""
        self._ends = list(batch.draft_lengths)
        self.watches = any(batch.thresholds)
        """Whether every token must be told before the next is drafted."""
        self._final = [row.request.eos_token_ids for row in batch.rows]
        self._ending = any(self._final)

    def goes_on(self, logits: Tensor, tokens: Tensor) -> bool:
        """Count one more token of every row; whether any row wants another.

        logits: float[B, V], the drafter's own, before temperature and truncation.  tokens: int64[B, 1].
        """
        self.drafted += 1
        if self.watches:
            likely = torch.softmax(logits.float(), -1).gather(1, tokens.to(logits.device))[:, 0].tolist()
            for row, (chance, threshold) in enumerate(zip(likely, self.batch.thresholds, strict=True)):
                if chance < threshold:
                    self._end(row)
        if self._ending and (self.watches or tokens.is_cpu):
            for row, ((token,), final) in enumerate(zip(tokens.tolist(), self._final, strict=True)):
                if token in final:
                    self._end(row)
        return self.drafted < max(self._ends)

    def _end(self, row: int) -> None:
        self._ends[row] = min(self._ends[row], self.drafted)

    def told(self, tokens: Tensor) -> None:
        """Count a whole draft, int64[B, N], at once: where `watches` is false, nobody had to be asked in between."""
        self.drafted = tokens.shape[1]
        if self._ending and tokens.is_cpu:
            for row, (line, final) in enumerate(zip(tokens.tolist(), self._final, strict=True)):
                if not final.isdisjoint(line):
                    self._ends[row] = min(self._ends[row], next(n for n, token in enumerate(line, 1) if token in final))

    @property
    def lengths(self) -> Tensor:
        """int64[B]: `Draft.lengths`."""
        return numbers(self._ends, self.batch.device)
