"""Commands of installed plugins: known from metadata, imported when they run."""

from __future__ import annotations

from functools import cache
from typing import Any

import typer

from .. import discovery
from .settings import Debug


@cache
def names() -> tuple[str, ...]:
    """Their names."""
    return tuple(plugin.name for plugin in discovery.installed("command"))


def placeholder(name: str) -> Any:
    """What stands for a plugin's command in the help, or None if there is no such command."""
    if name not in names():
        return None
    origin = next(plugin for plugin in discovery.installed("command") if plugin.name == name)
    stub = typer.Typer(add_completion=False)
    stub.command(name, help=f"(from {origin.distribution})")(lambda: None)
    return typer.main.get_command(stub)


def load(name: str) -> Any:
    """Import a plugin's command. It and its sub-commands take `--debug`, as the core's do."""
    command = built(name, discovery.load(name, "command")[1])
    _take_debug(command)
    return command


def _take_debug(command: Any) -> None:
    for inner in getattr(command, "commands", {}).values():
        _take_debug(inner)
    if all("--debug" not in parameter.opts for parameter in command.params):
        command.params.append(_debug())


def _debug() -> Any:
    """The option as a command of our own has it; its callback does all the work, so no function need take it."""
    stub = typer.Typer(add_completion=False)

    @stub.command()
    def nothing(debug: Debug = False) -> None:
        """Have the option."""

    option = next(each for each in typer.main.get_command(stub).params if "--debug" in each.opts)
    option.expose_value = False
    return option


def built(name: str, value: Any) -> Any:
    """A command for the parser from a typer application or a function."""
    application = value
    if not isinstance(value, typer.Typer):
        application = typer.Typer(add_completion=False)
        application.command(name)(value)
    command = typer.main.get_command(application)
    command.name = name
    return command
