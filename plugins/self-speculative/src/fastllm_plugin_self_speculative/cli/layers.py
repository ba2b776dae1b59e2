"""`fastllm tune layers`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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


@examples(
    "fastllm tune layers --model demo",
    "fastllm tune layers --model demo-350m --set forward=compiled --search tpe,greedy,random --trials 150",
    "fastllm tune layers --model ./my-model --prompts mine.txt --minutes 30",
    "fastllm tune layers --model ./layerskip-model --space exit",
)
def layers(
    model: Model = None,
    objective: Annotated[
        str,
        typer.Option(
            help="predicted: speed, from acceptance and measured costs; measured: speed of real texts in every trial; "
            "acceptance: alone, within --most."
        ),
    ] = "predicted",
    search: Annotated[
        str, typer.Option(help="tpe, gp, greedy or random; several by commas share one picture and one race.")
    ] = "tpe",
    space: Annotated[
        str, typer.Option(help="sublayers: attention and MLP apart; ranges: whole layers in a row; exit: early exit.")
    ] = "sublayers",
    trials: Annotated[int, typer.Option(min=1, help="Sets that each search may try.")] = 200,
    minutes: Annotated[float | None, typer.Option(min=0.0, help="The longest that each search may take.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A prompt a line, or .jsonl; by default a few built-in ones."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Take this many prompts.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=2, help="Tokens of each text that is compared.")] = 64,
    longest: Annotated[int, typer.Option(min=1, help="The longest draft that is considered.")] = 8,
    most: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="For acceptance: what a drafted token may cost of a plain one.")
    ] = 0.5,
    costs: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Costs of an earlier search, or your own, in place of measuring them."),
    ] = None,
    finalists: Annotated[
        int, typer.Option(min=0, help="Best sets that are raced against plain decoding; 0 takes the search's word.")
    ] = 3,
    repeats: Annotated[int, typer.Option(min=1, help="How often they are raced.")] = 5,
    seed: Annotated[int, typer.Option(help="Of the searches.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="DIR", help="Where results go.", show_default="tune/MODEL-SPACE-HASH"),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Throw away what an earlier search left there.")] = False,
    config: ConfigFile = None,
    settings: Settings = None,
    device: DeviceName = None,
    dtype: Dtype = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Choose which sub-layers drafts leave out.

    An interrupted search goes on where it stopped when the same command is given again. Writes skip.json, which
    `options.self-speculative.skip` takes, and search.svg.
    """
    chosen = configure(config, settings, model=model, device=device, dtype=dtype)
    from ..tuning.session import session  # torch enters here
    from ..tuning.wishes import Wishes

    session(
        Wishes(
            config=chosen,
            objective=objective,
            searches=[name.strip() for name in search.split(",") if name.strip()],
            space=space,
            trials=trials,
            minutes=minutes,
            prompts=prompts,
            limit=limit,
            new_tokens=max_new_tokens,
            longest=longest,
            most=most,
            costs=costs,
            finalists=finalists,
            repeats=repeats,
            seed=seed,
            output=output,
            fresh=fresh,
            trust_remote_code=trust_remote_code,
        )
    )
