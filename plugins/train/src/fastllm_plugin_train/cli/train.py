"""`fastllm train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastllm_core.cli.settings import (
    ConfigFile,
    DeviceName,
    Dtype,
    Model,
    TrustRemoteCode,
    configure,
    examples,
    pairs,
)


@examples(
    "fastllm train kangaroo --model demo --data stories.txt.xz --output my-adapter",
    "fastllm train kangaroo --model ./llama --data chats.jsonl --output adapter --set exit_layer=2 --regenerate plain",
)
def train(
    method: Annotated[str, typer.Argument(help="The method whose head is trained.")],
    data: Annotated[
        list[Path], typer.Option("--data", metavar="FILE", help=".txt or .jsonl, also as .xz or .gz. Repeatable.")
    ],
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="Where the head and the run's state go.")],
    model: Model = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="An option of the method's training. Repeatable."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the optimiser.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Rows of a step.")] = None,
    micro: Annotated[int | None, typer.Option(min=1, help="Rows that are in memory at once.")] = None,
    length: Annotated[int | None, typer.Option(min=8, help="Tokens of a row.")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0.0, help="The highest learning rate.")] = None,
    schedule: Annotated[str | None, typer.Option(help="How it falls: cosine or linear.")] = None,
    warmup: Annotated[int | None, typer.Option(min=1, help="Steps in which it rises.")] = None,
    clip: Annotated[float | None, typer.Option(min=0.0, help="Largest norm of the gradient; 0 does not clip.")] = None,
    precision: Annotated[str | None, typer.Option(help="Of the head: no, bf16 or fp16.")] = None,
    evaluate_every: Annotated[int | None, typer.Option(min=1, help="Steps between evaluations.")] = None,
    patience: Annotated[
        int | None, typer.Option(min=0, help="Stop after so many evaluations without a better one; 0 does not.")
    ] = None,
    save_every: Annotated[int, typer.Option(min=1, help="Steps after which a killed run goes on at the latest.")] = 50,
    limit: Annotated[int | None, typer.Option(min=1, help="Documents that are read at most.")] = None,
    regenerate: Annotated[
        str | None,
        typer.Option(metavar="METHOD", help="Let the target write the answers itself, by this method, or plain."),
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=8, help="Tokens of a text that is generated.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of answers that are regenerated.")] = 0.0,
    draft_length: Annotated[int, typer.Option(min=1, help="Tokens of the drafts that evaluations foresee.")] = 6,
    proofs: Annotated[
        int, typer.Option(min=0, help="Held-out prompts that are generated from at the end, to compare.")
    ] = 24,
    seed: Annotated[int, typer.Option(help="Of the order of rows.")] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Throw away what an earlier run left in the folder.")] = False,
    config: ConfigFile = None,
    device: DeviceName = None,
    dtype: Dtype = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Train a head for a model.

    An interrupted run goes on where it stopped when the same command is given again, and ends with the same weights.
    Writes the head, README.md, curves.svg and curves.json.
    """
    for name, value, known in (
        ("schedule", schedule, ("cosine", "linear")),
        ("precision", precision, ("no", "bf16", "fp16")),
    ):
        if value is not None and value not in known:
            raise typer.BadParameter(f"must be one of {', '.join(known)}", param_hint=f"--{name}")
    chosen = configure(config, None, model=model, device=device, dtype=dtype)
    from ..session import Wishes, session  # torch enters here

    result = session(
        Wishes(
            method=method,
            config=chosen,
            data=data,
            output=output,
            options=pairs("--set", options, "exit_layer=2"),
            recipe={
                "steps": steps,
                "batch": batch,
                "length": length,
                "learning_rate": learning_rate,
                "schedule": schedule,
                "warmup": warmup,
                "clip": clip,
                "precision": precision,
                "evaluate_every": evaluate_every,
                "patience": patience,
                "seed": seed,
            },
            limit=limit,
            micro=micro,
            draft_length=draft_length,
            save_every=save_every,
            regenerate=regenerate,
            new_tokens=new_tokens,
            temperature=temperature,
            proofs=proofs,
            fresh=fresh,
            trust_remote_code=trust_remote_code,
        ),
        say=typer.echo,
    )
    if not result.done:
        typer.echo(f"stopped after step {result.state.step}; the same command goes on")
        raise typer.Exit(1)
    if result.proof is not None:
        told, came = result.proof.foretold, result.proof.measured
        typer.echo(f"tokens/round: {told.tokens_per_round:.3f} foretold, {came.tokens_per_round:.3f} generated")
    typer.echo(f"the head is in {output}; see its README.md")
