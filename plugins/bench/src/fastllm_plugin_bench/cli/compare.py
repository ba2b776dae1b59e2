"""`fastllm bench compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastllm_core.cli.settings import examples

if TYPE_CHECKING:
    from rich.table import Table


@examples(
    "fastllm bench compare results/before results/after",
    "fastllm bench compare before/report.json after/report.json --json",
)
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="A run's folder, or its report.json.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="The run that came after it.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what changed between two runs: speed, tokens per round, texts, and what they ran on."""
    from .. import compare as comparison
    from .. import report

    old, new = report.read(first), report.read(second)
    if as_json:
        typer.echo(json.dumps(comparison.as_json(old, new), indent=2))
        return
    from rich.console import Console

    console = Console()
    for difference in comparison.surroundings(old, new):
        console.print(difference, highlight=False, markup=False, soft_wrap=True)
    found = comparison.as_json(old, new)["changes"]
    for case in dict.fromkeys(change["case"] for change in found):
        console.print(_table(case, [change for change in found if change["case"] == case]))


def _table(case: str, changes: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    from ..wording import times

    table = Table(title=f"{case}: times plain decoding", title_justify="left")
    table.add_column("method", overflow="fold")
    for name in ("A", "B", "B : A", "tokens/round"):
        table.add_column(name, justify="right", overflow="fold")
    table.add_column("what changed", overflow="fold")
    for change in changes:
        rounds = " -> ".join("-" if each is None else f"{each:.2f}" for each in change["tokens_per_round"])
        quotient = "-" if change["change"] is None else "{:.2f} ({:.2f}..{:.2f})".format(*change["change"])
        speeds = times(change["before"]), times(change["after"])
        table.add_row(change["label"], *speeds, quotient, rounds, change["verdict"])
    return table
