"""Where the time of a run goes: by phase of a round, and within each phase inside model forwards."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

PHASES: Final = ("prefill", "draft", "verify", "accept", "rest")


class Clock:
    """Seconds per phase and, of these, seconds inside forwards.

    On a GPU a phase's Python code may end before its work does. Acceptance reads its result on the host, so a whole
    round is timed truly there; how it splits into phases is a guide only.
    """

    def __init__(self) -> None:
        """Start at zero, in no phase of a round."""
        self.phases = dict.fromkeys(PHASES, 0.0)
        self.forwards = dict.fromkeys(PHASES, 0.0)
        self._current = "rest"
        self._since = self._forward_since = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Attribute the block's time to a phase; an inner phase takes its time away from the outer one."""
        outer = self._switch(name)
        try:
            yield
        finally:
            self._switch(outer)

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Count the block as a model forward of the current phase."""
        self._forward_since = time.perf_counter()
        try:
            yield
        finally:
            self.forwards[self._current] += time.perf_counter() - self._forward_since

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count the block nowhere: what is done once, such as loading a program, is no part of what a round costs."""
        start = time.perf_counter()
        try:
            yield
        finally:
            lost = time.perf_counter() - start
            self._since += lost
            self._forward_since += lost

    def restart(self) -> None:
        """Drop the time since the last switch: nobody was working."""
        self._since = time.perf_counter()

    def snapshot(self) -> tuple[dict[str, float], dict[str, float]]:
        """Seconds so far: per phase, and inside its forwards."""
        self._switch(self._current)
        return dict(self.phases), dict(self.forwards)

    def _switch(self, name: str) -> str:
        now = time.perf_counter()
        ended, self._current = self._current, name
        self.phases[ended] += now - self._since
        self._since = now
        return ended
