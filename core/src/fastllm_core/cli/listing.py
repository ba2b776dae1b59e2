"""The list of installed plugins, from metadata alone and in plain text: a table of rich would take 0.1 s to import."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from ..discovery import installed

HEADER = ("NAME", "KIND", "DISTRIBUTION", "VERSION", "ORIGIN", "ENTRY POINT")


def write(kinds: Sequence[str], *, as_json: bool) -> None:
    """Print the installed plugins of these kinds (of all, if none is named)."""
    found = installed(*kinds)
    if as_json:
        print(json.dumps([asdict(plugin) for plugin in found], indent=2))
    elif found:
        rows = [(p.name, p.kind, p.distribution, p.version, p.origin, p.entry_point) for p in found]
        print(_aligned([HEADER, *rows]))
    else:
        print("no plugins are installed; try: pip install fastllm-plugin-demo", file=sys.stderr)


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
