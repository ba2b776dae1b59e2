"""Where the time of a run goes: by phase of a round, and within each phase inside model forwards."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Self

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
        self.current = "rest"
        """The phase that time is counted for now."""
        self.forward_since = 0.0
        """When the forward that is under way began."""
        self._since = time.perf_counter()
        self._forward = Forward(self)

    def phase(self, name: str) -> Phase:
        """Attribute the block's time to a phase; an inner phase takes its time away from the outer one."""
        return Phase(self, name)

    def forward(self) -> Forward:
        """Count the block as a model forward of the current phase."""
        return self._forward

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count the block nowhere: what is done once, such as loading a program, is no part of what a round costs."""
        start = time.perf_counter()
        try:
            yield
        finally:
            lost = time.perf_counter() - start
            self._since += lost
            self.forward_since += lost

    def restart(self) -> None:
        """Drop the time since the last switch: nobody was working, or someone was interrupted."""
        self.current = "rest"
        self._since = time.perf_counter()

    def stop(self) -> None:
        """Count the time until now; nobody is working."""
        self.switch("rest")

    def of_rounds(self) -> tuple[float, float, float]:
        """Seconds so far in drafting, in verifying, and in what else rounds do."""
        self.switch(self.current)
        phases = self.phases
        return phases["draft"], phases["verify"], phases["accept"] + phases["rest"]

    def snapshot(self) -> tuple[dict[str, float], dict[str, float]]:
        """Seconds so far: per phase, and inside its forwards."""
        self.switch(self.current)
        return dict(self.phases), dict(self.forwards)

    def switch(self, name: str) -> str:
        """Count the time until now for the current phase, and begin another. Returns which one ended."""
        now = time.perf_counter()
        ended, self.current = self.current, name
        self.phases[ended] += now - self._since
        self._since = now
        return ended


class Phase:
    """A block whose time belongs to a phase. A class and no generator: a round enters a dozen blocks."""

    __slots__ = ("clock", "name", "outer")

    def __init__(self, clock: Clock, name: str) -> None:
        """clock: whose phase it is.  name: of the phase."""
        self.clock, self.name = clock, name

    def __enter__(self) -> Self:
        self.outer = self.clock.switch(self.name)
        return self

    def __exit__(self, *_: object) -> None:
        self.clock.switch(self.outer)


class Forward:
    """A block that is a forward."""

    __slots__ = ("clock",)

    def __init__(self, clock: Clock) -> None:
        """clock: that counts it."""
        self.clock = clock

    def __enter__(self) -> Self:
        self.clock.forward_since = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.clock.forwards[self.clock.current] += time.perf_counter() - self.clock.forward_since
