"""Options that several commands share, and the configuration that they make. Plugins that bring commands use it too."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from ..errors import ConfigError
from .failures import show_tracebacks

if TYPE_CHECKING:
    from ..config import Config

Debug = Annotated[
    bool, typer.Option("--debug", help="Show the traceback of an error.", callback=show_tracebacks, is_eager=True)
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Configuration file.", show_default="./fastllm.toml if it exists"),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a configuration key, such as draft.length=3. Repeatable."),
]
Model = Annotated[
    str | None, typer.Option("--model", help="Registered name, local folder, or owner/name on the Hugging Face hub.")
]
Method = Annotated[str | None, typer.Option("--method", help='An installed method, "plain", or "auto".')]
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


def overrides(settings: Sequence[str] | None, **named: object) -> dict[str, object]:
    """Settings by dotted key, from `--set` and from options of their own, which win. Raises ConfigError."""
    found: dict[str, object] = {**pairs("--set", settings, "draft.length=3")}
    return found | {key: value for key, value in named.items() if value is not None}


def pairs(option: str, given: Sequence[str] | None, example: str) -> dict[str, str]:
    """The values of a repeatable KEY=VALUE option. Raises ConfigError, which shows the example."""
    found = {}
    for text in given or ():
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"{option} {text}: write KEY=VALUE, such as {option} {example}")
        found[key.strip()] = value
    return found


def configure(file: Path | None, settings: Sequence[str] | None, **named: object) -> Config:
    """The configuration from a file, the environment, `--set` and named options, each winning over the one before."""
    from ..config import load_config

    return load_config(file, overrides(settings, **named))
