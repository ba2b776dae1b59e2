"""The back end of captured graphs: a forward's kernels are recorded once and replayed with one launch.

Nothing is compiled ahead of time. A graph holds for one set of shapes and one cache; rounds of a few fixed widths over
extents that grow in blocks need few of them. Answers are copied out of a graph's own memory, since the next replay
overwrites them.
"""

from __future__ import annotations

import gc
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from .errors import UnsupportedModel
from .fused import FusedForward, unfit
from .port import Advance, Answer, EagerRunner, Inputs, last_only, watched
from .probe import TOLERANCE, relative_difference
from .slot_layers import CacheLayers, Layers, places_of
from .ties import Best, best_of

if TYPE_CHECKING:
    from .network import Network
    from .port import Passage, Runner

MOST_GRAPHS: Final = 64
"""Graphs of one network that are kept; the longest unused goes first."""
WIDEST: Final = 64
"""Rows above which a forward is bound by arithmetic, and launches do not matter: prompts."""
QUICK_BYTES: Final = 1 << 32
"""Weights of a network of which a GPU runs a row in so short a time, 1 or 2 ms, that what lies between rows shows."""
WARM_UP: Final = 2
"""Runs before a capture, in which libraries allocate their workspaces and choose their kernels."""

Flat = tuple[Tensor | None, ...]
"""What a call answers, in one line of tensors."""

log = logging.getLogger("fastllm")


class Graphs:
    """Captures every narrow forward of a GPU when it first comes; wide ones run eagerly."""

    def __init__(self, fuses: bool = False, *, asked: bool = False) -> None:
        """Nothing is captured yet.  fuses: whether networks that `fused.py` can run are run by it.

        asked: it was asked for by name, so that somebody wants to know which networks cannot.
        """
        self.fuses, self.asked = fuses, asked
        self.captured = 0
        self.fused = 0
        self.refused: list[str] = []

    def runner(self, network: Network) -> Runner:
        """The network's own graphs; one that is on a processor has none."""
        return GraphRunner(network, self) if on_gpu(network) else EagerRunner(network)

    @property
    def summary(self) -> str:
        """Says "graphs" or "fused graphs", or what could not be captured beside it."""
        if not self.captured:
            return "eager"
        found = "fused graphs" if self.fused else "graphs"
        return f"{found}, but eager for {', '.join(self.refused)}" if self.refused else found


class GraphRunner:
    """The forwards of one network."""

    def __init__(self, network: Network, backend: Graphs) -> None:
        """network: whose forwards these are."""
        self.network, self.backend = network, backend
        self._graphs: OrderedDict[tuple[object, ...], CapturedCall] = OrderedDict()
        self._refused: set[object] = set()
        self._pool: Any = None
        self._fused = self._fused_forward() if backend.fuses else None
        self._proven: set[Passage] = set()

    def _fused_forward(self) -> FusedForward | None:
        reason = unfit(self.network)
        if reason:
            level = logging.WARNING if self.backend.asked else logging.INFO
            log.log(level, "%s runs without fused kernels: %s", self.network.loaded.name, reason)
        return None if reason else FusedForward(self.network)

    def forward(self, passage: Passage, inputs: Inputs, cache: CacheLayers) -> Answer:
        """Replay the graph of these shapes, which is captured first if there is none."""

        def work(inputs: Inputs) -> Flat:
            logits, hidden, best, _ = self._narrow(passage, inputs, cache)
            # Read greedily here: afterwards each of its small kernels would be a launch.
            if logits is not None and best is None:
                best = best_of(logits, self.network.dtype)
            return (logits, *(best or (None, None)), *hidden)

        narrow = inputs.positions.shape[1] <= WIDEST
        found = self._replayed(passage, passage, work, inputs, cache) if narrow else None
        if found is None:
            return self.network.eager(passage, inputs, cache)
        logits, tokens, close, *hidden = found
        best = None if tokens is None or close is None else Best(tokens, close)
        return Answer(logits, tuple(state for state in hidden if state is not None), best)

    def advance(self, passage: Passage, inputs: Inputs, cache: CacheLayers, steps: int = 1) -> Advance:
        """Some rows in turn and the row behind them, in one graph."""

        def work(inputs: Inputs) -> Flat:
            said = watched(self._narrow, self.network.dtype, passage, inputs, cache, steps)
            return (said.logits, said.likely, said.close, *said.next[2:5], *said.hidden)

        found = self._replayed(("advance", passage, steps), passage, work, inputs, cache)
        if found is None:
            return watched(self.network.eager, self.network.dtype, passage, inputs, cache, steps)
        logits, likely, close, positions, slots, mask, *hidden = (part for part in found if part is not None)
        behind = Inputs(likely[:, -1:], None, positions, slots, mask, None)
        return Advance(logits, likely, behind, tuple(hidden), close)

    def at_once(self, passage: Passage, texts: int, rows: int, steps: int) -> bool:
        """Any number, where a row is so quick that what lies between two of them shows."""
        return steps > 1 and self.network.weight_bytes <= QUICK_BYTES

    def _narrow(self, passage: Passage, inputs: Inputs, cache: CacheLayers) -> Answer:
        """Few rows, by fused kernels where they can."""
        if self._fused is not None and last_only(passage) in self._proven and self._fused.takes(inputs, cache):
            return self._fused(passage, inputs, cache)
        return self.network.eager(passage, inputs, cache)

    def _prove(self, passage: Passage, inputs: Inputs, cache: CacheLayers) -> None:
        """Compare fused kernels with transformers' once for every passage; if they differ or fail, do without."""
        if self._fused is None or last_only(passage) in self._proven or not self._fused.takes(inputs, cache):
            return
        try:
            wanted = self.network.eager(passage, inputs, cache)
            given = self._fused(passage, inputs, cache)
            _agree((given.logits, *given.hidden), (wanted.logits, *wanted.hidden), "with them")
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a compiler or a driver refuses
            log.warning("%s runs without fused kernels: %s", self.network.loaded.name, _first_line(error))
            self._fused = None
        else:
            self._proven.add(last_only(passage))
            self.backend.fused += 1

    def _replayed(
        self, what: object, passage: Passage, work: Callable[[Inputs], Flat], inputs: Inputs, cache: CacheLayers
    ) -> Flat | None:
        """What the graph of a call answers; None if it cannot be captured."""
        if what in self._refused:
            return None
        key = (what, *_shapes(inputs), *(cache.places if isinstance(cache, Layers) else places_of(cache)))
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._capture(what, passage, work, inputs, cache)
            if graph is None:
                return None
            self._graphs[key] = graph
            if len(self._graphs) > MOST_GRAPHS:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        return graph.replay(inputs)

    def _capture(
        self, what: object, passage: Passage, work: Callable[[Inputs], Flat], inputs: Inputs, cache: CacheLayers
    ) -> CapturedCall | None:
        try:
            with self.network.clock.paused(), torch.cuda.device(self.network.device):  # it belongs to the current GPU
                self._prove(passage, inputs, cache)
                if self._pool is None:  # one for all: nothing in it is needed after a replay
                    self._pool = torch.cuda.graph_pool_handle()
                graph = CapturedCall(work, inputs, self._pool)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a kernel or a driver refuses: the answer is to run without graphs
            name = self.network.loaded.name
            log.warning("%s runs without graphs: %s", name, _first_line(error))
            self._refused.add(what)
            self._pool = None  # the allocator may believe that it is still recording into it
            if name not in self.backend.refused:
                self.backend.refused.append(name)
            return None
        self.backend.captured += 1
        return graph


