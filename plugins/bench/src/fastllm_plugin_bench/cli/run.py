"""`fastllm bench run`."""

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
    examples,
    overrides,
)

from .options import Data, Methods, Suite, numbers


@examples(
    "fastllm bench run",
    'fastllm bench run --model demo-100m --methods "speculative,speculative:draft.length=3" --repeats 5',
    "fastllm bench run --suite spec-bench --limit 60 --batch 1,4 --temperature 0,1",
    "fastllm bench run --suite prompts.jsonl --against transformers --output results",
)
def run(
    model: Model = None,
    methods: Methods = "all",
    suite: Suite = "demo",
    data: Data = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Take this many questions, from all categories in turn.")
    ] = None,
    batch: Annotated[str, typer.Option(help="Prompts side by side, such as 1,4,16.")] = "1",
    temperature: Annotated[str, typer.Option(help="0 is greedy; such as 0,1.")] = "0",
    max_new_tokens: Annotated[int, typer.Option(min=2, help="The most tokens of each text.")] = 128,
    repeats: Annotated[int, typer.Option(min=1, help="How often everything is measured.")] = 3,
    against: Annotated[
        str | None,
        typer.Option(help="Peers in the same run: transformers, llama.cpp; or one arm: transformers assisted."),
    ] = None,
    assistant: Annotated[
        str | None,
        typer.Option(help="The peers' draft model.", show_default="what the model recommends to 'speculative'"),
    ] = None,
    cross_assistant: Annotated[
        str | None, typer.Option(help="A draft model with another tokenizer, for transformers.")
    ] = None,
    early_exit: Annotated[
        int | None, typer.Option(min=1, help="Layer at which transformers' early-exit assistance leaves.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the first prompt; the same for every method.")] = 0,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Texts of one length, past their ends.")] = False,
    chat: Annotated[
        bool | None, typer.Option("--chat/--no-chat", help="Prompts are messages. Default: if there is a template.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="DIR", help="Where the results go.", show_default="bench/MODEL-SUITE-HASH"),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Throw away what an earlier run left there.")] = False,
    config: ConfigFile = None,
    settings: Settings = None,
    device: DeviceName = None,
    dtype: Dtype = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Measure methods on the same prompts, in turn, with equality next to speed.

    An interrupted run goes on where it stopped when the same command is given again.
    """
    from ..session import Wishes, session  # torch enters here

    wishes = Wishes(
        methods=methods,
        suite=suite,
        data=data,
        limit=limit,
        batches=[int(each) for each in numbers("batch", batch, int, 1)],
        temperatures=numbers("temperature", temperature, float, 0),
        max_new_tokens=max_new_tokens,
        repeats=repeats,
        against=[part.strip() for part in (against or "").split(",") if part.strip()],
        assistant=assistant,
        cross_assistant=cross_assistant,
        early_exit=early_exit,
        seed=seed,
        ignore_eos=ignore_eos,
        chat=chat,
        output=output,
        fresh=fresh,
        config=config,
        overrides=overrides(settings, model=model, device=device, dtype=dtype),
        trust_remote_code=trust_remote_code,
    )
    session(wishes)
