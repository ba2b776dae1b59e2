"""`fastllm convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastllm_core.cli.settings import ConfigFile, Dtype, Model, TrustRemoteCode, configure, examples, pairs


@examples(
    "fastllm convert kangaroo ./kangaroo-vicuna-7b --model lmsys/vicuna-7b-v1.3 --output adapter --set exit_layer=2"
)
def convert(
    method: Annotated[str, typer.Argument(help="The method that the head is for.")],
    source: Annotated[Path, typer.Argument(help="The folder, or the weight file, as its authors published it.")],
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="Where the head goes.")],
    model: Model = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="What the published files do not say. Repeatable."),
    ] = None,
    config: ConfigFile = None,
    dtype: Dtype = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Read a head in its authors' format and write it as fastllm loads it.

    Pickled weights are read without running code that they may hold (weights_only); safetensors are safer.
    """
    chosen = configure(config, None, model=model, device="cpu", dtype=dtype)
    from ..convert import converted  # torch enters here

    given = pairs("--set", options, "exit_layer=2")
    head = converted(method, source, chosen, given, trust_remote_code=trust_remote_code)
    head.save(output)
    typer.echo(f"{len(head.weights)} tensors for {head.target.model} are in {output}")
