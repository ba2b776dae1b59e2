"""`fastllm config`: a file to start from, what is in force, and the schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError
from .settings import ConfigFile, Settings, configure, examples

command = typer.Typer(no_args_is_help=True, add_completion=False, help="Make, see and check the configuration.")


@command.command("init")
@examples(
    "fastllm config init",
    "fastllm config init - | less",
)
def init(
    file: Annotated[Path, typer.Argument(help="The file to write; - prints it.")] = Path("fastllm.toml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file if it exists.")] = False,
) -> None:
    """Write a commented configuration file with every default."""
    from ..config_text import starter

    if str(file) == "-":
        typer.echo(starter(), nl=False)
        return
    if file.exists() and not force:
        raise ConfigError(f"{file} exists; say --force to overwrite it, or name another file")
    try:
        file.write_text(starter(), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written: {error.strerror or error}") from error
    typer.echo(f"wrote {file}", err=True)


@command.command("show")
@examples(
    "fastllm config show",
    "FASTLLM_DRAFT__LENGTH=3 fastllm config show --set device=cpu",
)
def show(
    config: ConfigFile = None,
    settings: Settings = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the configuration in force: file, environment and --set together."""
    from ..config_text import to_toml

    chosen = configure(config, settings)
    typer.echo(json.dumps(chosen.model_dump(), indent=2) if as_json else to_toml(chosen), nl=as_json)


@command.command("schema")
def schema() -> None:
    """Print the JSON schema of the configuration file, for editors."""
    from ..config import config_schema

    typer.echo(json.dumps(config_schema(), indent=2))
