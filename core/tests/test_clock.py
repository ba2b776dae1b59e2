"""Where the time of a run goes."""

from __future__ import annotations

import pytest

from fastllm_core import clock
from fastllm_core.clock import Clock


class Time:
    """A clock on the wall that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr(clock, "time", time)
    return time


def test_an_inner_phase_takes_its_time_away_from_the_outer_one(wall: Time) -> None:
    mine = Clock()
    wall.now += 1
    with mine.phase("verify"):
        wall.now += 2
        with mine.phase("draft"), mine.forward():
            wall.now += 4
        wall.now += 8
    phases, forwards = mine.snapshot()
    assert (phases["rest"], phases["verify"], phases["draft"]) == (1, 10, 4)
    assert (forwards["verify"], forwards["draft"]) == (0, 4)


def test_what_is_done_once_counts_nowhere(wall: Time) -> None:
    """Or the first measured round would seem to cost what loading a program costs, and drafting never to pay."""
    mine = Clock()
    with mine.phase("verify"), mine.forward():
        wall.now += 1
        with mine.paused():
            wall.now += 60
        wall.now += 2
    with mine.phase("accept"), mine.paused():
        wall.now += 5
    phases, forwards = mine.snapshot()
    assert (phases["verify"], forwards["verify"], phases["accept"]) == (3, 3, 0)
