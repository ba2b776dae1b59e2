"""A sign of life while something takes long: a spinner and the seconds, where a person is watching."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show on stderr, if it is a terminal, that `what` is going on; else tell the log."""
    stream = sys.__stderr__
    if stream is None or not stream.isatty():
        logging.getLogger("fastllm").info("%s", what)
        yield
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(file=stream), transient=True) as progress:
        progress.add_task(what, total=None)
        yield
