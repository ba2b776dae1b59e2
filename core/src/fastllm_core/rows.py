"""The engine's own view of its rows: what it knows about each, what a step did to it, and where its text ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch

from .batch import Row
from .history import History
from .processors import Memory
from .report import RunReport
from .transcript import Transcript

if TYPE_CHECKING:
    from torch import Tensor

    from .logprobs import TokenLogprob


class Event(NamedTuple):
    """What a step did to a row."""

    row: int
    """The row's id, as `Engine.add` returned it."""
    tokens: tuple[int, ...]
    """Tokens committed in this step: of one round, or of a few without drafts that were one call."""
    finish_reason: str | None = None
    """None while the row goes on; "eos", "stop" (a stop string), "criterion" (a stopping criterion) or "length", when
    this was its last event."""
    report: RunReport | None = None
    """The row's figures, with its last event."""
    drafted: tuple[int, ...] = ()
    """Tokens drafted in this step at each position of the draft (for a tree: at each level)."""
    accepted: int = 0
    """Drafted tokens that the rule kept: the first ones of `tokens`, which may end among them."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """How likely each of `tokens` was, if the request asks."""
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
    """How likely each token of the prompt was, with the row's first event, if the request asks; None for the first."""
    logits: Tensor | None = None
    """float[len(tokens), V]: the model's logits behind each of `tokens`, if the request keeps them."""


@dataclass(slots=True, eq=False)
class SharedPrompt:
    """A prompt that several rows begin with: one of them reads it, the others copy."""

    unread: int
    """Rows that have it not yet."""
    hidden: list[tuple[int, int, Mapping[int, Tensor]]] = field(default_factory=list)
    """What the drafter was given of each piece (`Drafter.prefill`), while there are such rows."""

    def keep(self, start: int, stop: int, hidden: Mapping[int, Tensor], *, last: bool) -> None:
        """A row has read a piece, perhaps the last."""
        if start == 0:  # a row that read before it has left in the middle
            self.hidden.clear()
        self.hidden.append((start, stop, hidden))
        if last:
            self.got()

    def got(self) -> None:
        """One row more has the whole prompt."""
        self.unread -= 1
        if self.unread == 0:
            self.hidden.clear()


@dataclass(slots=True, eq=False)
class LiveRow(Row):
    """A row with what only the engine needs to know about it."""

    report: RunReport = field(default_factory=RunReport)
    transcript: Transcript | None = None
    """Its text, if stop strings must be found in it."""
    shared: SharedPrompt | None = None
    """The prompt, if several rows have the same one."""
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=lambda: [None])
    """What was said about the prompt's tokens so far, if the request asks; nothing about the first."""
    memories: tuple[Memory, ...] = ()
    """What each of its processors remembers, where that matters."""
    history: History | None = None
    """Its tokens, if a control or a stopping criterion asks for them."""
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - it cannot change
    """Where processors and stopping criteria find their tensors."""
    prefilled: int = 0
    """Prompt tokens that the target has read; all but the last make the row ready, since that one is the first root."""
    joined: float = 0.0
    clock_at_join: tuple[dict[str, float], dict[str, float]] = ({}, {})

    @property
    def ready(self) -> bool:
        """The prompt is read; the row takes part in rounds."""
        return self.prefilled >= self.prompt_length - 1

    @property
    def remaining(self) -> int:
        """Tokens that may still be generated."""
        return self.request.max_new_tokens - (self.length - self.prompt_length)


def ends(row: LiveRow, token: int, length: int) -> str | None:
    """Whether and why the text ends with a token; each of its tokens must come by here once, in order.

    length: tokens of prompt and text, with this one.
    """
    request, row_ends = row.request, False
    if row.history is not None:
        row.history.append(token)
        for criterion in request.stopping_criteria:  # all are asked, as in transformers
            row_ends |= bool(criterion(row.history.ids(row.device), None))
    if token in request.eos_token_ids:
        return "eos"
    if row.transcript is not None and row.transcript.add(token):
        return "stop"
    if row_ends:
        return "criterion"
    return "length" if length - row.prompt_length >= request.max_new_tokens else None


def ending(row: LiveRow, tokens: Sequence[int]) -> tuple[int, str | None]:
    """How many of a round's tokens the row keeps, judged one by one as plain decoding would, and why it ends there."""
    watched = row.history is not None or row.transcript is not None
    if not watched and len(tokens) < row.remaining and row.request.eos_token_ids.isdisjoint(tokens):
        return len(tokens), None
    for count, token in enumerate(tokens, start=1):
        if reason := ends(row, token, row.length + count):
            return count, reason
    return len(tokens), None
