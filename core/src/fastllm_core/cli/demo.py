"""`fastllm demo`: a story by speculative decoding, and how much faster than plain decoding it comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ConfigError
from .settings import Debug, DeviceName, Dtype, examples

if TYPE_CHECKING:
    from ..generation import Generation
    from ..pipeline import Pipeline

PROMPTS = (
    "Once upon a time, there was a little girl named Lily.",
    "Tom and his dog went to the park to play.",
    "The old bear was sad because he had lost his hat.",
)


@dataclass(slots=True)
class Comparison:
    """Plain and speculative decoding of the same prompts, in turn."""

    plain_s: list[float] = field(default_factory=list)
    """Seconds of each run."""
    speculative_s: list[float] = field(default_factory=list)
    tokens: int = 0
    rounds: int = 0
    differing: int = 0
    near_ties: int = 0
    """Of these, texts that part where rounding decides."""
    compared: int = 0

    def line(self, method: str, lossy: Sequence[str] = ()) -> str:
        """`speculative: 3.7 tokens/round, 2.2x plain (2.1..2.4, 5 runs), output identical`."""
        ratios = [plain / fast for plain, fast in zip(self.plain_s, self.speculative_s, strict=True)]
        runs = f"{len(ratios)} run{'s' if len(ratios) > 1 else ''}"
        output = f"differs in {self.differing} of {self.compared}" if self.differing else "identical"
        output += f"; lossy: {', '.join(lossy)}" if lossy else ""
        if self.near_ties:
            output += f" ({self.near_ties} where rounding decides; exact = true rules that out)"
        return (
            f"{method}: {self.tokens / max(self.rounds, 1):.1f} tokens/round, {median(ratios):.1f}x plain "
            f"({min(ratios):.1f}..{max(ratios):.1f}, {runs}), output {output}"
        )


@examples(
    "fastllm demo",
    "fastllm demo --model demo-350m --runs 3",
)
def demo(
    model: Annotated[str, typer.Option(help="A registered model that recommends a method.")] = "demo-100m",
    runs: Annotated[int, typer.Option(min=1, help="How often everything is timed.")] = 5,
    max_new_tokens: Annotated[int, typer.Option(min=2, help="Length of each story, in tokens.")] = 100,
    device: DeviceName = None,
    dtype: Dtype = None,
    debug: Debug = False,
) -> None:
    """Tell a story by speculative decoding and compare its speed with plain decoding."""
    from ..config import load_config
    from ..models import registered_model

    registered = registered_model(model)
    if registered is not None:
        typer.echo(f"{model}: {registered.description}")
    named = {"model": model, "device": device, "dtype": dtype}
    config = load_config(overrides={key: value for key, value in named.items() if value is not None})
    from ..pipeline import load  # torch enters here

    with load(config=config) as pipeline:
        if pipeline.method == "plain":
            raise ConfigError(
                f"method: there is nothing to compare for '{model}'; try: pip install fastllm-plugin-speculative"
            )
        _tell(pipeline, max_new_tokens)
        typer.echo(compare(pipeline, runs, max_new_tokens).line(pipeline.method, pipeline.lossy))


def compare(pipeline: Pipeline, runs: int, max_new_tokens: int) -> Comparison:
    """Time both ways in turn, so that whatever slows the machine down slows both; each run has the next prompt."""
    from rich.console import Console
    from rich.progress import Progress

    comparison = Comparison()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("comparing with plain decoding", total=2 * (runs + 1))
        generate = _generator(pipeline, max_new_tokens, lambda: progress.advance(task))
        _run(Comparison(), generate, PROMPTS[0])  # the first run is slower than the others: caches are cold
        for run in range(runs):
            _run(comparison, generate, PROMPTS[run % len(PROMPTS)])
    return comparison


Generate = Callable[[str, bool], "Generation"]


def _generator(pipeline: Pipeline, max_new_tokens: int, done: Callable[[], None]) -> Generate:
    def generate(prompt: str, speculate: bool) -> Generation:
        result: Generation = pipeline.generate(
            prompt, max_new_tokens=max_new_tokens, temperature=0.0, speculate=speculate
        )
        done()
        return result

    return generate


def _run(comparison: Comparison, generate: Generate, prompt: str) -> None:
    """One prompt, both ways."""
    start = time.perf_counter()
    plain = generate(prompt, False)
    middle = time.perf_counter()
    fast = generate(prompt, True)
    comparison.plain_s.append(middle - start)
    comparison.speculative_s.append(time.perf_counter() - middle)
    comparison.tokens += fast.report.tokens
    comparison.rounds += fast.report.rounds
    comparison.compared += 1
    difference = plain.difference(fast)
    if difference is not None:
        comparison.differing += 1
        comparison.near_ties += difference.near_tie


def _tell(pipeline: Pipeline, max_new_tokens: int) -> None:
    """A story, as it comes."""
    typer.echo(f"\n{PROMPTS[0]}", nl=False)
    for piece in pipeline.stream(PROMPTS[0], max_new_tokens=max_new_tokens, temperature=0.0):
        typer.echo(piece.text, nl=False)
    typer.echo("\n")


command = demo
