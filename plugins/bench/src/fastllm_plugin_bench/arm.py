"""What is compared: an arm continues prompts and tells, step by step, when which tokens came."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from fastllm_core import SamplingParams


@dataclass(frozen=True, slots=True)
class Job:
    """Prompts that are decoded side by side."""

    prompts: tuple[tuple[int, ...], ...]
    max_new_tokens: int
    sampling: SamplingParams
    seed: int
    """Of the first prompt; prompt i has seed + i."""
    eos: frozenset[int]
    """Tokens that end a text; empty where texts must all have the same length."""


@dataclass(frozen=True, slots=True)
class Step:
    """One event of one row, as it happened."""

    at: float
    """Seconds since the job was handed over."""
    tokens: tuple[int, ...]
    """Tokens that were added to the text."""
    drafted: tuple[int, ...] = ()
    """Tokens drafted at each position of the draft (for a tree: at each level); empty where a peer does not say."""
    accepted: int = 0
    """Drafted tokens that were kept."""

    @property
    def rounds(self) -> int:
        """Each round writes one token of its own besides those; several rounds without drafts may be one event."""
        return max(1, len(self.tokens) - self.accepted)


@dataclass(slots=True)
class RowRun:
    """One row of a job."""

    steps: list[Step] = field(default_factory=list)
    near_ties_at: tuple[int, ...] = ()
    """Tokens that won by no more than rounding, from 0, where the arm can tell."""


@dataclass(slots=True)
class JobRun:
    """What came of a job."""

    rows: list[RowRun]
    seconds: float
    """From handing over to the last token, devices synchronised."""
    rounds: int | None = None
    """Target forwards that advanced any row, prompts not counted, where the arm can tell."""
    time: Mapping[str, float] = field(default_factory=dict)
    """Seconds by phase (prefill, draft, verify, accept, rest), where the arm can tell."""
    forward_time: Mapping[str, float] = field(default_factory=dict)
    """Of these, seconds inside model forwards."""
    verified_rows: int = 0
    """Rows that verification needed, where the arm can tell."""
    resumed_rows: int = 0
    """Of these, rows whose first layers drafting had run already."""


class Arm(Protocol):
    """Someone who decodes."""

    label: str
    kind: str
    """fastllm, transformers or llama.cpp."""

    def unable(self, batch: int, temperature: float) -> str | None:
        """Why it cannot take part with this batch size and temperature; None if it can."""
        ...

    def run(self, job: Job) -> JobRun:
        """Decode a job."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """What it is, for the report: method, configuration, what it gives up."""
        ...

    def close(self) -> None:
        """Give back memory."""
        ...


class NotApplicable(Exception):
    """An arm cannot be made for this model; the message says why."""
