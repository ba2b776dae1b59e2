"""`fastllm tune early-exit`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from fastllm_core import ConfigError
from fastllm_core.cli.settings import (
    ConfigFile,
    DeviceName,
    Model,
    Settings,
    TrustRemoteCode,
    configure,
    examples,
)


@examples(
    "fastllm tune early-exit --model demo --data stories.txt --steps 2000 --output exits",
    "fastllm tune layers --model exits --space exit",
)
def early_exit(
    output: Annotated[Path, typer.Option(metavar="DIR", help="Where the trained model goes; a new or empty folder.")],
    data: Annotated[list[Path], typer.Option(metavar="FILE", help="Texts: .txt, .jsonl, or these as .xz. Repeatable.")],
    model: Model = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps.")] = 2000,
    batch: Annotated[int, typer.Option(min=1, help="Rows of a step.")] = 16,
    length: Annotated[int, typer.Option(min=2, help="Tokens of a row.")] = 256,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="The highest.")] = 3e-4,
    dropout: Annotated[float, typer.Option(min=0.0, max=1.0, help="Chance that the last layer is dropped.")] = 0.1,
    exit_scale: Annotated[float, typer.Option(min=0.0, help="How much exits before the last one count.")] = 0.1,
    weighting: Annotated[
        Literal["depth", "even"],
        typer.Option(help="Exits count by depth, or all alike: then the first ones learn too."),
    ] = "depth",
    exits: Annotated[
        list[int] | None, typer.Option("--exit", min=1, help="An exit that counts; without it all do. Repeatable.")
    ] = None,
    curriculum: Annotated[
        Literal["rotational", "gradual"], typer.Option(help="Which exits count when.")
    ] = "rotational",
    rotation: Annotated[int, typer.Option(min=1, help="Rotational: one exit of so many counts in a step.")] = 8,
    scratch: Annotated[bool, typer.Option("--scratch", help="Keep the shape and draw new weights.")] = False,
    seed: Annotated[int, typer.Option(help="Of the order of rows, of dropout and of new weights.")] = 0,
    config: ConfigFile = None,
    settings: Settings = None,
    device: DeviceName = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Train a copy of a model so that its first layers can draft (LayerSkip).

    Layers are dropped at random, and every exit learns to say what comes next. The result is a stock model; its text is
    its own, not that of the model it came from.
    """
    if output.exists() and any(output.iterdir()):
        raise ConfigError(f"--output {output}: is not empty; name a new folder")
    chosen = configure(config, settings, model=model, device=device)
    plain = chosen.model_copy(update={"method": "plain", "options": {}, "use": [], "forward": "eager"})
    from fastllm_core import load  # torch enters here

    from ..training.recipe import Recipe
    from ..training.train import train

    recipe = Recipe(
        steps=steps,
        batch=batch,
        length=length,
        learning_rate=learning_rate,
        dropout=dropout,
        exit_scale=exit_scale,
        weighting=weighting,
        exits=tuple(sorted(set(exits or ()))),
        curriculum=curriculum,
        rotation=rotation,
        scratch=scratch,
        seed=seed,
    )
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("loss {task.fields[loss]}"))
    with (
        load(config=plain, trust_remote_code=trust_remote_code) as pipeline,
        Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress,
    ):
        task = progress.add_task("training", total=steps, loss="")
        record = train(
            pipeline.target,
            data,
            recipe,
            output,
            tell=lambda step, loss: progress.update(task, completed=step, loss=f"{loss:.3f}"),
        )
    typer.echo(f"{record['steps']} steps, {record['tokens']} tokens; the model is in {output}")
    typer.echo("agreement of each exit with the last, before and after:")
    for layer, (before, after) in enumerate(zip(record["agreement_before"], record["agreement_after"], strict=True)):
        typer.echo(f"  exit_layer {layer + 1}: {before:.2f} {after:.2f}")
