"""Commands of installed plugins: known from metadata, imported when they run.

An entry point `tune.tree` is `fastllm tune tree`: several packages may add to a group in this way.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import typer

from .. import discovery
from .settings import Debug


@cache
def names() -> tuple[str, ...]:
    """Their names, a group's once."""
    return tuple(dict.fromkeys(plugin.name.partition(".")[0] for plugin in discovery.installed("command")))


def _offers(name: str) -> list[discovery.InstalledPlugin]:
    """What stands behind a name: a command, or the members of a group."""
    return [plugin for plugin in discovery.installed("command") if plugin.name.partition(".")[0] == name]


def placeholder(name: str) -> Any:
    """What stands for a plugin's command in the help, or None if there is no such command."""
    if name not in names():
        return None
    stub = typer.Typer(add_completion=False)
    stub.command(name, help=_origin(name))(lambda: None)
    return typer.main.get_command(stub)


def load(name: str) -> Any:
    """Import a plugin's command, or all of a group. They and their sub-commands take `--debug`, as the core's do."""
    members = [plugin.name for plugin in _offers(name) if plugin.name != name]
    command = built(name, _group(name, members) if members else discovery.load(name, "command")[1])
    _take_debug(command)
    return command


def _group(name: str, members: list[str]) -> typer.Typer:
    """An application with a sub-command for each member. Raises PluginConflict if two packages offer the same."""
    group = typer.Typer(no_args_is_help=True, add_completion=False, help=_origin(name))
    group.callback()(lambda: None)  # a group, even of one
    for member in dict.fromkeys(members):
        value: Any = discovery.load(member, "command")[1]
        inner = member.partition(".")[2]
        if isinstance(value, typer.Typer):
            group.add_typer(value, name=inner)
        else:
            group.command(inner)(value)
    return group


def _origin(name: str) -> str:
    return f"(from {', '.join(sorted({plugin.distribution for plugin in _offers(name)}))})"


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
