"""`fastllm bench pick`."""

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
    examples,
    overrides,
)

from .options import Data, Methods, Suite


@examples(
    "fastllm bench pick --suite prompts.jsonl",
    'fastllm bench pick --model demo-100m --methods "speculative,speculative:draft.length=3" --seconds 120',
    "fastllm bench pick --suite prompts.jsonl --write -",
)
def pick(
    model: Model = None,
    methods: Methods = "all",
    suite: Suite = "demo",
    data: Data = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Take this many prompts, from all categories in turn.")] = 8,
    seconds: Annotated[float, typer.Option(min=1, help="Time to try methods in, loading not counted.")] = 60.0,
    batch: Annotated[int, typer.Option(min=1, help="Prompts side by side.")] = 1,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(min=2, help="The most tokens of each text.")] = 128,
    write: Annotated[Path, typer.Option("--write", metavar="FILE", help="The file to write; - prints it.")] = Path(
        "fastllm.toml"
    ),
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file if it exists.")] = False,
    config: ConfigFile = None,
    settings: Settings = None,
    device: DeviceName = None,
    dtype: Dtype = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Try methods on your prompts and write the configuration of the winner, which may be plain decoding.

    A method wins if its texts are plain decoding's and it is surely faster. All prompts are tried at least once.
    """
    if write.exists() and not force:
        raise ConfigError(f"{write} exists; say --force to overwrite it, or name another file with --write")
    from ..pick import pick as choose  # torch enters here
    from ..pick import written
    from ..session import Wishes

    chosen = choose(
        Wishes(
            methods=methods,
            suite=suite,
            data=data,
            limit=limit,
            batches=[batch],
            temperatures=[temperature],
            max_new_tokens=max_new_tokens,
            config=config,
            overrides=overrides(settings, model=model, device=device, dtype=dtype),
            trust_remote_code=trust_remote_code,
        ),
        seconds,
    )
    text = written(chosen)
    if str(write) == "-":
        typer.echo(text, nl=False)
        return
    typer.echo("\n".join(chosen.evidence))
    try:
        write.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{write}: cannot be written: {error.strerror or error}") from error
    typer.echo(f"wrote {write}")
