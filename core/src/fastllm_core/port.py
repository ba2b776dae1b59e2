"""What goes into a forward and what comes out, and how a back end runs one: the two sides of the forward port.

Shapes as in `protocols`; R is the number of rows of the forward.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from .slot_layers import CacheLayers
from .ties import Best, best_of

if TYPE_CHECKING:
    from .network import Network


class Inputs(NamedTuple):
    """The arguments of a forward, all of fixed shape. Rounds make several: a named tuple takes no time."""

    tokens: Tensor | None
    """int64[B, R], or None if `hidden` is given."""
    hidden: Tensor | None
    """float[B, R, H]: hidden states that enter the first layer of the view."""
    positions: Tensor
    """int64[B, R]"""
    slots: Tensor
    """int64[B, R]: where each row's keys and values are written."""
    mask: Tensor
    """bool[B, R, T]: which slots each row sees."""
    key_positions: Tensor | None
    """int64[B, T]: position of what stands in each slot; None if slot and position agree."""

    def to(self, device: torch.device) -> Inputs:
        """The same rows on another device."""
        if self.positions.device == device:
            return self
        return Inputs(*(None if part is None else part.to(device) for part in self))  # type: ignore[arg-type]

    def last(self) -> Inputs:
        """The last of the rows alone, with its token."""
        tokens = None if self.tokens is None else self.tokens[:, -1:]
        hidden = None if self.hidden is None else self.hidden[:, -1:]
        rows = (self.positions[:, -1:], self.slots[:, -1:], self.mask[:, -1:])
        return Inputs(tokens, hidden, *rows, self.key_positions)

    def of_tokens(self, tokens: Tensor) -> Inputs:
        """The same rows with other tokens: int64[B, R]."""
        return Inputs(tokens, None, self.positions, self.slots, self.mask, self.key_positions)


class Outputs(NamedTuple):
    """What a forward answers."""

    logits: Tensor | None
    """float[B, R, V] (or [B, 1, V] when only the last row's were asked for)."""
    hidden: Mapping[int, Tensor]
    """float[B, R, H] by layer: i is the input of layer i, `Network.layers` the last hidden state."""
    best: Best | None = None
    """The logits read greedily, where a back end brings that along."""
    next: Inputs | None = None
    """After one row of each text, the rows of the most likely tokens behind them, where a back end brings them along:
    as in `Advance`."""


class Passage(NamedTuple):
    """Which layers a forward passes through, and what it answers: what there is a program for in a back end."""

    start: int
    stop: int
    skip_attention: frozenset[int] = frozenset()
    skip_mlp: frozenset[int] = frozenset()
    hidden_layers: tuple[int, ...] = ()
    last_logits_only: bool = False


passage_of = lru_cache(maxsize=1024)(Passage)
"""A passage, made once: rounds ask for the same few."""


@lru_cache(maxsize=1024)
def last_only(passage: Passage) -> Passage:
    """The same passage, of which only the last row's logits are wanted."""
    return passage._replace(last_logits_only=True)


class Answer(NamedTuple):
    """What a runner gives back."""

    logits: Tensor | None
    """As in `Outputs`; None if the last layer did not run."""
    hidden: tuple[Tensor, ...]
    """The passage's hidden states, in its order."""
    best: Best | None = None
    """As in `Outputs`."""
    next: Inputs | None = None
    """As in `Outputs`."""


class Advance(NamedTuple):
    """S tokens further in a chain: what its rows say, and the row behind them."""

    logits: Tensor
    """float[B, V]: of the last row."""
    likely: Tensor
    """int64[B, S]: the most likely token behind each row, which is the next row's. Of several rows that enter, behind
    the last."""
    next: Inputs
    """The row of the last of `likely`, one position and one slot further."""
    hidden: tuple[Tensor, ...] = ()
    """float[B, S, H]: the passage's hidden states, in its order."""
    close: Tensor | None = None
    """bool[B, S]: whether rounding alone may have decided each of `likely`, where a back end brings it along."""


