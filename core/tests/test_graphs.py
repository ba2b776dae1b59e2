"""Captured graphs, without a GPU: a recorder of operations stands for the driver, and replaying runs them again."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from fastllm_core import graphs
from fastllm_core.cache import SlotCache
from fastllm_core.graphs import Graphs
from fastllm_core.layout import chain
from fastllm_core.network import Network
from fastllm_core.port import Answer, EagerRunner, Inputs, Passage
from fastllm_core.request import Request
from fastllm_core.slot_layers import CacheLayers
from fastllm_core.testing import tiny_model
from fastllm_core.testing.drafters import Oracle
from fastllm_core.testing.engines import decode, make_engine


class FakeGraph(TorchDispatchMode):
    """Records every operation with its tensors; `replay` runs them into the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        self.replays = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, out in self.operations:
            new = func(*args, **kwargs)
            for mine, fresh in zip(tree_flatten(out)[0], tree_flatten(new)[0], strict=True):
                if isinstance(mine, torch.Tensor) and mine.data_ptr() != fresh.data_ptr():
                    mine.copy_(fresh)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> list[FakeGraph]:
    made: list[FakeGraph] = []

    def new_graph() -> FakeGraph:
        made.append(FakeGraph())
        return made[-1]

    @contextmanager
    def recording(graph: FakeGraph, pool: object) -> Iterator[None]:
        with graph:
            yield

    stream = SimpleNamespace(wait_stream=lambda _: None)
    monkeypatch.setattr(graphs, "on_gpu", lambda _: True)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "Stream", lambda *_: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", new_graph)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    return made


PROMPTS = [(3, 4, 5, 6, 7, 8, 9), (5, 6), (9, 8, 7)]


def requests(count: int = 12) -> list[Request]:
    return [Request(prompt, max_new_tokens=count) for prompt in PROMPTS]


def test_texts_are_the_same_and_graphs_are_replayed(driver: Sequence[FakeGraph]) -> None:
    model = tiny_model()
    wanted = decode(make_engine(model), requests())
    backend = Graphs()
    assert decode(make_engine(model, backend=backend), requests()) == wanted
    assert backend.summary == "graphs"
    assert sum(graph.replays for graph in driver) > len(driver), "graphs are captured and used once"
    continuations = {prompt: [*prompt, *tokens] for prompt, tokens in zip(PROMPTS, wanted, strict=True)}
    oracle = Oracle(continuations, lambda at: at % 3 == 0)
    assert decode(make_engine(model, oracle, backend=Graphs()), requests(), every=2) == wanted


def test_another_cache_is_another_graph(driver: Sequence[FakeGraph]) -> None:
    """Prompts long enough that the cache grows into new memory while rows are at work."""
    model = tiny_model()
    longer = [Request(tuple(3 + (i * k) % 50 for i in range(10 * k)), max_new_tokens=20) for k in (1, 7, 11)]
    wanted = decode(make_engine(model), longer, every=3)
    assert decode(make_engine(model, backend=Graphs()), longer, every=3) == wanted


def test_answers_outlive_the_next_replay(driver: Sequence[FakeGraph]) -> None:
    engine = make_engine(tiny_model(), backend=Graphs())
    network = engine.parts.network
    cache = SlotCache(network)
    cache.reserve(1, 64)
    layers = cache.layers(slice(0, 1), 64)
    first = network.forward(chain(torch.tensor([[3]]), torch.tensor([0]), 64), layers).logits
    assert first is not None
    before = first.clone()
    network.forward(chain(torch.tensor([[9]]), torch.tensor([1]), 64), layers)
    assert torch.equal(first, before)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_chain_is_one_graph(driver: Sequence[FakeGraph], rows: int) -> None:
    engine = make_engine(tiny_model(), backend=Graphs())
    network, captured = engine.parts.network, engine.parts.network.runner
    row, said = chain(torch.tensor([[3, 7], [9, 4]])[:, :rows], torch.tensor([0, 5]), 64), []
    for runner in (EagerRunner(network), captured):
        network.runner = runner
        cache = SlotCache(network)
        cache.reserve(2, 64)
        for _ in range(2):  # the second time it is replayed
            found = network.advance(row, cache.layers(slice(0, 2), 64), steps=5)
        said.append(found)
    mine, theirs = said
    assert torch.equal(mine.likely, theirs.likely)
    torch.testing.assert_close(mine.logits, theirs.logits)
    for ours, other in zip(mine.next, theirs.next, strict=True):
        assert (ours is None and other is None) or torch.equal(ours, other)  # type: ignore[arg-type]
    assert len(driver) == 1


def test_few_are_kept(driver: Sequence[FakeGraph], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 1)
    model = tiny_model()
    wanted = decode(make_engine(model), requests())
    assert decode(make_engine(model, backend=Graphs()), requests(), every=2) == wanted


