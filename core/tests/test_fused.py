"""Our own kernels against transformers' forwards: on a GPU, or by Triton's interpreter, as conftest.py asks of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from fastllm_core.cache import SlotCache
from fastllm_core.fused import FusedForward, tiling, unfit
from fastllm_core.layout import ancestors, chain, tree
from fastllm_core.network import Network
from fastllm_core.port import Inputs, Passage
from fastllm_core.quirks import LIKE_LLAMA
from fastllm_core.testing.engines import make_engine
from fastllm_core.testing.families import Family, family
from fastllm_core.ties import best_of

pytest.importorskip("triton", reason="the kernels are in Triton's language")
DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")

SHAPE = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 80}


@pytest.fixture(scope="module", autouse=True)
def interpreter() -> Iterator[None]:
    """Triton 3.6 takes numbers out of arrays in a way that numpy 2.4 no longer allows."""
    from triton.runtime import interpreter

    patched = interpreter._patch_lang_tensor

    def patch(tensor: Any, scope: Any) -> None:
        patched(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(interpreter, "_patch_lang_tensor", patch)
        yield


def network_of(name: str, **settings: Any) -> Network:
    return make_engine(Family(name, name, {**SHAPE, **settings}).model().to(DEVICE)).parts.network


@torch.inference_mode()
def compare(network: Network, passage: Passage, inputs: Inputs, extent: int) -> None:
    """What is answered and what is written must be what transformers answers and writes."""
    forward, texts, said = FusedForward(network), inputs.positions.shape[0], []
    for run in (network.eager, forward):
        cache = SlotCache(network)
        cache.reserve(texts, extent)
        layers = cache.layers(slice(0, texts), extent)
        generator = torch.Generator(DEVICE).manual_seed(3)
        for store in (store for pair in layers for store in pair):
            store.normal_(generator=generator)
        assert forward.takes(inputs, layers)
        answer = run(passage, inputs, layers)
        said.append((answer.logits, *answer.hidden, *(store for pair in layers for store in pair)))
    for wanted, given in zip(*said, strict=True):
        assert (wanted is None) == (given is None)
        if wanted is not None and given is not None:
            torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-4)
    if answer.logits is not None:
        best = best_of(answer.logits, network.dtype)
        assert answer.best is not None
        assert torch.equal(answer.best.tokens, best.tokens)
        assert torch.equal(answer.best.close, best.close)


def rows(network: Network, texts: int, count: int, start: int, extent: int) -> Inputs:
    tokens = torch.arange(3, 3 + texts * count).view(texts, count) % network.vocab_size
    return chain(tokens, torch.arange(texts) * 2 + start, extent).to(DEVICE)


@pytest.mark.parametrize("name", LIKE_LLAMA)
def test_layers_of_every_family(name: str) -> None:
    """Biases, norms of queries and keys, windows; several texts of several rows; the hidden states in between."""
    network = network_of(name)
    assert unfit(network) is None
    passage = Passage(0, network.layers, hidden_layers=(0, 2, network.layers))
    compare(network, passage, rows(network, 2, 3, 20, 64), 64)


@pytest.mark.parametrize(("texts", "count"), [(1, 1), (1, 18), (3, 6)])
def test_any_few_rows(texts: int, count: int) -> None:
    """Above 16 rows programs are taller."""
    network = network_of("llama", num_hidden_layers=1)
    compare(network, Passage(0, 1), rows(network, texts, count, 9, 64), 64)


def test_rows_that_do_not_lie_side_by_side() -> None:
    """The last of the rows that entered, of several texts."""
    network = network_of("llama", num_hidden_layers=1)
    compare(network, Passage(0, 1), rows(network, 3, 4, 9, 64).last(), 64)


def test_a_long_cache_is_attended_to_in_parts() -> None:
    network = network_of("llama", num_hidden_layers=1, max_position_embeddings=1024)
    compare(network, Passage(0, 1), rows(network, 2, 2, 500, 576), 576)


@pytest.mark.parametrize(
    "passage",
    [
        Passage(0, 2, hidden_layers=(2,)),
        Passage(0, 4, frozenset({1, 2}), frozenset({0, 2}), (1,), True),
        Passage(0, 4, frozenset(range(4)), frozenset(range(4))),
    ],
)
def test_parts_of_a_model(passage: Passage) -> None:
    network = network_of("llama")
    compare(network, passage, rows(network, 2, 2, 5, 64), 64)


def test_hidden_states_enter() -> None:
    network = network_of("qwen3")
    hidden = torch.randn(2, 3, network.hidden_size, generator=torch.Generator().manual_seed(1))
    inputs = rows(network, 2, 3, 7, 64)._replace(tokens=None, hidden=hidden.to(DEVICE))
    compare(network, Passage(1, network.layers, hidden_layers=(1, 3)), inputs, 64)


def test_rows_of_a_tree() -> None:
    """Positions that are not the slots', in layers with a window as well."""
    network = network_of("mistral")
    sees = ancestors(torch.tensor([[-1, -1, 0, 1, 2]]))
    nodes = torch.tensor([[5, 6, 7, 8, 9, 10]])
    inputs = tree(nodes, sees, sees.sum(-1) - 1, torch.tensor([30]), 64).to(DEVICE)
    compare(network, Passage(0, network.layers), inputs, 64)