class Runner(Protocol):
    """How a back end runs the forwards of one network."""

    def forward(self, passage: Passage, inputs: Inputs, cache: CacheLayers) -> Answer:
        """Some rows through some layers; see `Network.forward`."""
        ...

    def advance(self, passage: Passage, inputs: Inputs, cache: CacheLayers, steps: int = 1) -> Advance:
        """Some rows of a chain of each text, to the last layer, and those behind them; see `Network.advance`."""
        ...

    def at_once(self, passage: Passage, texts: int, rows: int, steps: int) -> bool:
        """Whether `advance` is one call of the back end's, which says what was close; see `Network.at_once`."""
        ...


class Stepping(ABC):
    """`advance` by way of `forward`, which may bring everything along already."""

    def __init__(self, network: Network) -> None:
        """network: whose forwards these are."""
        self.network = network

    @abstractmethod
    def forward(self, passage: Passage, inputs: Inputs, cache: CacheLayers) -> Answer:
        """See `Network.forward`."""

    def advance(self, passage: Passage, inputs: Inputs, cache: CacheLayers, steps: int = 1) -> Advance:
        """See `Network.advance`."""
        if steps > 1:
            return in_turn(steps, inputs, lambda rows: self.advance(passage, rows, cache))
        alone = inputs.positions.shape[1] == 1
        logits, hidden, best, behind = self.forward(passage if alone else last_only(passage), inputs, cache)
        assert logits is not None
        if best is None or behind is None:
            return advanced(logits, inputs, hidden, best)
        return Advance(logits[:, 0], best.tokens, behind, hidden, best.close)

    def at_once(self, passage: Passage, texts: int, rows: int, steps: int) -> bool:
        """Never: a loop in Python gains nothing."""
        return False


def advanced(logits: Tensor, inputs: Inputs, hidden: tuple[Tensor, ...] = (), best: Best | None = None) -> Advance:
    """What follows from the logits behind the last of some rows, float[B, 1, V].  best: read from these already."""
    if inputs.positions.shape[1] > 1:
        inputs, hidden = inputs.last(), tuple([states[:, -1:] for states in hidden])
    likely, close = (logits.max(-1).indices, None) if best is None else best
    return Advance(logits[:, 0], likely, following(inputs, likely), hidden, close)


def in_turn(steps: int, inputs: Inputs, advance: Callable[[Inputs], Advance]) -> Advance:
    """One advance made of several, each from the row behind the last."""
    said = [advance(inputs)]
    for _ in range(steps - 1):
        said.append(advance(said[-1].next))
    if len(said) == 1:
        return said[0]
    hidden = tuple(torch.cat(states, 1) for states in zip(*(one.hidden for one in said), strict=True))
    closes = [one.close for one in said if one.close is not None]
    close = torch.cat(closes, 1) if len(closes) == len(said) else None
    return said[-1]._replace(likely=torch.cat([one.likely for one in said], 1), hidden=hidden, close=close)


def watched(
    forward: Callable[[Passage, Inputs, CacheLayers], Answer],
    dtype: torch.dtype,
    passage: Passage,
    inputs: Inputs,
    cache: CacheLayers,
    steps: int,
) -> Advance:
    """An advance by way of forwards, such as `Network.eager`, that also says which of its tokens were close."""

    def one(rows: Inputs) -> Advance:
        logits, hidden, best, _ = forward(last_only(passage), rows, cache)
        assert logits is not None
        return advanced(logits, rows, hidden, best or best_of(logits, dtype))

    return in_turn(steps, inputs, one)


def following(inputs: Inputs, tokens: Tensor) -> Inputs:
    """The rows of some tokens, int64[B, 1], behind one row each: pure tensor arithmetic, which a compiler takes in."""
    behind = inputs.slots + 1
    slots = torch.arange(inputs.mask.shape[2], device=behind.device)
    mask = inputs.mask | (slots == behind[:, :, None])
    return Inputs(tokens, None, inputs.positions + 1, behind, mask, None)


class EagerRunner(Stepping):
    """Forwards as transformers runs them."""

    def forward(self, passage: Passage, inputs: Inputs, cache: CacheLayers) -> Answer:
        """See `Network.eager`."""
        return self.network.eager(passage, inputs, cache)
