"""Options that the commands share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from fastllm_core import ConfigError

Model = Annotated[
    str | None, typer.Option("--model", help="Registered name, local folder, or owner/name on the Hugging Face hub.")
]
Methods = Annotated[
    str,
    typer.Option(
        "--methods",
        help='Methods, by commas, each with settings behind colons: "plain,speculative:draft.length=3". '
        '"all" is every installed one.',
    ),
]
Suite = Annotated[
    str, typer.Option("--suite", help="demo, spec-bench, humaneval, gsm8k, mbpp, or a .jsonl file of your prompts.")
]
Data = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="Folder with the suites' files; without it they are downloaded."),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Configuration file.", show_default="./fastllm.toml if it exists"),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a configuration key for every method. Repeatable."),
]
DeviceName = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or rocm; cuda:1 for the second.")]
Dtype = Annotated[str | None, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with the model. Read it first.")
]


Command = TypeVar("Command", bound=Callable[..., None])


def examples(*lines: str) -> Callable[[Command], Command]:
    """Add examples to a command's help."""

    def add(command: Command) -> Command:
        shown = "\n".join(f"  {line}" for line in lines)
        # \b: what follows keeps its line ends
        command.__doc__ = f"{inspect.cleandoc(command.__doc__ or '')}\n\n\b\nExamples:\n{shown}"
        return command

    return add


def overrides(settings: list[str] | None, **named: object) -> dict[str, object]:
    """Settings by dotted key, from `--set` and from options of their own. Raises ConfigError."""
    found: dict[str, object] = {}
    for setting in settings or ():
        key, equals, value = setting.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {setting}: write KEY=VALUE, such as --set draft.length=3")
        found[key.strip()] = value
    return found | {key: value for key, value in named.items() if value is not None}


def numbers(name: str, text: str, kind: type[int] | type[float], least: float) -> list[float]:
    """A list such as `1,4,16`. Raises ConfigError."""
    try:
        values = [kind(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise ConfigError(f"--{name} {text}: write numbers separated by commas, such as 1,4") from error
    if not values or min(values) < least:
        raise ConfigError(f"--{name} {text}: every number must be at least {least:g}")
    return list(dict.fromkeys(values))