def test_ties_are_seen() -> None:
    """The first of equals, wherever the programs' borders are; and what rounding may have decided."""
    forward = FusedForward(network_of("llama", num_hidden_layers=1))
    logits = torch.randn(2, 3, 9000, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    logits[0, 0, 4095:4097] = 9.0
    logits[0, 1, [17, 8999]] = torch.tensor([9.0, 9.0 - 1e-6], device=DEVICE)
    logits[0, 2, [17, 18]] = torch.tensor([9.0, 8.99], device=DEVICE)
    logits[1, 0, 5] = -1e7  # a large logit makes the others coarse
    wanted, given = best_of(logits, torch.float32), forward._best(logits)
    assert wanted.close.tolist() == [[True, True, False], [True, False, False]]
    assert torch.equal(given.tokens, wanted.tokens)
    assert torch.equal(given.close, wanted.close)


@torch.inference_mode()
def test_a_row_is_the_same_bits_beside_others_and_in_a_longer_cache() -> None:
    """Where slots are attended to in one part or in several, of which the last ones are not seen."""
    network = network_of("llama", num_hidden_layers=2, max_position_embeddings=1024)
    forward, passage = FusedForward(network), Passage(0, 2, hidden_layers=(1,))
    tokens = torch.arange(3, 9, device=DEVICE)[None]
    said = []
    for width, extent in ((6, 256), (1, 256), (2, 320), (6, 576)):
        cache = SlotCache(network)
        cache.reserve(1, extent)
        layers = cache.layers(slice(0, 1), extent)
        for index, store in enumerate(store for pair in layers for store in pair):
            generator = torch.Generator().manual_seed(index)
            store[:, :, :240] = torch.randn(1, store.shape[1], 240, store.shape[3], generator=generator).to(DEVICE)
        parts = []
        for begin in range(0, 6, width):
            at = torch.tensor([240 + begin], device=DEVICE)
            answer = forward(passage, chain(tokens[:, begin : begin + width], at, extent), layers)
            assert answer.logits is not None
            parts.append(torch.cat([answer.logits, *answer.hidden], -1))
        said.append(torch.cat(parts, 1))
    for other in said[1:]:
        assert torch.equal(other, said[0])


def test_sums_do_not_depend_on_the_rows_beside() -> None:
    for count, width in ((2048, 5504), (6144, 4096), (128256, 4096), (192, 64)):
        assert len({tiling(each, count, width).inner for each in (1, 6, 16, 32)}) == 1


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("gemma2", {}, "not of the kind"),
        ("llama", {"head_dim": 8}, "heads of 8 numbers"),
        ("llama", {"hidden_act": "gelu"}, "MLP is another"),
        ("llama", {"mlp_bias": True}, "MLP is another"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "changes with the"),
    ],
)
def test_what_is_not_of_the_kind_is_left_to_transformers(name: str, settings: dict[str, Any], reason: str) -> None:
    assert reason in (unfit(network_of(name, **settings)) or "")


def test_float16_is_left_to_transformers() -> None:
    model = Family("llama", "llama", SHAPE).model().half()
    assert "float16" in (unfit(make_engine(model).parts.network) or "")


def test_changed_models_are_left_to_transformers() -> None:
    model = Family("llama", "llama", SHAPE).model()
    model.model.layers[1].mlp.register_forward_hook(lambda *_: None)
    assert "hooks" in (unfit(make_engine(model).parts.network) or "")
    assert unfit(make_engine(family("llama").model()).parts.network)
