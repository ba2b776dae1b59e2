"""Random heads on every family of the port: the same text, and caches as a fresh reading leaves them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fastllm_core
from fastllm_core import UnsupportedModel
from fastllm_core.testing.checks.cache import CacheWatch
from fastllm_core.testing.families import family
from fastllm_plugin_medusa.heads import random_head

SOME = ("llama", "gemma3_text", "gpt_neo", "opt")
STACKED = ("gemma3n_text",)
"""Whose last hidden state is several at once, which no head reads."""
PROMPTS = [[5, 9, 33, 2, 4, 8], [7] * 11, [3]]
NEW = 14


def running() -> list[str]:
    """Those that docs/models.md says draft trees."""
    found = json.loads((Path(__file__).parents[3] / "docs" / "models.json").read_text(encoding="utf-8"))["families"]
    return [name for name, told in found.items() if told["columns"] and not told["columns"]["tree"]]


def check(name: str, folder: Path) -> None:
    """Raise AssertionError where something differs."""
    model = family(name).model()
    config: dict[str, Any] = {"draft.controller": "fixed", "draft.length": 3, "forward": "eager"}
    with fastllm_core.load(model, "plain", config=config, dtype="float32") as pipeline:
        plain = [text.token_ids for text in pipeline.generate(PROMPTS, max_new_tokens=NEW)]
    random_head(model, 3).save(folder)
    given: dict[str, Any] = {"heads": str(folder), "tree": "3x2x2"}
    with fastllm_core.load(model, "medusa", config=config, dtype="float32", **given) as pipeline:
        watch = CacheWatch(every=1)
        watch.pipeline = pipeline  # type: ignore[assignment]
        pipeline.engine.parts = replace(pipeline.engine.parts, observers=(watch,))
        texts = pipeline.generate(PROMPTS, max_new_tokens=NEW)
    assert [text.token_ids for text in texts] == plain, f"{name}: another text"
    assert texts[0].report.drafted, f"{name}: nothing was drafted"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SOME)
def test_a_family_drafts(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted({*running()} - {*SOME, *STACKED}))
def test_every_family_that_runs_drafts(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", STACKED)
def test_a_family_without_one_last_hidden_state_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="does not give the hidden states"):
        check(name, tmp_path)
