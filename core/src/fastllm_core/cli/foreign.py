"""Commands of installed plugins: known from metadata, imported when they run."""

from __future__ import annotations

from functools import cache
from typing import Any

import typer

from .. import discovery


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
    """Import a plugin's command."""
    return built(name, discovery.load(name, "command")[1])


def built(name: str, value: Any) -> Any:
    """A command for the parser from a typer application or a function."""
    application = value
    if not isinstance(value, typer.Typer):
        application = typer.Typer(add_completion=False)
        application.command(name)(value)
    command = typer.main.get_command(application)
    command.name = name
    return command
