"""The parser. A command is imported and built when it is asked for, which keeps the others quick."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from . import foreign
from .settings import Debug

COMMANDS = ("generate", "compile", "demo", "device", "plugins", "config")
"""The core's own: a module of this package each, which names its application or function `command`."""


class LazyGroup(TyperGroup):
    """The core's commands and those of installed plugins, which help lists without importing them."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The core's, then the plugins'."""
        return [*COMMANDS, *(name for name in foreign.names() if name not in COMMANDS)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command; one of a plugin stands only for its line in the help."""
        return _own(cmd_name) if cmd_name in COMMANDS else foreign.placeholder(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that is about to run: only now is a plugin's imported."""
        name = args[0] if args else ""
        if name not in COMMANDS and name in foreign.names():
            return name, foreign.load(name), args[1:]
        return super().resolve_command(ctx, args)


app = typer.Typer(cls=LazyGroup, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        typer.echo(f"fastllm {metadata.version('fastllm-core')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
    debug: Debug = False,
) -> None:
    """Faster text from Hugging Face models, by speculative decoding, without changing the text."""


def run(arguments: Sequence[str]) -> int:
    """Parse and run; the exit code. Errors are raised."""
    command = typer.main.get_command(app)
    code = command.main(args=list(arguments), prog_name="fastllm", standalone_mode=False)
    return code if isinstance(code, int) else 0


def _own(name: str) -> Any:
    return foreign.built(name, import_module(f".{name}", __package__).command)
