"""The report as Markdown, for a repository or an issue."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from . import wording


def render(report: Mapping[str, Any]) -> str:
    """The whole report."""
    return "\n".join([*_head(report), *(line for case in report["cases"] for line in _case(case))]) + "\n"


def _head(report: Mapping[str, Any]) -> Iterator[str]:
    hardware, suite, plan = report["hardware"], report["suite"], report["plan"]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    yield f"# {report['model']}: decoding methods compared"
    yield ""
    yield f"- {report['created']}, {hardware['what']}, {hardware['threads']} threads, {hardware['dtype']}, {versions}"
    yield (
        f"- suite {suite['name']} ({suite['hash']}): {suite['questions']} questions, {len(suite['skipped'])} of them "
        f"skipped as longer than the context; {plan['repeats']} repeats of at most {plan['max_new_tokens']} new tokens"
    )
    yield f"- `fastllm {shlex.join(report['command'])}`"
    yield "- Times plain decoding, after the prompt, with 95 % intervals; methods took turns on each prompt."
    for label, reason in report["absent"].items():
        yield f"- Not run: `{label}`: {reason}"


def _case(case: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    yield f"## {wording.case_title(case)}"
    yield ""
    names = wording.categories(case)
    yield from _table(
        ["method", "tokens/s", "times plain", "with the prompt", "tokens/round", "predicted", "memory", "text"],
        [_speed_row(arm) for arm in case["arms"]],
    )
    if names:
        yield ""
        yield from _table(
            ["times plain", *names],
            [
                [f"`{arm['label']}`", *(wording.times(arm["speed"].get(name, {}).get("ratio")) for name in names)]
                for arm in case["arms"][1:]
                if arm["speed"]
            ],
        )
    yield ""
    for arm in case["arms"]:
        for number, line in enumerate(wording.explanation(arm)):
            yield f"- `{arm['label']}`: {line}" if number == 0 else f"  - {line}"


def _speed_row(arm: Mapping[str, Any]) -> list[str]:
    speed, bad = wording.overall(arm), arm["status"] == "FAILED"
    text = f"**FAILED**: {arm['verdict']}" if bad else arm["verdict"]
    if speed is None:
        return [f"`{arm['label']}`", *["-"] * 6, text]
    return [
        f"`{arm['label']}`",
        f"{speed['tokens_per_s']:.1f}",
        wording.times(speed["ratio"]),
        wording.times(speed["whole_ratio"]),
        f"{speed['per_round']:.2f}",
        "-" if arm["predicted"] is None else f"{arm['predicted']:.2f}x",
        wording.megabytes(arm["memory"]),
        text,
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for cells in (head, ["---"] * len(head), *rows):
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
