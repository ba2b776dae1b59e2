"""`fastllm bench forward`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from fastllm_core.cli.settings import (
    ConfigFile,
    DeviceName,
    Dtype,
    Model,
    Settings,
    TrustRemoteCode,
    examples,
    overrides,
)

from .options import numbers

if TYPE_CHECKING:
    from ..forward import Machine, Timing


@examples(
    "fastllm bench forward",
    "fastllm bench forward --model demo-100m --dtype bfloat16 --contexts 64,256,448",
    "fastllm bench forward --rows 1,6 --set forward=compiled --json",
)
def forward(
    model: Model = None,
    rows: Annotated[str, typer.Option(help="Rows of a forward.")] = "1,2,4,8,16,32,64",
    contexts: Annotated[str, typer.Option(help="Tokens in the cache before them.")] = "64,256,448",
    repeats: Annotated[int, typer.Option(min=1, help="How often each is timed.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    config: ConfigFile = None,
    settings: Settings = None,
    device: DeviceName = None,
    dtype: Dtype = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Time forwards of a few rows beside the machine's copy bandwidth and matrix rate, measured in the same run.

    Speculation pays where several rows cost little more than one.
    """
    counts = [int(each) for each in numbers("rows", rows, int, 1)]
    lengths = [int(each) for each in numbers("contexts", contexts, int, 0)]
    from fastllm_core import load  # torch enters here

    from ..choice import PLAIN, Choice, configured
    from ..forward import machine_of, measure

    named = overrides(settings, model=model, device=device, dtype=dtype)
    plain = configured(Choice(PLAIN, PLAIN), config, named, {})
    with load(config=plain, trust_remote_code=trust_remote_code) as pipeline:
        target = pipeline.target
        machine = machine_of(target.device, target.dtype)
        timings = list(measure(pipeline, counts, lengths, repeats, machine))
        title = (
            f"{pipeline.config.model} in {str(target.dtype).removeprefix('torch.')} on {pipeline.device.description}, "
            f"forwards {pipeline.backend.summary}"
        )
    if as_json:
        found = [{**asdict(timing), "ratio": timing.ratio} for timing in timings]
        typer.echo(json.dumps({"title": title, "machine": asdict(machine), "forwards": found}, indent=2))
        return
    _show(title, machine, timings)


def _show(title: str, machine: Machine, timings: list[Timing]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(title, highlight=False, soft_wrap=True)
    console.print(
        f"copying {machine.bytes_per_s / 1e9:.1f} GB/s, matrices {machine.flops / 1e9:.0f} Gflop/s", highlight=False
    )
    table = Table("context", "rows", "ms", "times one row", "floor, ms", "times the floor")
    for column in table.columns:
        column.justify = "right"
    first: dict[int, float] = {}
    for timing in timings:
        alone = first.setdefault(timing.context, timing.seconds)
        table.add_row(
            str(timing.context),
            str(timing.rows),
            f"{timing.seconds * 1e3:.2f}",
            f"{timing.seconds / alone:.2f}",
            f"{timing.floor * 1e3:.2f}",
            f"{timing.ratio:.1f}",
        )
    console.print(table)
