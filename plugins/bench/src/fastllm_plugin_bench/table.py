"""The report on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import wording

STYLES = {"FAILED": "bold red", "differs": "yellow", "near-ties": "yellow", "identical": "green", "lossy": "magenta"}


def show(report: Mapping[str, Any], console: Console) -> None:
    """Every case: speeds beside equality, then by category, then what limits each method."""
    hardware, suite = report["hardware"], report["suite"]
    console.print(
        f"{report['model']} in {hardware['dtype']} on {hardware['what']}, {hardware['threads']} threads; "
        f"suite {suite['name']}, {suite['questions']} questions",
        highlight=False,
        soft_wrap=True,
    )
    if suite["skipped"]:
        console.print(f"skipped, since longer than the context: {len(suite['skipped'])} questions", style="yellow")
    for label, reason in report["absent"].items():
        console.print(Text(f"not run: {label}: {reason}", style="yellow"), soft_wrap=True)
    for case in report["cases"]:
        console.print(_speeds(case))
        if wording.categories(case):
            console.print(_by_category(case))
        for arm in case["arms"]:
            _explain(arm, console)


def _speeds(case: Mapping[str, Any]) -> Table:
    table = Table(title=wording.case_title(case), title_justify="left")
    table.add_column("method", overflow="fold")
    for name in ("tokens/s", "times plain", "tokens/round"):
        table.add_column(name, justify="right")
    table.add_column("text", overflow="fold")
    for arm in case["arms"]:
        text = Text(arm["verdict"], style=STYLES.get(arm["status"], ""))
        if arm["status"] == "FAILED":
            text = Text(f"FAILED: {arm['verdict']}", style=STYLES["FAILED"])
        speed = wording.overall(arm)
        figures = ["-"] * 3
        if speed is not None:
            figures = [f"{speed['tokens_per_s']:.1f}", wording.times(speed["ratio"]), f"{speed['per_round']:.2f}"]
        table.add_row(arm["label"], *figures, text)
    return table


def _by_category(case: Mapping[str, Any]) -> Table:
    names = wording.categories(case)
    table = Table(title="times plain decoding, by category", title_justify="left")
    table.add_column("method", overflow="fold")
    for name in names:
        table.add_column(name, justify="right")
    for arm in case["arms"][1:]:
        if arm["speed"]:
            ratios = [arm["speed"].get(name, {}).get("ratio") for name in names]
            table.add_row(arm["label"], *(wording.times(ratio) for ratio in ratios))
    return table


def _explain(arm: Mapping[str, Any], console: Console) -> None:
    lines = wording.explanation(arm)
    if lines:
        console.print(Text.assemble((f"{arm['label']}: ", "bold"), "\n  ".join(lines)), soft_wrap=True)
