"""Options that the commands share, beyond those that the core's commands have as well."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastllm_core import ConfigError

Methods = Annotated[
    str,
    typer.Option(
        "--methods",
        help='Methods, by commas, each with settings behind colons: "plain,speculative:draft.length=3". '
        '"all" is every installed one.',
    ),
]
Suite = Annotated[
    str,
    typer.Option(
        "--suite", help="demo, grounded, spec-bench, humaneval, gsm8k, mbpp, or a .jsonl file of your prompts."
    ),
]
Data = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="Folder with the suites' files; without it they are downloaded."),
]


def numbers(name: str, text: str, kind: type[int] | type[float], least: float) -> list[float]:
    """A list such as `1,4,16`. Raises ConfigError."""
    try:
        values = [kind(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise ConfigError(f"--{name} {text}: write numbers separated by commas, such as 1,4") from error
    if not values or min(values) < least:
        raise ConfigError(f"--{name} {text}: every number must be at least {least:g}")
    return list(dict.fromkeys(values))
