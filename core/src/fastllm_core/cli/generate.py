"""`fastllm generate`: text from prompts."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import RequestError
from . import traced
from .settings import (
    ConfigFile,
    Debug,
    DeviceName,
    Dtype,
    Method,
    Model,
    Settings,
    TrustRemoteCode,
    configure,
    examples,
    pairs,
)

if TYPE_CHECKING:
    from ..generation import Generation
    from ..pipeline import Pipeline


@examples(
    'fastllm generate "Once upon a time"',
    'fastllm generate "Once upon a time" --temperature 0.8 --seed 7 --stats',
    'fastllm generate --model Qwen/Qwen3-0.6B --chat "Why is the sky blue?"',
    "fastllm generate --file story.txt --max-new-tokens 200 --json",
    'echo "The little dog" | fastllm generate - --set draft.length=3',
    'fastllm generate "Once upon a time" --temperature 0.8 --n 3 --json --logprobs 2',
    'fastllm generate "Once upon a time" --trace --trace-html trace.html',
)
def generate(
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT", help="Prompts; - reads stdin.")] = None,
    file: Annotated[
        list[Path] | None, typer.Option("--file", metavar="FILE", help="Read a prompt from a file. Repeatable.")
    ] = None,
    model: Model = None,
    method: Method = None,
    config: ConfigFile = None,
    settings: Settings = None,
    device: DeviceName = None,
    dtype: Dtype = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="The most tokens to generate for a prompt.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Keep the k most likely tokens; 0 keeps all.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Keep the fewest tokens whose probability reaches p.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Drop tokens below this share of the most likely one.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same text.")] = None,
    n: Annotated[int | None, typer.Option("--n", min=1, help="Samples of each prompt, which is read once.")] = None,
    logprobs: Annotated[
        int | None,
        typer.Option(min=0, help="With --json: how likely each token was, and as many alternatives as this."),
    ] = None,
    prompt_logprobs: Annotated[int | None, typer.Option(min=0, help="The same of the prompt's tokens.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End the text before this string. Repeatable.")] = None,
    ignore_eos: Annotated[bool | None, typer.Option("--ignore-eos", help="Go on after an end-of-text token.")] = None,
    min_new_tokens: Annotated[int | None, typer.Option(help="No end-of-text token before so many tokens.")] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Above 1: what is there already becomes less likely.")
    ] = None,
    presence_penalty: Annotated[float | None, typer.Option(help="Off the logit of what was generated.")] = None,
    frequency_penalty: Annotated[float | None, typer.Option(help="The same, for every time.")] = None,
    no_repeat_ngram_size: Annotated[
        int | None, typer.Option(help="No sequence of so many tokens occurs twice; 0 allows all.")
    ] = None,
    bad_word: Annotated[list[str] | None, typer.Option(help="Never write this word. Repeatable.")] = None,
    logit_bias: Annotated[
        list[str] | None, typer.Option(metavar="ID=BIAS", help="Add to the logit of a token. Repeatable.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Prompts are messages to a chat model.")] = False,
    system: Annotated[str | None, typer.Option(help="System message; implies --chat.")] = None,
    stream: Annotated[
        bool | None, typer.Option("--stream/--no-stream", help="Print text as it comes. Default: on a terminal.")
    ] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Say on stderr where the time went.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, or a list for several prompts.")] = False,
    trace: Annotated[bool, typer.Option("--trace", help="Colour each token by where it came from.")] = False,
    trace_html: Annotated[
        Path | None, typer.Option("--trace-html", metavar="FILE", help="Write the coloured text as a page.")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    debug: Debug = False,
) -> None:
    """Continue prompts, faster where the method allows it and with the same text.

    What is not given here comes from the configuration, then from the model's generation_config.
    """
    texts = _texts(prompts or [], file or [])
    if stream and as_json:
        raise typer.BadParameter("--stream prints text and --json an object: choose one")
    if trace and as_json:
        raise typer.BadParameter("--trace prints text and --json an object: choose one, or take --trace-html")
    if (logprobs is not None or prompt_logprobs is not None) and not as_json:
        raise typer.BadParameter("--logprobs and --prompt-logprobs are shown in an object: add --json")
    if n is not None and (stream or trace or trace_html is not None):
        raise typer.BadParameter("--n gives several texts of a prompt, and --stream and --trace show one: choose one")
    chosen = configure(config, settings, model=model, method=method, device=device, dtype=dtype)
    asked: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "seed": seed,
        "stop": tuple(stop or ()),
        "ignore_eos": ignore_eos,
        "logprobs": logprobs,
        "prompt_logprobs": prompt_logprobs,
        "min_new_tokens": min_new_tokens,
        "repetition_penalty": repetition_penalty,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "no_repeat_ngram_size": no_repeat_ngram_size,
        "bad_words": bad_word or None,
        "logit_bias": pairs("--logit-bias", logit_bias, "17=-2.5") or None,
    }
    inputs = [_messages(text, system) if chat or system is not None else text for text in texts]
    from ..pipeline import load  # torch enters here

    with load(config=chosen, trust_remote_code=trust_remote_code) as pipeline:
        _warn(pipeline)
        if trace or trace_html is not None:
            results = traced.generate(pipeline, inputs, asked, show=trace, page=trace_html)
            if not trace:
                _print(results, as_json)
        elif stream or (stream is None and not as_json and n is None and len(inputs) == 1 and sys.stdout.isatty()):
            results = [_streamed(pipeline, each, asked) for each in inputs]
        else:
            results = [sample for samples in pipeline.generate(inputs, **asked, n=n or 1) for sample in samples]
            _print(results, as_json)
    if stats:
        for result in results:
            typer.echo(f"{pipeline.method}: {result.report.summary()}", err=True)
    if stats or sys.stderr.isatty():
        typer.echo(_forwards(pipeline), err=True)


def _texts(prompts: Sequence[str], files: Sequence[Path]) -> list[str]:
    """Every prompt, from arguments, stdin and files. A newline at the end of a file or of stdin is not part of it."""
    texts = [sys.stdin.read().removesuffix("\n") if prompt == "-" else prompt for prompt in prompts]
    for path in files:
        try:
            texts.append(path.read_text(encoding="utf-8").removesuffix("\n"))
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"--file {path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not texts:
        raise RequestError('no prompt: give one, as in fastllm generate "Once upon a time", or - for stdin, or --file')
    return texts


def _messages(text: str, system: str | None) -> list[dict[str, str]]:
    first = [] if system is None else [{"role": "system", "content": system}]
    return [*first, {"role": "user", "content": text}]


def _warn(pipeline: Pipeline) -> None:
    ignored = pipeline.target.generation.unapplied
    if ignored:
        listed = ", ".join(ignored)
        typer.echo(f"warning: the model's generation_config sets {listed}, which is not applied yet", err=True)


def _forwards(pipeline: Pipeline) -> str:
    """How forwards ran, and what would make them faster."""
    line = f"forwards: {pipeline.backend.summary}"
    if pipeline.config.forward != "auto" or pipeline.device.kind != "cpu" or pipeline.backend.summary == "compiled":
        return line
    target = f"--model {pipeline.target.name} --method {pipeline.method}"
    return f"{line}; 'fastllm compile {target}' and the same settings makes them faster, in a minute or two each"


def _streamed(pipeline: Pipeline, prompt: Any, asked: dict[str, Any]) -> Generation:
    result = None
    for piece in pipeline.stream(prompt, **asked):
        typer.echo(piece.text, nl=False)
        sys.stdout.flush()
        result = piece.result or result
    typer.echo()
    assert result is not None
    return result


def _print(results: Sequence[Generation], as_json: bool) -> None:
    if as_json:
        objects = [result.to_dict() for result in results]
        typer.echo(json.dumps(objects[0] if len(objects) == 1 else objects, ensure_ascii=False, indent=2))
        return
    typer.echo("\n\n".join(result.text for result in results))


command = generate