def test_what_cannot_be_captured_runs_eagerly(
    driver: Sequence[FakeGraph], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", refuse)
    model = tiny_model()
    backend = Graphs()
    with caplog.at_level(logging.WARNING, logger="fastllm"):
        assert decode(make_engine(model, backend=backend), requests()) == decode(make_engine(model), requests())
    assert {record.message for record in caplog.records} == {
        "LlamaForCausalLM runs without graphs: operation not permitted when stream is capturing"
    }
    assert backend.summary == "eager"


def test_a_graph_with_other_answers_is_refused(
    driver: Sequence[FakeGraph], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Stuck(FakeGraph):
        """Does nothing when it is replayed, and its memory held something else."""

        def replay(self) -> None:
            for *_, out in self.operations:
                if isinstance(out, torch.Tensor) and out.is_floating_point() and out.shape[-1] == 64:
                    out.mul_(2)

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Stuck)
    model, backend = tiny_model(), Graphs()
    assert decode(make_engine(model, backend=backend), requests()) == decode(make_engine(model), requests())
    assert "captured, its answers change by" in caplog.text
    assert backend.captured == 0


def test_no_garbage_is_collected_during_a_capture(driver: Sequence[FakeGraph], monkeypatch: pytest.MonkeyPatch) -> None:
    """A collected graph, of an engine that is gone, would end the capture: seen on an H200."""
    collecting: list[bool] = []

    @contextmanager
    def recording(graph: FakeGraph, pool: object) -> Iterator[None]:
        collecting.append(gc.isenabled())
        with graph:
            yield

    monkeypatch.setattr(torch.cuda, "graph", recording)
    decode(make_engine(tiny_model(), backend=Graphs()), requests())
    assert collecting
    assert not any(collecting)
    assert gc.isenabled()


def test_a_failed_capture_leaves_its_pool(driver: Sequence[FakeGraph], monkeypatch: pytest.MonkeyPatch) -> None:
    pools: list[object] = []

    @contextmanager
    def recording(graph: FakeGraph, pool: object) -> Iterator[None]:
        pools.append(pool)
        if len(pools) == 1:
            raise RuntimeError("operation failed due to a previous error during capture")
        with graph:
            yield

    monkeypatch.setattr(torch.cuda, "graph", recording)
    model = tiny_model()
    wanted = decode(make_engine(model), requests())
    backend = Graphs()
    assert decode(make_engine(model, backend=backend), requests(), every=2) == wanted
    assert backend.captured
    assert pools[0] not in pools[1:]


@pytest.mark.parametrize("fits", [True, False])
def test_fused_kernels_that_differ_are_not_used(
    driver: Sequence[FakeGraph], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fits: bool
) -> None:
    """What they may run is run by them, as long as it agrees."""
    model, runs = tiny_model(), []

    class Fused:
        def __init__(self, network: Network) -> None:
            self.network = network

        def takes(self, inputs: Inputs, cache: CacheLayers) -> bool:
            return inputs.positions.shape[1] < 4

        def __call__(self, passage: Passage, inputs: Inputs, cache: CacheLayers) -> Answer:
            runs.append(inputs.positions.shape[1])
            answer = self.network.eager(passage, inputs, cache)
            assert answer.logits is not None
            return answer if fits else answer._replace(logits=answer.logits + answer.logits.abs().max())

    monkeypatch.setattr(graphs, "FusedForward", Fused)
    monkeypatch.setattr(graphs, "unfit", lambda _: None)
    wanted, backend = decode(make_engine(model), requests()), Graphs(fuses=True)
    with caplog.at_level(logging.WARNING, logger="fastllm"):
        assert decode(make_engine(model, backend=backend), requests(), every=2) == wanted
    assert max(runs) < 4
    assert (len(runs) > 1) == fits
    assert backend.summary == ("fused graphs" if fits else "graphs")
    warning = "LlamaForCausalLM runs without fused kernels: with them, its answers change by 1 of the largest"
    assert [record.getMessage() for record in caplog.records] == ([] if fits else [warning])


@pytest.mark.parametrize("asked", [True, False])
def test_who_asks_for_fused_kernels_hears_why_there_are_none(
    driver: Sequence[FakeGraph], caplog: pytest.LogCaptureFixture, asked: bool
) -> None:
    backend = Graphs(fuses=True, asked=asked)
    with caplog.at_level(logging.WARNING, logger="fastllm"):
        decode(make_engine(tiny_model(), backend=backend), requests())
    assert backend.summary == "graphs"
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == asked
    assert all("runs without fused kernels: heads of 8 numbers" in warning for warning in warnings)
