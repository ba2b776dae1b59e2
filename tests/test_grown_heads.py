"""A head that was grown with its target drafts what the small one drafts for the small target."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

import fastllm_core
from fastllm_core import Head, Network, TargetIdentity, load_head, load_model
from fastllm_core.testing import tiny_model
from fastllm_plugin_demo import build
from fastllm_plugin_demo.grow import grow
from fastllm_plugin_demo.heads import grown_exit, grown_head
from fastllm_plugin_demo.models import DEMO, DEMO_100M, DEMO_350M, KANGAROO, MEDUSA, Shipped
from fastllm_plugin_demo.shape import Shape
from fastllm_plugin_medusa.heads import HeadsShape, build_heads, random_head

SHAPE = Shape(768, 17, 640, 24, 12)  # four times as wide: the norms' factor is exact in bfloat16
PROMPTS = ["Once upon a time, there was a dog", "Lily and Tom went to"]


def loaded(target: Any, head: Head, folder: Path) -> Any:
    head.save(folder)
    config = {"draft.controller": "fixed", "draft.length": 4, "forward": "eager"}
    tokenizer = AutoTokenizer.from_pretrained(DEMO.path())
    given: dict[str, Any] = {"adapter": str(folder), "threshold": 0.0}
    if head.method == "medusa":
        given = {"heads": str(folder)}
    return fastllm_core.load(target, head.method, tokenizer=tokenizer, config=config, dtype="float32", **given)


@pytest.fixture(scope="module")
def small() -> Any:
    return build.load(DEMO.path()).float()


@pytest.mark.parametrize("source", [KANGAROO, MEDUSA])
def test_a_grown_head_drafts_what_the_small_one_drafts(source: Shipped, small: Any, tmp_path: Path) -> None:
    head = load_head(str(source.path()))
    rounded = {name: tensor.bfloat16().float() for name, tensor in head.weights.items()}  # as the grown one is
    shipped = Head(head.method, head.target, head.settings, rounded)
    grown = grow(small, SHAPE)
    identity = TargetIdentity.of(Network(load_model(grown)))
    larger = grown_head(head, identity, 12)
    if source is KANGAROO:
        assert larger.settings["exit_layer"] == head.settings["exit_layer"] == 1
        assert larger.settings["heads"] == larger.settings["key_value_heads"] == 24
    reports = []
    for target, one in ((small, shipped), (grown, larger)):
        with loaded(target, one, tmp_path / str(len(reports))) as pipeline:
            texts = pipeline.generate(PROMPTS, max_new_tokens=60, ignore_eos=True)
            reports.append([(text.token_ids, text.report.accepted_at, text.report.drafted_at) for text in texts])
    assert reports[0] == reports[1]
    assert sum(reports[0][0][1]) > 20, "the shipped head is not worth its name"


def test_no_matrix_of_a_grown_head_is_mostly_zeros(small: Any) -> None:
    head = load_head(str(KANGAROO.path()))
    larger = grown_head(head, TargetIdentity(layers=17, hidden_size=768), 12)
    assert set(larger.weights) == set(head.weights)
    assert larger.settings["norm_eps"] == head.settings["norm_eps"] / 4  # the mean of squares is a quarter
    for name, tensor in larger.weights.items():
        assert set(tensor.shape) <= {768, 4 * 768}
        share = float((tensor == 0).float().mean())
        # The old units write nothing to new dimensions; everything else is as dense as in a trained head.
        writes = "o_proj" in name or "down_proj" in name
        assert share <= (0.19 if writes else 0.0), f"{name}: {share:.0%} zeros cost nothing to multiply"


def test_the_grown_head_is_for_the_grown_target_only(small: Any, tmp_path: Path) -> None:
    head = load_head(str(KANGAROO.path()))
    larger = grown_head(head, TargetIdentity.of(Network(load_model(grow(small, SHAPE)))), 12)
    with pytest.raises(fastllm_core.ModelError, match="layers: 12, not 17"):
        loaded(small, larger, tmp_path)


@pytest.mark.parametrize("output", ["own", "low-rank", "shared", "delta"])
def test_grown_medusa_heads_say_what_the_small_ones_say(output: Any) -> None:
    """On hidden states whose new dimensions are zero, as the grown target's are."""
    small, large = tiny_model(hidden_size=32), tiny_model(hidden_size=80)
    matrix = large.get_output_embeddings().weight.data  # as an embedding is grown, which the target's matrix is
    matrix[:, :32], matrix[:, 32:] = small.get_output_embeddings().weight.data, 0.0
    networks = [Network(load_model(model)) for model in (small, large)]
    rank = 4 if output in ("low-rank", "delta") else 0
    head = random_head(small, 2, 2, output, rank)
    rounded = {name: tensor.bfloat16().float() for name, tensor in head.weights.items()}
    larger = grown_head(replace(head, weights=rounded), TargetIdentity.of(networks[1]), 4)
    wide = {name: tensor.float() for name, tensor in larger.weights.items()}
    states = torch.randn(1, 3, 32)
    said = [
        build_heads(HeadsShape.read(each.settings, "heads"), network, weights, "heads")(padded)
        for each, network, weights, padded in (
            (head, networks[0], rounded, states),
            (larger, networks[1], wide, torch.nn.functional.pad(states, (0, 48))),
        )
    ]
    assert torch.allclose(*said, atol=1e-3)
    assert larger.settings["hidden_size"] == 80
    assert all(float((tensor == 0).float().mean()) < 0.01 for tensor in larger.weights.values())


def test_the_exit_is_behind_the_small_models_own_layers() -> None:
    assert [grown_exit(2, 12, DEMO_100M.shape.layers), grown_exit(2, 12, DEMO_350M.shape.layers)] == [2, 3]
    for layers in (12, 14, 28, 40):
        for exit_layer in range(1, 12):
            own = {index * layers // 12 for index in range(exit_layer)}
            assert grown_exit(exit_layer, 12, layers) == max(own) + 1


@pytest.mark.parametrize("method", ["kangaroo", "medusa"])
def test_demo_drafts_at_once(method: str) -> None:
    """Registered names find the head, without an option."""
    with fastllm_core.load("demo", method, config={"forward": "eager"}, dtype="float32") as pipeline:
        text = pipeline.generate(PROMPTS[0], max_new_tokens=60, ignore_eos=True)
    with fastllm_core.load("demo", "plain", config={"forward": "eager"}, dtype="float32") as pipeline:
        assert pipeline.generate(PROMPTS[0], max_new_tokens=60, ignore_eos=True).token_ids == text.token_ids
    assert text.report.accepted > 0
