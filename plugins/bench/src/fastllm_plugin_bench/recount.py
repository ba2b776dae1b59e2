"""Counting from raw events alone: one token counter for every arm, whoever it is and whatever it says of itself."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from .arm import JobRun, RowRun


@dataclass(frozen=True, slots=True)
class Limit:
    """Where a text ends: at the first of these tokens, or at this length."""

    eos: Collection[int]
    max_new_tokens: int

    def cut(self, tokens: Iterable[int]) -> tuple[int, ...]:
        """The tokens of a text, up to and including the one that ended it."""
        kept: list[int] = []
        for token in tokens:
            if len(kept) == self.max_new_tokens:
                break
            kept.append(token)
            if token in self.eos:
                break
        return tuple(kept)


@dataclass(slots=True)
class Counts:
    """What happened, summed over rows and jobs."""

    tokens: int = 0
    seconds: float = 0.0
    """Of whole jobs, prompts included."""
    decode_tokens: int = 0
    """Tokens that came after every row of their job had its first."""
    decode_seconds: float = 0.0
    """What these took."""
    prompt_seconds: float = 0.0
    """Until every row had its first tokens."""
    row_rounds: int = 0
    """Rounds in which a row took part, summed over rows."""
    drafting: int = 0
    """Of these, rounds in which it drafted."""
    positions: int = 0
    """Positions (for a tree: levels) of all drafts together."""
    drafted_at: list[int] = field(default_factory=list)
    accepted_at: list[int] = field(default_factory=list)
    judged: int = 0
    """Drafted positions that were looked at: those up to the first that was refused."""
    kept: int = 0
    """Of these, accepted."""

    def add(self, run: JobRun, limit: Limit) -> None:
        """Count a job."""
        ends = [len(limit.cut(tokens_of(row))) for row in run.rows]
        first = max((row.steps[0].at for row in run.rows if row.steps), default=run.seconds)
        last = max((_last(row, end) for row, end in zip(run.rows, ends, strict=True)), default=first)
        self.seconds += run.seconds
        self.prompt_seconds += first
        self.decode_seconds += last - first
        for row, end in zip(run.rows, ends, strict=True):
            self.tokens += end
            self._count_row(row, end, first)

    def _count_row(self, row: RowRun, end: int, first: float) -> None:
        before = 0
        for step in row.steps:
            if before >= end:  # what a peer went on with after the end of its text
                break
            count = min(len(step.tokens), end - before)
            before += count
            self.row_rounds += min(step.rounds, max(count, 1))
            self.decode_tokens += count if step.at > first else 0
            levels = len(step.drafted)
            self.drafting += levels > 0
            self.positions += levels
            self.drafted_at += [0] * (levels - len(self.drafted_at))
            self.accepted_at += [0] * (levels - len(self.accepted_at))
            for level, drafted in enumerate(step.drafted):
                self.drafted_at[level] += drafted
                self.accepted_at[level] += level < step.accepted
            self.judged += min(step.accepted + 1, levels)
            self.kept += min(step.accepted, levels)

    @property
    def per_round(self) -> float:
        """Mean tokens committed per target forward and row (MAT)."""
        return self.tokens / self.row_rounds if self.row_rounds else 0.0

    @property
    def tokens_per_s(self) -> float:
        """After the prompt."""
        return self.decode_tokens / self.decode_seconds if self.decode_seconds > 0 else 0.0


def tokens_of(row: RowRun) -> tuple[int, ...]:
    """Everything that a row committed."""
    return tuple(token for step in row.steps for token in step.tokens)


def _last(row: RowRun, end: int) -> float:
    """When the token came that ended the row's text."""
    count = 0
    for step in row.steps:
        count += len(step.tokens)
        if count >= end:
            return step.at
    return 0.0
