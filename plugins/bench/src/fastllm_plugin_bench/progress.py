"""The bar of a running benchmark, with each method's ratio so far."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from .choice import PLAIN
from .measure import Bench, Listener
from .record import Measured
from .recount import Counts

SHOWN = 4
"""Ratios that fit beside a bar."""


class Running:
    """Speeds so far, in the case that is being measured."""

    def __init__(self, bench: Bench) -> None:
        """bench: whose text ends hold."""
        self.bench = bench
        self.case = -1
        self.counts: dict[str, Counts] = {}

    def add(self, measured: Measured) -> str:
        """Count a job; returns `speculative 2.1x, ...`, the fastest first."""
        if measured.case != self.case:
            self.case, self.counts = measured.case, {}
        if measured.run is not None:
            self.counts.setdefault(measured.arm, Counts()).add(measured.run, self.bench.limit)
        base = self.counts.get(PLAIN, Counts()).tokens_per_s
        if not base:
            return ""
        ratios = {arm: counts.tokens_per_s / base for arm, counts in self.counts.items() if arm != PLAIN}
        ordered = sorted(ratios.items(), key=lambda pair: -pair[1])
        return ", ".join(f"{arm} {ratio:.2f}x" for arm, ratio in ordered[:SHOWN])


@contextmanager
def watched(bench: Bench, *, title: str = "measuring", endless: bool = False) -> Iterator[Listener]:
    """A bar on stderr; yields what must be told of each job. endless: a clock ends it, not the plan.

    It is drawn between jobs only: a thread that drew it ten times a second would do so in what is being measured.
    """
    words = TextColumn("{task.description}"), TextColumn("{task.fields[ratios]}")
    columns = (words[0], BarColumn(), TimeRemainingColumn(), words[1])
    running = Running(bench)
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as progress:
        task = progress.add_task(title, total=None if endless else jobs(bench), ratios="")

        def listener(measured: Measured) -> None:
            progress.update(task, advance=1, ratios=running.add(measured), refresh=True)

        yield listener


def jobs(bench: Bench) -> int:
    """How many jobs the plan has at most; questions that do not fit and arms that fail make it fewer."""
    plan, total = bench.plan, 0
    for case in plan.cases:
        able = [arm for arm in bench.arms if arm.unable(case.batch, case.temperature) is None]
        total += plan.repeats * len(able) * sum(group.turns for group in plan.groups(case))
    return total
