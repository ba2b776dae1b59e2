"""`fastllm compile`: programs for the forwards of a configuration, ahead of time."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ConfigError, ModelError
from .settings import (
    ConfigFile,
    Debug,
    DeviceName,
    Dtype,
    Method,
    Model,
    Settings,
    TrustRemoteCode,
    configure,
    examples,
)

if TYPE_CHECKING:
    from ..programs import Program


@examples(
    "fastllm compile --model demo --method speculative",
    "fastllm compile --model demo --method speculative --dtype float32 --batch",
    "fastllm compile --list",
    "fastllm compile --clear",
)
def compile_forwards(
    model: Model = None,
    method: Method = None,
    config: ConfigFile = None,
    settings: Settings = None,
    device: DeviceName = None,
    dtype: Dtype = None,
    batch: Annotated[bool, typer.Option("--batch", help="Also for several texts side by side.")] = False,
    listed: Annotated[bool, typer.Option("--list", help="Show what is compiled, and compile nothing.")] = False,
    clear: Annotated[bool, typer.Option("--clear", help="Delete all compiled programs.")] = False,
    trust_remote_code: TrustRemoteCode = False,
    debug: Debug = False,
) -> None:
    """Compile what a model and a method run, once: about a minute for each network. Needs a C++ compiler.

    Afterwards `forward = "auto"`, the default, runs it. Programs belong to these weights, this dtype, this processor
    and number of threads, and these versions.
    """
    from ..programs import ProgramFolder, size_of

    folder = ProgramFolder()
    if clear:
        count, size = folder.clear()
        typer.echo(f"deleted {count} programs, {size / 1e6:.0f} MB, from {folder.folder}")
        return
    if listed and not folder:
        typer.echo(f"nothing is compiled in {folder.folder}; try: fastllm compile --model demo --method speculative")
        return
    if listed:
        _show(list(folder))
        typer.echo(f"{size_of(folder) / 1e6:.0f} MB in {folder.folder}; weights that programs share count once")
        return
    chosen = configure(config, settings, model=model, method=method, device=device, dtype=dtype, forward="compiled")
    from ..compiled import Compiled
    from ..compiler import obstacle
    from ..gain import gain
    from ..pipeline import load
    from ..rehearsal import rehearse

    unsafe = folder.refusal()
    if unsafe:
        raise ConfigError(unsafe)
    reason = obstacle()
    if reason:
        raise ConfigError(f"nothing can be compiled here: {reason}; everything runs as before, eagerly")
    with load(config=chosen, trust_remote_code=trust_remote_code) as pipeline:
        typer.echo("compiling what is not there yet: a minute or two for each network", err=True)
        backend = pipeline.backend
        assert isinstance(backend, Compiled), "the configuration asks for it"
        rehearse(pipeline, batch)
        _show(backend.taken)
        if backend.missing or not backend.taken:
            raise ModelError(f"not compiled: {', '.join(backend.missing) or pipeline.target.name}")
        network = pipeline.engine.parts.network
        hidden = pipeline.drafter.hidden_layers if pipeline.drafter else ()
        gains = [str(gain(network, rows, hidden)) for rows in (1, pipeline.config.draft.length + 1)]
        typer.echo(f"a forward of {pipeline.target.name}: {'; '.join(gains)}")


def _show(programs: Sequence[Program]) -> None:
    from rich.console import Console
    from rich.table import Table

    from ..programs import size_of

    table = Table("compiled", "MB", "seconds to compile", "difference from eager")
    for program in programs:
        took = sum(float(program.facts.get(key, 0)) for key in ("export_seconds", "compile_seconds"))
        table.add_row(
            program.name,
            f"{size_of([program]) / 1e6:.0f}",
            f"{took:.0f}",
            f"{float(program.facts.get('difference', 0)):.0e}",
        )
    if len(programs) > 1:
        table.caption = f"{size_of(programs) / 1e6:.0f} MB on disk, since programs share weights"
    Console(width=None if sys.stdout.isatty() else 110).print(table)


command = compile_forwards
