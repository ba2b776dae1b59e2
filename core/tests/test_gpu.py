"""On a real GPU: `pytest -m gpu core/tests/test_gpu.py`. Captured graphs against eager forwards."""

from __future__ import annotations

import gc

import pytest
import torch

from fastllm_core import SlotCache, chain
from fastllm_core.fused import FusedForward
from fastllm_core.graphs import Graphs
from fastllm_core.port import Passage
from fastllm_core.probe import TOLERANCE, relative_difference
from fastllm_core.quirks import LIKE_LLAMA
from fastllm_core.request import Request
from fastllm_core.testing import tiny_model
from fastllm_core.testing.drafters import Branching, Oracle
from fastllm_core.testing.engines import decode, make_engine
from fastllm_core.testing.families import Family, family

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]

PROMPTS = [(3, 4, 5, 6, 7, 8, 9), (5, 6), (9, 8, 7), tuple(3 + i % 50 for i in range(70))]
CAPTURED = ("llama", "gemma3_text", "gpt2", "qwen3", "bloom")
OTHERS = ("mixtral", "deepseek_v3", "gpt_oss", "falcon")
"""Experts may be chosen on the host, which no graph can hold: then they run eagerly."""


def requests(count: int = 20) -> list[Request]:
    return [Request(prompt, max_new_tokens=count) for prompt in PROMPTS]


@pytest.mark.parametrize("name", CAPTURED + OTHERS)
def test_families_say_the_same_by_graphs(name: str) -> None:
    model = family(name).model().to("cuda")
    wanted = decode(make_engine(model), requests())
    backend = Graphs()
    assert decode(make_engine(model, backend=backend), requests(), every=2) == wanted
    assert backend.captured or (backend.refused and name in OTHERS)


def test_texts_are_the_same_alone_and_together() -> None:
    """Chains and trees, one text and several, and caches that grow while rows are at work."""
    model = tiny_model().to("cuda")
    wanted = decode(make_engine(model), requests())
    known = {prompt: [*prompt, *tokens] for prompt, tokens in zip(PROMPTS, wanted, strict=True)}
    oracle = Oracle(known, lambda at: at % 3 == 0)
    for drafter in (None, oracle, Branching(oracle.guess)):
        backend = Graphs()
        engine = make_engine(model, drafter, backend=backend)
        assert decode(engine, requests(), every=2) == wanted
        assert [decode(engine, [one])[0] for one in requests()] == wanted
        assert backend.captured
        assert not backend.refused


def test_the_graphs_of_an_engine_that_is_gone_end_no_capture() -> None:
    """Freed by the garbage collector in the middle of one, they would."""
    model = tiny_model().to("cuda")
    wanted = decode(make_engine(model), requests())
    for _ in range(3):
        backend = Graphs()
        engine = make_engine(model, backend=backend)
        assert decode(engine, requests(), every=2) == wanted
        assert not backend.refused
        circle: list[object] = [engine]
        circle.append(circle)  # which only the collector can free
        del engine, circle
        gc.set_threshold(20)
    gc.set_threshold(700, 10, 10)


@pytest.mark.parametrize("name", LIKE_LLAMA)
def test_fused_kernels_say_the_same(name: str) -> None:
    model = Family(name, name, {"hidden_size": 64, "head_dim": 16}).model().to("cuda")
    wanted = decode(make_engine(model), requests())
    known = {prompt: [*prompt, *tokens] for prompt, tokens in zip(PROMPTS, wanted, strict=True)}
    oracle = Oracle(known, lambda at: at % 3 == 0)
    for drafter in (None, oracle, Branching(oracle.guess)):
        backend = Graphs(fuses=True)
        assert decode(make_engine(model, drafter, backend=backend), requests(), every=2) == wanted
        assert backend.summary == "fused graphs"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("context", [40, 700])
@torch.inference_mode()
def test_a_row_is_the_same_bits_beside_others(dtype: torch.dtype, context: int) -> None:
    """One to sixteen rows and texts: what lets a draft be verified without a near-tie."""
    shape = {"hidden_size": 512, "intermediate_size": 1408, "head_dim": 128, "vocab_size": 1024}
    longer = {"max_position_embeddings": 2048}
    model = Family("llama", "llama", {**shape, **longer}).model().to("cuda", dtype)
    network = make_engine(model).parts.network
    forward, tokens = FusedForward(network), torch.randint(3, 1000, (1, 16), device="cuda")
    passage, answers = Passage(0, network.layers, hidden_layers=(1, 3)), []
    for width in (16, 1, 5):
        cache = SlotCache(network)
        cache.reserve(1, context + 20)
        generator = torch.Generator("cuda").manual_seed(3)
        layers = cache.layers(slice(0, 1), context + 16)
        for store in (store for pair in layers for store in pair):
            store.normal_(generator=generator)
        parts = []
        for begin in range(0, 16, width):
            part = tokens[:, begin : begin + width]
            at = torch.tensor([context + begin], device="cuda")
            said = forward(passage, chain(part, at, context + 16), layers)
            assert said.logits is not None
            parts.append(torch.cat([said.logits, *said.hidden], -1))
        answers.append(torch.cat(parts, 1))
    assert torch.isfinite(answers[0]).all()
    for other in answers[1:]:
        assert torch.equal(other, answers[0])
    eager = network.eager(passage, chain(tokens, torch.tensor([context], device="cuda"), context + 16), layers).logits
    assert eager is not None
    assert relative_difference(answers[0][..., : eager.shape[-1]], eager) < TOLERANCE[dtype]
