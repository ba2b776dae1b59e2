"""A traced text: every token once, its origin and round as the engine's, in any form."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest

import fastllm_core
from fastllm_core import Pipeline
from fastllm_core.cli import traced
from fastllm_core.errors import RequestError
from fastllm_core.testing import Scripted, tiny_model, tiny_tokenizer
from fastllm_core.trace import Origin, summary, to_html, trace

NEW = 20


def pipeline_that_drafts(tokenizer: Any) -> Pipeline:
    """Drafts two tokens, the first of them right, in every other round."""
    pipeline = fastllm_core.load(tiny_model(), "plain", tokenizer=tokenizer, config={"draft.controller": "fixed"})
    text = pipeline.generate([5, 6], max_new_tokens=NEW, temperature=0.0).token_ids
    whole = [5, 6, *text]
    rounds = [0]

    def guess(row: Any, count: int) -> list[int]:
        rounds[0] += 1
        right = whole[row.length : row.length + 1]
        return [*right, 63 if whole[row.length + 1 : row.length + 2] != [63] else 62][:count] if rounds[0] % 2 else []

    object.__setattr__(pipeline.engine.parts, "drafter", Scripted(guess))
    return pipeline


def test_origins_and_rounds_are_the_engine_s() -> None:
    tokenizer = tiny_tokenizer()
    with pipeline_that_drafts(tokenizer) as pipeline:
        result: list[Any] = []

        def pieces() -> Any:
            for piece in pipeline.stream([5, 6], max_new_tokens=NEW, temperature=0.0):
                result.extend([piece.result] if piece.result else [])
                yield piece

        tokens = list(trace(pieces(), tokenizer, [5, 6]))
    report = result[0].report
    assert "".join(token.text for token in tokens) == result[0].text
    assert [token.round for token in tokens] == sorted(token.round for token in tokens)
    assert tokens[-1].round == report.rounds
    assert sum(token.origin is Origin.DRAFTED for token in tokens) == report.accepted > 3
    pattern = [(token.round % 2, token.origin) for token in tokens[:-1]]
    assert set(pattern) == {(1, Origin.DRAFTED), (1, Origin.EXTRA), (0, Origin.PLAIN)}
    assert summary(tokens).startswith(f"{NEW} tokens in {report.rounds} rounds: {report.accepted} drafted")


def test_the_page_holds_the_text_and_nothing_foreign() -> None:
    tokenizer = tiny_tokenizer()
    with pipeline_that_drafts(tokenizer) as pipeline:
        stream = pipeline.stream([5, 6], max_new_tokens=NEW, temperature=0.0)
        tokens = list(trace(stream, tokenizer, [5, 6]))
    page = to_html([("a <b>", tokens)], "title & all")
    spans = re.findall(r'<span class="(\w+)" title="token \d+, round \d+: (\w+)">(.*?)</span>', page)
    assert [unescape(text) for _, _, text in spans] == [token.text for token in tokens]
    assert all(kind == told for kind, told, _ in spans)
    assert "a &lt;b&gt;" in page
    assert "title &amp; all" in page
    assert "http" not in page


def test_the_command_s_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked: dict[str, Any] = {"max_new_tokens": 6, "temperature": 0.0}
    with pipeline_that_drafts(tiny_tokenizer()) as pipeline:
        (result,) = traced.generate(pipeline, ["ef"], asked, show=True, page=tmp_path / "t.html")
        shown = capsys.readouterr().out
        assert "6 tokens in" in shown
        assert re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹]", "", shown).splitlines()[1] == result.text
        assert (tmp_path / "t.html").is_file()
        with pytest.raises(RequestError, match="cannot be written"):
            traced.generate(pipeline, ["ef"], asked, show=False, page=tmp_path / "no" / "t.html")


def test_without_a_tokenizer_there_is_nothing_to_colour() -> None:
    with (
        fastllm_core.load(tiny_model(), "plain", config={}) as pipeline,
        pytest.raises(RequestError, match="has no tokenizer"),
    ):
        traced.generate(pipeline, [[1, 2]], {}, show=True, page=None)
