"""The engine's own view of its rows: what it knows about each, what a step did to it, and where its text ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .batch import Row
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
    """None while the row goes on; "eos", "stop" (a stop string) or "length" when this was its last event."""
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


def ending(row: LiveRow, tokens: Sequence[int]) -> tuple[int, str | None]:
    """How many of a round's tokens the row keeps, judged one by one as plain decoding would, and why it ends there."""
    request, produced = row.request, row.length - row.prompt_length
    for count, token in enumerate(tokens, start=1):
        if token in request.eos_token_ids:
            return count, "eos"
        if row.transcript is not None and row.transcript.add(token):
            return count, "stop"
        if produced + count >= request.max_new_tokens:
            return count, "length"
    return len(tokens), None
