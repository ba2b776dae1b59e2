"""`fastllm generate --trace`: a text coloured by where each token came from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RequestError

if TYPE_CHECKING:
    from rich.console import Console

    from ..generation import Generation
    from ..pipeline import Pipeline
    from ..trace import TracedToken

STYLES = {"drafted": "black on green", "extra": "black on yellow", "plain": "reverse"}
SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def generate(
    pipeline: Pipeline, inputs: list[Any], asked: dict[str, Any], *, show: bool, page: Path | None
) -> list[Generation]:
    """Generate each prompt's text, show it as it comes, and write it as a page. Raises RequestError."""
    if pipeline.target.tokenizer is None:
        raise RequestError(f"--trace: '{pipeline.target.name}' has no tokenizer, so there is no text to colour")
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    results, texts = [], []
    if show:
        legend = "  ".join(f"[{style}] {origin} [/]" for origin, style in STYLES.items())
        console.print(f"{legend}  {_number(3)} round")
    for prompt in inputs:
        result, tokens = _one(pipeline, prompt, asked, console if show else None)
        results.append(result)
        texts.append((prompt if isinstance(prompt, str) else prompt[-1]["content"] + "\n", tokens))
    if page is not None:
        _write(page, texts, f"{pipeline.config.model}, {pipeline.method}")
    return results


def _one(
    pipeline: Pipeline, prompt: Any, asked: dict[str, Any], console: Console | None
) -> tuple[Generation, list[TracedToken]]:
    """One text, shown as it comes."""
    from ..trace import summary, trace

    assert pipeline.target.tokenizer is not None
    results: list[Generation] = []

    def pieces() -> Any:
        for piece in pipeline.stream(prompt, **asked):
            results.extend([piece.result] if piece.result else [])
            yield piece

    tokens: list[TracedToken] = []
    for token in trace(pieces(), pipeline.target.tokenizer, pipeline.request(prompt, **asked).prompt):
        if console is not None:
            _show(token, new=not tokens or tokens[-1].round != token.round, console=console)
        tokens.append(token)
    if console is not None:
        console.print(f"\n[dim]{summary(tokens)}[/]")
    return results[-1], tokens


def _show(token: TracedToken, *, new: bool, console: Console) -> None:
    from rich.text import Text

    mark = _number(token.round) if new else ""
    console.print(Text.assemble((mark, "dim"), (token.text, STYLES[token.origin])), end="")
    sys.stdout.flush()


def _number(value: int) -> str:
    return str(value).translate(SUPERSCRIPT)


def _write(page: Path, texts: list[tuple[str, list[TracedToken]]], title: str) -> None:
    from ..trace import to_html

    try:
        page.write_text(to_html(texts, title), encoding="utf-8")
    except OSError as error:
        raise RequestError(f"--trace-html {page}: cannot be written: {error.strerror or error}") from error
