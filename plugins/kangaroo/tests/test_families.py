"""Random adapters on every family of the port: the same text, and caches as a fresh reading leaves them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fastllm_core
from fastllm_core import ConfigError, UnsupportedModel
from fastllm_core.testing.checks.cache import CacheWatch
from fastllm_core.testing.families import family
from fastllm_plugin_kangaroo.adapter import random_head

SOME = ("llama", "gemma2", "gemma3_text", "gpt_neo", "gpt_oss", "opt", "phi")
NARROWED = ("electra", "rembert")
"""Families whose output matrix does not read hidden states, but what a further layer makes of them."""
ROUTED = ("phimoe",)
"""Whose router drops experts by a threshold: a forward of another width may round to other experts, so that only exact
mode can compare texts."""
PROMPTS = [[5, 9, 33, 2, 4, 8], [7] * 11, [3]]
NEW = 14


def splittable() -> list[str]:
    """Those that docs/models.md says can be run in parts."""
    found = json.loads((Path(__file__).parents[3] / "docs" / "models.json").read_text(encoding="utf-8"))["families"]
    return [name for name, told in found.items() if told["columns"] and not told["columns"]["split"]]


def check(name: str, folder: Path, *, exact: bool = False) -> None:
    """Several texts of unlike lengths, and one alone, in both modes of the adapter.

    Raise UnsupportedModel where the port is refused, AssertionError if something differs.
    """
    model = family(name).model()
    config: dict[str, Any] = {"draft.controller": "fixed", "draft.length": 3, "forward": "eager", "exact": exact}
    try:
        pipeline = fastllm_core.load(model, "plain", config=config, dtype="float32")
    except ConfigError as error:
        pytest.skip(f"plain decoding is refused as well: {error}")  # kernels of this machine, under `exact`
    with pipeline:
        plain = [text.token_ids for text in pipeline.generate(PROMPTS, max_new_tokens=NEW)]
        plain_alone = pipeline.generate(PROMPTS[0], max_new_tokens=NEW).token_ids  # a router may turn on rounding
        layers = pipeline.engine.parts.network.layers
    for exit_layer, mode in ((1, "layer"), (max(1, layers // 2), "attention")):
        head = folder / f"{exit_layer}-{mode}"
        random_head(model, exit_layer, mode).save(head)  # type: ignore[arg-type]
        given: dict[str, Any] = {"adapter": str(head), "threshold": 0.0}
        with fastllm_core.load(model, "kangaroo", config=config, dtype="float32", **given) as pipeline:
            watch = CacheWatch(every=1)
            watch.pipeline = pipeline  # type: ignore[assignment]
            pipeline.engine.parts = replace(pipeline.engine.parts, observers=(watch,))
            texts = pipeline.generate(PROMPTS, max_new_tokens=NEW)
            alone = pipeline.generate(PROMPTS[0], max_new_tokens=NEW)
        where = f"{name}, exit {exit_layer}, {mode}"
        assert [text.token_ids for text in texts] == plain, f"{where}: another text"
        assert alone.token_ids == plain_alone, f"{where}: another text alone"
        assert all(text.report.drafted for text in (*texts, alone)), f"{where}: nothing was drafted"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SOME)
def test_a_family_drafts_behind_its_first_layers(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted({*splittable()} - {*SOME, *NARROWED, *ROUTED}))
def test_every_family_that_can_be_split_drafts(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted({*splittable()} - {*NARROWED}))
def test_every_family_drafts_bit_for_bit(name: str, tmp_path: Path) -> None:
    check(name, tmp_path, exact=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NARROWED)
def test_a_family_whose_output_matrix_reads_something_else_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="its output matrix reads"):
        check(name, tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_a_family_that_cannot_be_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"cannot be run in parts|does not give the hidden states between"):
        check("gemma3n_text", tmp_path)
