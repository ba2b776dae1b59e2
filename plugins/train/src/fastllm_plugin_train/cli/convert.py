"""`fastllm convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastllm_core import ConfigError
from fastllm_core.cli.settings import ConfigFile, Dtype, Model, TrustRemoteCode, configure, examples, pairs


@examples(
    "fastllm convert kangaroo ./kangaroo-vicuna-7b --model lmsys/vicuna-7b-v1.3 --output adapter --set exit_layer=2",
    "fastllm convert medusa ./medusa-vicuna-7b-v1.3 --model lmsys/vicuna-7b-v1.3 --output heads",
    "fastllm convert medusa ./heads --to vllm --model lmsys/vicuna-7b-v1.3 --output heads-for-vllm",
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
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="LAYOUT", help="The other way: SOURCE is a head of ours; write it for others."),
    ] = None,
    config: ConfigFile = None,
    dtype: Dtype = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Read a head in its authors' format and write it as fastllm loads it; or, with --to, the other way.

    Pickled weights are read without running code that they may hold (weights_only); safetensors are safer.
    """
    chosen = configure(config, None, model=model, device="cpu", dtype=dtype)
    from ..convert import converted, exported  # torch enters here

    if to is not None:
        if options:
            raise ConfigError("--set: says what published files do not, and --to reads a head of ours")
        count = exported(method, str(source), chosen, to, output, trust_remote_code=trust_remote_code)
        typer.echo(f"{count} tensors in the layout '{to}' are in {output}")
        return
    given = pairs("--set", options, "exit_layer=2")
    head = converted(method, source, chosen, given, trust_remote_code=trust_remote_code)
    head.save(output)
    typer.echo(f"{len(head.weights)} tensors for {head.target.model} are in {output}")
