"""Toy logits processors and stopping criteria: of every kind of memory, and strict about how they are called."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class InOrder:
    """Notices if it is not called once for every token of one text, in order.

    A function, so that nobody can copy what it knows: a processor that calls it is stateful.
    """

    def __init__(self) -> None:
        """Nothing has been seen."""
        self.seen: list[int] | None = None
        self.calls = 0

    def __call__(self, input_ids: Tensor) -> None:
        """Raise AssertionError if the text is not the last one and one token more. input_ids: int64[1, n]."""
        ids = input_ids[0].tolist()
        if self.seen is not None and ids[:-1] != self.seen:
            raise AssertionError(f"called behind {ids[-8:]}, and before that behind {self.seen[-8:]}: out of order")
        self.seen = ids
        self.calls += 1


class Rolling:
    """A stateful processor: every call moves the scores by one token more, so a call too many changes the text."""

    def __init__(self) -> None:
        """Nothing has been seen."""
        self.order = InOrder()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores, rolled."""
        self.order(input_ids)
        return scores.roll(self.order.calls % 5, -1)


class Alternating:
    """A snapshotable processor, by its plain attributes: a token that it let through is worth less the next time."""

    def __init__(self) -> None:
        """Nothing has been seen."""
        self.weights: dict[int, float] = {}

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores, less what was noted for the last tokens."""
        last = int(input_ids[0, -1])
        self.weights[last] = self.weights.get(last, 0.0) + 2.0
        scores = scores.clone()
        for token, weight in self.weights.items():
            scores[:, token] -= weight
        return scores


class Parity:
    """A pure processor: behind an even token odd ones are likelier, and the other way round."""

    def __init__(self, bias: float = 3.0) -> None:
        """bias: added to the likelier tokens' logits."""
        self.bias = bias

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores, with the bias."""
        tokens = torch.arange(scores.shape[-1], device=scores.device)
        return scores + self.bias * ((tokens + input_ids[:, -1:]) % 2)


class AfterSum:
    """A stateful stopping criterion: the text ends once the ids of its tokens, as it was asked, sum to enough."""

    def __init__(self, least: int) -> None:
        """least: the sum."""
        self.order = InOrder()
        self.least, self.sum = least, 0

    def __call__(self, input_ids: Tensor, scores: Any) -> Tensor:
        """Whether it is enough. Returns bool[1], as transformers' criteria do."""
        self.order(input_ids)
        self.sum += int(input_ids[0, -1])
        return torch.tensor([self.sum >= self.least])
