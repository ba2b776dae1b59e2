"""`fastllm bench`. Nothing here imports torch: what needs it is imported when a command runs."""

from __future__ import annotations

import typer

from .compare import compare
from .forward import forward
from .pick import pick
from .run import run

command = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Compare methods: fairly, with equality next to speed."
)


@command.callback()
def bench() -> None:
    """Compare methods: fairly, with equality next to speed."""


for each in (run, compare, pick, forward):
    command.command(each.__name__)(each)
