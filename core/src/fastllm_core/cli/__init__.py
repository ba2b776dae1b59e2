"""The command `fastllm`. What needs torch imports it when it runs, so that help and lists are quick."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from . import failures, listing

QUICK = {("plugins", "list"): False, ("plugins", "list", "--json"): True}
"""Command lines that need no parser, and whether they want JSON. Loading typer, which since 0.29 brings pydantic along,
would take longer than the work itself."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0, 2 for a user's mistake, 1 for a failure, 130 after Ctrl-C."""
    given = tuple(sys.argv[1:] if arguments is None else arguments)
    sys.exit(failures.guarded(lambda: _run(given)))


def _run(arguments: tuple[str, ...]) -> int:
    if arguments in QUICK:
        listing.write((), as_json=QUICK[arguments])
        return 0
    from .app import run

    return run(arguments)
