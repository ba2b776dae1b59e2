"""The heads: what they compute, what they start as, what a checkpoint must hold."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch.nn.functional import silu

from fastllm_core import ModelError, Network, UnsupportedModel, load_model
from fastllm_core.testing import tiny_model
from fastllm_plugin_medusa.heads import TOKEN_MAP, HeadsShape, build_heads, new_weights, random_head, trained
from fastllm_plugin_medusa.model import as_model

KINDS = [("own", 0), ("shared", 0), ("low-rank", 8), ("delta", 4)]
each_kind = pytest.mark.parametrize(("output", "rank"), KINDS)


@cache
def model() -> Any:
    return tiny_model()


@cache
def network() -> Network:
    return Network(load_model(model()))


def hidden() -> torch.Tensor:
    return torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))


@each_kind
@pytest.mark.parametrize("vocab_size", [None, 20])
def test_heads_compute_what_the_paper_says(output: Any, rank: int, vocab_size: int | None) -> None:
    head = random_head(model(), 3, 2, output, rank, vocab_size)
    shape = HeadsShape.read(head.settings, "heads")
    weights = head.weights
    said = build_heads(shape, network(), weights, "heads")(hidden())
    assert said.shape == (3, 2, 3, vocab_size or 64)
    target = model().get_output_embeddings().weight
    if vocab_size:
        target = target[weights[TOKEN_MAP]]
    for k in range(3):
        x = hidden()
        for j in range(2):
            x = x + silu(x @ weights[f"blocks.{k}.layers.{j}.weight"].T + weights[f"blocks.{k}.layers.{j}.bias"])
        matrix = torch.zeros_like(target)
        if output in ("shared", "delta"):
            matrix = matrix + target
        if rank:
            matrix = matrix + weights[f"lm_heads.{k}.up.weight"] @ weights[f"lm_heads.{k}.down.weight"]
        if output == "own":
            matrix = weights[f"lm_heads.{k}.weight"]
        assert torch.allclose(said[k], x @ matrix.T, atol=1e-4)


@pytest.mark.parametrize(("output", "rank"), [*KINDS, ("low-rank", 32)])
@pytest.mark.parametrize("tokens", [None, torch.tensor([5, 60, 2, 33])])
def test_new_heads_say_what_the_target_says(output: Any, rank: int, tokens: torch.Tensor | None) -> None:
    shape = HeadsShape.of(network(), 2, 1, output, rank, None if tokens is None else len(tokens))
    heads = build_heads(shape, network(), new_weights(shape, network(), tokens), "heads")
    matrix = model().get_output_embeddings().weight.detach()
    wanted = hidden() @ (matrix if tokens is None else matrix[tokens]).T
    if output == "low-rank" and rank < 32 and tokens is None:  # the nearest of its rank, whose error is known
        values = torch.linalg.svdvals(matrix)
        found = heads.lm_heads[0].up.weight @ heads.lm_heads[0].down.weight  # type: ignore[union-attr,operator]
        assert torch.linalg.norm((found - matrix).detach()) == pytest.approx(
            float(values[rank:].square().sum().sqrt()), rel=1e-4
        )
        return
    assert torch.allclose(heads(hidden()), wanted.expand(2, -1, -1, -1), atol=1e-4)


@each_kind
def test_what_is_trained_is_what_a_checkpoint_holds(output: Any, rank: int) -> None:
    shape = HeadsShape.of(network(), 2, 1, output, rank)
    heads = build_heads(shape, network(), new_weights(shape, network()), "heads")
    assert {name: tuple(part.shape) for name, part in trained(heads)} == shape.tensors(network())
    assert all(part.requires_grad for _, part in trained(heads))
    heads(hidden()).square().sum().backward()
    assert any(bool(part.grad is not None and part.grad.any()) for _, part in trained(heads))
    assert heads.shared is None or heads.shared.grad is None


@each_kind
def test_the_port_runs_all_heads_side_by_side(output: Any, rank: int) -> None:
    head = random_head(model(), 3, 1, output, rank)
    heads = build_heads(HeadsShape.read(head.settings, "heads"), network(), head.weights, "heads")
    port = Network(as_model(heads.first(2), network()))
    assert not port.reads_tokens
    assert port.kv_shapes == (None,)
    from fastllm_core import chain

    states = hidden()[:, :1]
    logits = port.forward(chain(states[..., 0], torch.zeros(2, dtype=torch.long), 2, hidden=states), ()).logits
    assert logits is not None
    assert torch.allclose(logits.view(2, 2, 64).transpose(0, 1), heads(states)[:2, :, 0], atol=1e-5)


def test_weights_that_do_not_fit_are_refused() -> None:
    head = random_head(model(), 2)
    shape = HeadsShape.read(head.settings, "heads")
    lacking = {name: tensor for name, tensor in head.weights.items() if name != "lm_heads.1.weight"}
    with pytest.raises(ModelError, match=r"lacks lm_heads\.1\.weight"):
        build_heads(shape, network(), lacking, "heads")
    with pytest.raises(ModelError, match=r"has lm_heads\.9\.weight"):
        build_heads(shape, network(), {**head.weights, "lm_heads.9.weight": torch.zeros(64, 32)}, "heads")
    with pytest.raises(ModelError, match=r"is \(2, 32\), not \(64, 32\)"):
        build_heads(shape, network(), {**head.weights, "lm_heads.0.weight": torch.zeros(2, 32)}, "heads")
    few = random_head(model(), 2, vocab_size=3)
    twice = {**few.weights, TOKEN_MAP: torch.tensor([1, 1, 2])}
    with pytest.raises(ModelError, match="does not name 3 tokens"):
        build_heads(HeadsShape.read(few.settings, "heads"), network(), twice, "heads")


def test_shapes_that_cannot_be_are_refused() -> None:
    shape = HeadsShape.of(network(), 2)
    shape.check(network(), "heads")
    with pytest.raises(ModelError, match="0 heads"):
        replace(shape, heads=0).check(network(), "heads")
    with pytest.raises(ModelError, match="needs a rank"):
        replace(shape, output="delta").check(network(), "heads")
    with pytest.raises(ModelError, match="has no rank"):
        replace(shape, rank=3).check(network(), "heads")
    with pytest.raises(UnsupportedModel, match="read 16 dimensions"):
        replace(shape, hidden_size=16).check(network(), "heads")
    with pytest.raises(ModelError, match="lack rank"):
        HeadsShape.read({name: value for name, value in shape.settings().items() if name != "rank"}, "heads")
