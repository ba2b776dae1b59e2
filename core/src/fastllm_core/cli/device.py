"""`fastllm device`: what the models may run on here."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from .settings import examples


@examples(
    "fastllm device",
    "fastllm device --json",
)
def device(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List devices and number formats, and what "auto" picks."""
    import torch

    from ..device import available_devices

    devices = available_devices()
    build = {"torch": torch.__version__, "cuda": torch.version.cuda, "rocm": torch.version.hip}
    threads = torch.get_num_threads()
    if as_json:
        typer.echo(json.dumps({"devices": [asdict(each) for each in devices], **build, "threads": threads}, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("device", "what", "memory", "native number formats", "auto picks")
    for each in devices:
        memory = "?" if each.memory_bytes is None else f"{each.memory_bytes / 2**30:.0f} GiB"
        picks = f"{'device, ' if each.chosen else ''}{each.auto_dtype}"
        table.add_row(each.name, each.description, memory, ", ".join(each.dtypes), picks)
    console = Console()
    console.print(table)
    built = (
        f"CUDA {build['cuda']}" if build["cuda"] else f"ROCm {build['rocm']}" if build["rocm"] else "processors only"
    )
    console.print(f"torch {build['torch']}, built for {built}; {threads} processor threads", highlight=False)


command = device
