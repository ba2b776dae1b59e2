"""The back end of captured graphs: a forward's kernels are recorded once and replayed with one launch.

Nothing is compiled. A graph holds for one set of shapes and one cache; rounds of a few fixed widths over extents that
grow in blocks need few of them. Answers are copied out of a graph's own memory, since the next replay overwrites them.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from .network import Answer, Inputs, Stepping
from .slot_layers import CacheLayers

if TYPE_CHECKING:
    from .network import Network, Passage, Runner

MOST_GRAPHS: Final = 64
"""Graphs of one network that are kept; the longest unused goes first."""
WIDEST: Final = 64
"""Rows above which a forward is bound by arithmetic, and launches do not matter: prompts."""
WARM_UP: Final = 2
"""Runs before a capture, in which libraries allocate their workspaces and choose their kernels."""

log = logging.getLogger("fastllm")


class Graphs:
    """Captures every narrow forward when it first comes."""

    def __init__(self) -> None:
        """Nothing is captured yet."""
        self.captured = 0
        self.refused: list[str] = []

    def runner(self, network: Network) -> Runner:
        """The network's own graphs."""
        return GraphRunner(network, self)

    @property
    def summary(self) -> str:
        """Says "graphs", or what could not be captured beside it."""
        if self.refused:
            return f"graphs, but eager for {', '.join(self.refused)}"
        return "graphs" if self.captured else "eager"


class GraphRunner(Stepping):
    """The forwards of one network."""

    def __init__(self, network: Network, backend: Graphs) -> None:
        """network: whose forwards these are."""
        super().__init__(network)
        self.backend = backend
        self._graphs: OrderedDict[tuple[object, ...], CapturedForward] = OrderedDict()
        self._eager: set[Passage] = set()

    def forward(self, passage: Passage, inputs: Inputs, cache: CacheLayers) -> Answer:
        """Replay the graph of these shapes, which is captured first if there is none."""
        if passage in self._eager or inputs.positions.shape[1] > WIDEST:
            return self.network.eager(passage, inputs, cache)
        key = (passage, *_shapes(inputs), *_places(cache))
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._capture(passage, inputs, cache)
            if graph is None:
                return self.network.eager(passage, inputs, cache)
            self._graphs[key] = graph
            if len(self._graphs) > MOST_GRAPHS:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        return graph.replay(inputs)

    def _capture(self, passage: Passage, inputs: Inputs, cache: CacheLayers) -> CapturedForward | None:
        try:
            graph = CapturedForward(self.network, passage, inputs, cache)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a kernel or a driver refuses: the answer is to run without graphs
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            log.warning("%s runs without graphs: %s", self.network.loaded.name, reason)
            self._eager.add(passage)
            if self.network.loaded.name not in self.backend.refused:
                self.backend.refused.append(self.network.loaded.name)
            return None
        self.backend.captured += 1
        return graph


class CapturedForward:
    """One forward over one set of shapes and one cache."""

    def __init__(self, network: Network, passage: Passage, inputs: Inputs, cache: CacheLayers) -> None:
        """Record it. The cache is written, as by the forward itself."""
        self.inputs = Inputs(*(None if part is None else part.clone() for part in _parts(inputs)))  # type: ignore[arg-type]
        with torch.cuda.device(network.device):  # a capture belongs to the current device
            self._record(network, passage, cache)

    def _record(self, network: Network, passage: Passage, cache: CacheLayers) -> None:
        stream: Any = torch.cuda.Stream(network.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(network.device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                network.eager(passage, self.inputs, cache)
        torch.cuda.current_stream(network.device).wait_stream(stream)
        self.graph: Any = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.answer = network.eager(passage, self.inputs, cache)

    def replay(self, inputs: Inputs) -> Answer:
        """The same kernels over other numbers."""
        for mine, theirs in zip(_parts(self.inputs), _parts(inputs), strict=True):
            if mine is not None and theirs is not None:
                mine.copy_(theirs)
        self.graph.replay()
        logits, hidden, _ = self.answer
        return Answer(None if logits is None else logits.clone(), tuple(state.clone() for state in hidden))


def _parts(inputs: Inputs) -> tuple[Tensor | None, ...]:
    return tuple(getattr(inputs, field.name) for field in fields(inputs))


def _shapes(inputs: Inputs) -> tuple[object, ...]:
    return tuple(None if part is None else (tuple(part.shape), part.dtype) for part in _parts(inputs))


def _places(cache: CacheLayers) -> tuple[object, ...]:
    """Where the cache lies: a grown or moved one is another cache to a graph."""
    return tuple((store.data_ptr(), store.stride(), tuple(store.shape)) for pair in cache for store in pair)
