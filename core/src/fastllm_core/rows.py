"""The engine's own view of its rows: what it knows about each, what a step did to it, and where its text ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from .batch import Row
from .history import History
from .processors import Memory
from .report import RunReport
from .transcript import Transcript


@dataclass(frozen=True, slots=True)
class Event:
    """What a step did to a row."""

    row: int
    """The row's id, as `Engine.add` returned it."""
    tokens: tuple[int, ...]
    """Tokens committed in this step."""
    finish_reason: str | None = None
    """None while the row goes on; "eos", "stop" (a stop string), "criterion" (a stopping criterion) or "length", when
    this was its last event."""
    report: RunReport | None = None
    """The row's figures, with its last event."""
    drafted: tuple[int, ...] = ()
    """Tokens drafted in this step at each position of the draft (for a tree: at each level)."""
    accepted: int = 0
    """Drafted tokens that the rule kept: the first ones of `tokens`, which may end among them."""


@dataclass(slots=True, eq=False)
class LiveRow(Row):
    """A row with what only the engine needs to know about it."""

    report: RunReport = field(default_factory=RunReport)
    transcript: Transcript | None = None
    """Its text, if stop strings must be found in it."""
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
    for count, token in enumerate(tokens, start=1):
        if reason := ends(row, token, row.length + count):
            return count, reason
    return len(tokens), None
