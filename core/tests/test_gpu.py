"""On a real GPU: `pytest -m gpu core/tests/test_gpu.py`. Captured graphs against eager forwards."""

from __future__ import annotations

import pytest
import torch

from fastllm_core.graphs import Graphs
from fastllm_core.request import Request
from fastllm_core.testing import tiny_model
from fastllm_core.testing.drafters import Branching, Oracle
from fastllm_core.testing.engines import decode, make_engine
from fastllm_core.testing.families import family

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
