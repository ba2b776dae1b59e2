"""`fastllm plugins`: what is installed, from metadata alone, and one plugin in detail. Commands of plugins, too."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer

from .. import discovery
from ..discovery import GROUPS, SELECTABLE, InstalledPlugin
from ..errors import ConfigError, PluginNotFound
from . import checking, listing
from .settings import Debug, examples

command = typer.Typer(no_args_is_help=True, add_completion=False, help="See which plugins are installed.")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Kind = Annotated[str | None, typer.Option("--kind", help=f"Only this kind: {', '.join(GROUPS)}.")]


@command.command("list")
@examples(
    "fastllm plugins list",
    "fastllm plugins list --kind method --json",
)
def list_plugins(as_json: AsJson = False, kind: Kind = None) -> None:
    """List installed plugins. Reads metadata and imports none of them."""
    listing.write(_kinds(kind), as_json=as_json)


@command.command("show")
@examples(
    "fastllm plugins show speculative",
    "fastllm plugins show demo --kind model --json",
)
def show_plugin(name: str, as_json: AsJson = False, kind: Kind = None, debug: Debug = False) -> None:
    """Load one plugin and show its hooks and options."""
    found = [plugin for plugin in discovery.installed(*_kinds(kind)) if plugin.name == name]
    groups = list(dict.fromkeys(SELECTABLE if plugin.kind in SELECTABLE else (plugin.kind,) for plugin in found))
    if not found:
        discovery.find(name, *(_kinds(kind) or SELECTABLE))  # says what there is
        raise PluginNotFound(f"no plugin '{name}' is installed")
    described = [_described(*discovery.load(name, *kinds)) for kinds in groups]
    if as_json:
        typer.echo(json.dumps(described[0] if len(described) == 1 else described, indent=2, default=str))
        return
    for each in described:
        _print(each)


command.command("check")(checking.check_plugin)
command.command("doctor")(checking.doctor)
command.command("new")(checking.new_plugin)


def _kinds(kind: str | None) -> tuple[str, ...]:
    if kind is None:
        return ()
    if kind not in GROUPS:
        raise ConfigError(f"--kind {kind}: there are {', '.join(GROUPS)}")
    return (kind,)


def _described(plugin: InstalledPlugin, value: object) -> dict[str, Any]:
    """Metadata and whatever the kind has to tell, ready for JSON."""
    about: dict[str, Any] = asdict(plugin)
    if plugin.kind in SELECTABLE:
        about.update(_class_described(plugin, value))
    elif plugin.kind == "model":
        options = {name: dict(table) for name, table in getattr(value, "options", {}).items()}
        description, method = getattr(value, "description", ""), getattr(value, "method", None)
        about.update(description=description, method=method, default_options=options)
    return about


def _class_described(plugin: InstalledPlugin, value: object) -> dict[str, Any]:
    from ..hookspecs import PROJECT
    from ..selection import options_class, plugin_class

    kind = plugin_class(plugin, value)
    hooks = sorted(name for name in dir(kind) if hasattr(getattr(kind, name), f"{PROJECT}_impl"))
    fields = options_class(kind).model_json_schema().get("properties", {})
    options = [
        {
            "name": name,
            "type": _type_of(schema),
            "default": schema.get("default", "(must be given)"),
            "description": schema.get("description", ""),
        }
        for name, schema in fields.items()
    ]
    summary = (kind.__doc__ or "").strip().partition("\n")[0]
    return {"description": summary, "api_version": kind.api_version, "hooks": hooks, "options": options}


def _type_of(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_type_of(each) for each in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(json.dumps(value) for value in schema["enum"])
    return str(schema.get("type", "any")).replace("null", "unset")


def _print(about: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    options = about.pop("options", None)
    facts = Table(show_header=False, box=None, pad_edge=False)
    for key, value in about.items():
        if value not in (None, "", {}, []):
            facts.add_row(key.replace("_", " "), ", ".join(value) if isinstance(value, list) else str(value))
    console.print(facts, markup=False)
    if options:
        table = Table("option", "type", "default", "what it does")
        for option in options:
            default = option["default"]
            table.add_row(option["name"], option["type"], _shown(default),
                          option["description"])  # fmt: skip
        console.print(table, markup=False)


def _shown(default: object) -> str:
    return default if isinstance(default, str) else "unset" if default is None else json.dumps(default)
