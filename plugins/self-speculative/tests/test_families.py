"""Families of the port, each with random skip sets and an early exit: text, and what is stored after every round."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fastllm_core
from fastllm_core import UnsupportedModel
from fastllm_core.testing.checks.cache import CacheWatch
from fastllm_core.testing.families import family

SOME = ("llama", "gemma3_text", "gpt_neo", "gpt_oss", "deepseek_v3", "opt", "phi")
PROMPTS = [[5, 9, 33, 2, 4, 8], [7] * 11, [3]]
NEW = 14


def whole_families() -> list[str]:
    """Those that docs/models.md says can be run in parts, with sub-layers skipped."""
    found = json.loads((Path(__file__).parents[3] / "docs" / "models.json").read_text(encoding="utf-8"))["families"]
    return [name for name, told in found.items() if told["columns"] and not any(told["columns"].values())]


def sets_for(layers: int, seed: int) -> list[dict[str, Any]]:
    """Two random skip sets and an early exit."""
    rng = random.Random(seed)
    every = range(layers)
    return [
        *(
            {
                "skip_attention": [layer for layer in every if rng.random() < 0.4] or [layers - 1],
                "skip_mlp": [layer for layer in every if rng.random() < 0.4],
            }
            for _ in range(2)
        ),
        {"exit_layer": max(1, layers // 2)},
    ]


def check(name: str) -> None:
    """Raise UnsupportedModel where the port is refused, AssertionError where something differs."""
    model = family(name).model()
    config: dict[str, Any] = {"draft.controller": "fixed", "draft.length": 3, "forward": "eager"}
    with fastllm_core.load(model, "plain", config=config, dtype="float32") as pipeline:
        plain = [text.token_ids for text in pipeline.generate(PROMPTS, max_new_tokens=NEW)]
        layers = pipeline.engine.parts.network.layers
    for options in sets_for(layers, len(name)):
        with fastllm_core.load(model, "self-speculative", config=config, dtype="float32", **options) as pipeline:
            watch = CacheWatch(every=1)
            watch.pipeline = pipeline  # type: ignore[assignment]
            pipeline.engine.parts = replace(pipeline.engine.parts, observers=(watch,))
            texts = pipeline.generate(PROMPTS, max_new_tokens=NEW)
        assert [text.token_ids for text in texts] == plain, f"{name}, {options}: another text"
        assert texts[0].report.drafted, f"{name}, {options}: nothing was drafted"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SOME)
def test_a_family_drafts_for_itself(name: str) -> None:
    check(name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted({*whole_families()} - {*SOME}))
def test_every_family_that_can_skip_drafts_for_itself(name: str) -> None:
    check(name)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["bloom", "gemma3n_text"])
def test_a_family_that_cannot_skip_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedModel, match="cannot skip sub-layers"):
        check(name)