class CapturedCall:
    """One forward over one set of shapes and one cache."""

    def __init__(self, work: Callable[[Inputs], Flat], inputs: Inputs, pool: Any) -> None:
        """Record it. The cache is written, as by the forward itself.

        Raises UnsupportedModel if the graph then answers something else, as it does if numbers were looked at on the
        host while it was recorded.
        """
        self.inputs = Inputs(*(None if part is None else part.clone() for part in inputs))  # type: ignore[arg-type]
        self._given = _by_dtype(self.inputs)
        device = inputs.positions.device
        stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                wanted = work(self.inputs)
        torch.cuda.current_stream(device).wait_stream(stream)
        self.graph: Any = torch.cuda.CUDAGraph()
        with _no_collection(), torch.cuda.graph(self.graph, pool=pool):
            self.answer = work(self.inputs)
        self.graph.replay()
        _agree(self.answer, wanted, "captured")

    def replay(self, inputs: Inputs) -> Flat:
        """The same kernels over other numbers."""
        for mine, theirs in zip(self._given, _by_dtype(inputs), strict=True):
            torch._foreach_copy_(mine, theirs)  # one launch for all of a type
        self.graph.replay()
        return tuple(None if part is None else part.clone() for part in self.answer)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Collect no garbage: in it may be the graphs of an engine that is gone, and to free one ends a capture."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def on_gpu(network: Network) -> bool:
    """Whether a network's forwards can be captured at all."""
    return network.device.type == "cuda"


def _agree(given: Flat, wanted: Flat, how: str) -> None:
    """Raise UnsupportedModel if answers differ by more than rounding, or are no numbers."""
    for mine, theirs in zip(given, wanted, strict=True):
        if mine is not None and theirs is not None and mine.is_floating_point():
            difference = relative_difference(mine, theirs)
            if not difference <= TOLERANCE.get(mine.dtype, 1e-1):
                raise UnsupportedModel(f"{how}, its answers change by {difference:.2g} of the largest")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _by_dtype(parts: Sequence[Tensor | None]) -> list[list[Tensor]]:
    found: dict[torch.dtype, list[Tensor]] = {}
    for part in parts:
        if part is not None:
            found.setdefault(part.dtype, []).append(part)
    return list(found.values())


def _shapes(inputs: Inputs) -> tuple[object, ...]:
    return tuple(None if part is None else (tuple(part.shape), part.dtype) for part in inputs)
