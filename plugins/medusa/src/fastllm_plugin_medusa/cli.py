"""`fastllm tune tree`. Nothing here imports torch: what needs it is imported when the command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastllm_core import ConfigError
from fastllm_core.cli.settings import (
    ConfigFile,
    DeviceName,
    Dtype,
    Model,
    Settings,
    TrustRemoteCode,
    configure,
    examples,
)

SIZES = "1,2,3,4,6,8,12,16,24,32,48,64"


@examples(
    "fastllm tune tree --model demo",
    "fastllm tune tree --model demo-350m --rows 4 --set forward=compiled",
    "fastllm tune tree --model ./my-model --heads ./my-heads --prompts mine.txt --output tune/mine",
)
def tree(
    model: Model = None,
    heads: Annotated[
        str | None, typer.Option(help="The heads; by default what the configuration or the registered model names.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A prompt a line, or .jsonl; by default a few built-in ones."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Take this many prompts.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=8, help="Tokens of each text.")] = 64,
    sizes: Annotated[str, typer.Option(help="Numbers of nodes to try, by commas.")] = SIZES,
    rows: Annotated[int, typer.Option(min=1, help="Prompts that are decoded side by side while rounds are timed.")] = 1,
    repeats: Annotated[int, typer.Option(min=1, help="How often every size is timed.")] = 5,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="DIR", help="Where results go.", show_default="tune/MODEL-tree"),
    ] = None,
    config: ConfigFile = None,
    settings: Settings = None,
    device: DeviceName = None,
    dtype: Dtype = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Choose the tree of tokens that Medusa's heads draft.

    The model continues the prompts; at which rank its heads have what it says gives the best tree of every size
    (arXiv:2401.10774, section 2.3.3). Rounds of each size are timed on this device, and the fastest is written to
    tree.json, which `options.medusa.tree` takes, with sweep.svg beside it.
    """
    try:
        counts = [int(size) for size in sizes.split(",")]
    except ValueError as error:
        raise ConfigError(f"--sizes {sizes}: numbers by commas were expected, such as {SIZES}") from error
    if min(counts) < 1:
        raise ConfigError(f"--sizes {sizes}: a tree has 1 node or more")
    named = {"options.medusa.heads": heads} if heads else {}
    chosen = configure(config, settings, model=model, device=device, dtype=dtype, **named)
    from .tuning.session import Wishes, session  # torch enters here

    session(
        Wishes(
            config=chosen,
            sizes=counts,
            prompts=prompts,
            limit=limit,
            new_tokens=max_new_tokens,
            rows=rows,
            repeats=repeats,
            output=output,
            trust_remote_code=trust_remote_code,
        )
    )
