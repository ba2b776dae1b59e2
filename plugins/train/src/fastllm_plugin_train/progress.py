"""The bar of a running training, with the loss and what generation would accept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .state import State

COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


class Bar:
    """Hears of steps and evaluations. Implements `fit.Watcher`."""

    def __init__(self, progress: Progress, task: Any, say: Callable[[str], None]) -> None:
        """say: prints a line above the bar."""
        self.progress, self.task, self.say = progress, task, say
        self.held = ""

    def step(self, state: State, loss: float) -> None:
        """Move on."""
        self.progress.update(self.task, completed=state.step, told=f"loss {loss:.3f}{self.held}")

    def evaluation(self, state: State) -> None:
        """A line, and the acceptance beside the bar."""
        told = state.evaluations[-1]
        self.held = f", {told['tokens_per_round']:.2f} tokens/round"
        self.say(
            f"step {told['step']:>6}: held-out loss {told['loss']:.4f}, {told['tokens_per_round']:.3f} tokens/round "
            f"greedy, {told['overlap']:.1%} of drafts accepted under sampling"
        )


@contextmanager
def watched(steps: int) -> Iterator[Bar]:
    """A bar on stderr, where that is a terminal; lines for evaluations anywhere."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    with Progress(*COLUMNS, TextColumn("{task.fields[told]}"), console=console, transient=True) as progress:
        yield Bar(progress, progress.add_task("training", total=steps, told=""), console.print)


@contextmanager
def counted(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar for so many things; yields what must be told how many are done."""
    with Progress(*COLUMNS, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done: progress.update(task, completed=done)
