"""`fastllm plugins check`, `doctor` and `new`: for the authors of plugins, and for whoever has a broken one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import discovery
from ..discovery import SELECTABLE, InstalledPlugin
from ..errors import FastllmError
from .settings import Debug, examples, pairs

Options = Annotated[
    list[str] | None,
    typer.Option(
        "--option", metavar="KEY=VALUE", help="An option of the plugin, such as draft_model=demo. Repeatable."
    ),
]


@examples(
    "fastllm plugins check speculative",
    "fastllm plugins check mymethod --option longest=4",
)
def check_plugin(name: str, option: Options = None, debug: Debug = False) -> None:
    """Run the conformance kit on an installed plugin: is its text what plain decoding writes?"""
    given = _options(option)
    from rich.console import Console

    from ..testing.kit import run  # torch enters here

    console = Console(highlight=False)
    counts = {"passed": 0, "skipped": 0, "failed": 0}
    with console.status(f"checking {name}"):
        for result in run(name, given):
            counts[result.outcome] += 1
            colour = {"passed": "green", "failed": "red"}.get(result.outcome, "dim")
            console.print(f"[{colour}]{result.outcome:8}[/] {result.check.name:34} {result.seconds:5.1f} s")
            if not result.ok:
                console.print(f"         {result.message}", markup=False, style="red", soft_wrap=True)
    console.print(f"{name}: {counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} not for it")
    if counts["failed"]:
        raise typer.Exit(1)


@examples("fastllm plugins doctor")
def doctor(debug: Debug = False) -> None:
    """Load every installed plugin in turn and say which are broken, why, and what would mend them."""
    broken = 0
    found = discovery.installed()
    for plugin in found:
        problem = _problem(plugin)
        typer.echo(f"{'broken' if problem else 'ok':7} {plugin}")
        if problem:
            broken += 1
            typer.echo(f"        {problem}\n        {_remedy(plugin)}")
    typer.echo(f"{len(found)} plugins, {broken} broken" if found else "no plugins are installed")
    if broken:
        raise typer.Exit(1)


@examples(
    "fastllm plugins new mymethod",
    "fastllm plugins new my-method --folder ~/src/my-method",
)
def new_plugin(
    name: str,
    folder: Annotated[
        Path | None, typer.Option(help="Where to write it.", show_default="./fastllm-plugin-NAME")
    ] = None,
    debug: Debug = False,
) -> None:
    """Write a new plugin package: an n-gram drafter that works and passes the kit, to start from."""
    from ..scaffold import write

    place = folder or Path(f"fastllm-plugin-{name}")
    for path in write(name, place):
        typer.echo(f"wrote {path}")
    typer.echo(
        f"\nNext:\n  pip install -e {place}\n  fastllm plugins check {name}\n  fastllm generate ... --method {name}"
    )


def _options(given: list[str] | None) -> dict[str, object] | None:
    """Options from KEY=VALUE, read as TOML values where they are ones; None if there are none."""
    import tomli

    options: dict[str, object] = {}
    for key, value in pairs("--option", given, "longest=4").items():
        try:
            options[key] = tomli.loads(f"value = {value}")["value"]
        except tomli.TOMLDecodeError:
            options[key] = value
    return options or None


def _problem(plugin: InstalledPlugin) -> str:
    """Why a plugin cannot be used, or nothing."""
    kinds = SELECTABLE if plugin.kind in SELECTABLE else (plugin.kind,)
    try:
        _, value = discovery.load(plugin.name, *kinds)
        if plugin.kind in SELECTABLE:
            from ..selection import plugin_class

            plugin_class(plugin, value)
    except FastllmError as error:
        return str(error)
    return ""


def _remedy(plugin: InstalledPlugin) -> str:
    if plugin.origin in ("editable", "file"):
        return f"it was installed from a folder: mend it there, or: pip uninstall {plugin.distribution}"
    return f"try: pip install --upgrade {plugin.distribution}; or: pip uninstall {plugin.distribution}"
