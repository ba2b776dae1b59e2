"""The page: whole in itself, well-formed pictures, nothing foreign in it that was not escaped."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from fastllm_plugin_bench import markdown, page, svg
from fastllm_plugin_bench.session import Wishes, session


@pytest.fixture
def report(model: str, methods: list[str], tmp_path: Path) -> dict[str, Any]:
    overrides = {"model": model, "device": "cpu", "dtype": "float32", "draft.controller": "fixed"}
    wishes = Wishes(
        methods="echo,crashing", limit=3, repeats=1, max_new_tokens=12, output=tmp_path, overrides=overrides
    )
    return session(wishes)


def test_the_page_needs_nothing_else(report: dict[str, Any]) -> None:
    report["cases"][0]["arms"][1]["label"] = 'echo<script>"&'
    report["cases"][0]["arms"][1]["limit"] = "<b>"
    text = page.render(report)
    assert not re.search(r"https?:|<script|@import|url\(|<b>\W*<br>", text)
    pictures = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(pictures) == 4
    for picture in pictures:
        ElementTree.fromstring(picture)
    assert "out of ideas" in text


def test_a_case_of_plain_decoding_alone_has_a_page(report: dict[str, Any]) -> None:
    del report["cases"][0]["arms"][1:]
    assert "<svg" not in page.render(report)
    assert "| `plain` |" in markdown.render(report)


def test_a_cell_of_markdown_stays_a_cell(report: dict[str, Any]) -> None:
    report["cases"][0]["arms"][1]["verdict"] = "a | b\nc"
    assert "a \\| b c |" in markdown.render(report)


@pytest.mark.parametrize(("top", "marks"), [(1.0, [0, 0.2]), (2.3, [0, 0.5]), (40, [0, 10]), (0.0, [0])])
def test_marks_are_round_and_reach_the_top(top: float, marks: list[float]) -> None:
    found = svg.ticks(top)
    assert found[: len(marks)] == pytest.approx(marks)
    assert found[-1] >= top
    assert len(found) <= 7


def test_names_lose_the_sections_of_their_keys() -> None:
    assert svg.short("speculative:draft.length=3:options.a.b=c", 40) == "speculative:length=3:b=c"
    assert svg.short("x" * 9, 5) == "xxxx…"
