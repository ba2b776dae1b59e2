"""Measuring `Costs` on a pipeline, in the back end that it runs in."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import torch

from fastllm_core import Network, SlotCache, chain

from ..skipset import SkipSet
from .costs import Costs

if TYPE_CHECKING:
    from fastllm_core import Pipeline

log = logging.getLogger("fastllm")

CONTEXT: Final = 64
BLOCKS: Final = 5
TIMED: Final = 7
"""Calls of a block, after a first one that brings the weights near."""
UNSTEADY: Final = 1.3
"""Ratio of two times of the same work from which on they are measured again, so often at most:"""
ATTEMPTS: Final = 3
TOKENS: Final = 24
"""Of the plain text from which the work around forwards is read."""


@torch.inference_mode()
def measure(pipeline: Pipeline, longest: int, prompt: str) -> Costs:
    """Time what a round is made of. Blocks take turns, so that a drifting machine slows all alike.

    longest: tokens of the longest draft.  prompt: what a few tokens are decoded after, plainly.

    Attention as a whole is the difference between forwards with and without it, and each layer's has the share of its
    weights: single sub-layers are too quick to be timed one by one. In a compiled back end that is two programs more.
    """
    network = pipeline.engine.parts.network
    every = range(network.layers)
    draft = {
        name: _advance(network, skipped)
        for name, skipped in (
            ("whole", SkipSet()),
            ("no attention", SkipSet.of(every, [])),
            ("no mlp", SkipSet.of([], every)),
        )
    }
    widths = sorted({1, 2, *(1 + (1 << power) for power in range(8) if 1 << power < longest), longest + 1})
    seconds = _steady({**draft, **{rows: _forward(network, rows) for rows in widths}})
    whole, plain = seconds["whole"], seconds[1]
    weights = weights_of(pipeline)
    attention = _shared(max(whole - seconds["no attention"], 0.0), weights["attention"])
    mlp = _shared(max(whole - seconds["no mlp"], 0.0), weights["mlp"])
    rest = max(whole - sum(attention) - sum(mlp), 0.0)
    around = _around(pipeline, prompt)
    rows = {rows: max(seconds[rows], plain) for rows in widths}
    return Costs(attention, mlp, rest, rows, around)


def weights_of(pipeline: Pipeline) -> dict[str, list[int]]:
    """Bytes of the parameters of each layer's attention and MLP: what the views without them lack."""
    network = pipeline.engine.parts.network

    def lacking(skipped: SkipSet) -> int:
        port = Network(pipeline.target, adapters=(network.adapter,))
        view = port.view(replace(port.whole, skip_attention=skipped.attention, skip_mlp=skipped.mlp))
        left = {id(each) for each in view.parameters()}
        return sum(each.numel() * each.element_size() for each in port.model.parameters() if id(each) not in left)

    every = range(network.layers)
    return {
        "attention": [lacking(SkipSet.of([layer], [])) for layer in every],
        "mlp": [lacking(SkipSet.of([], [layer])) for layer in every],
    }


def _shared(seconds: float, weights: Sequence[int]) -> tuple[float, ...]:
    return tuple(seconds * weight / max(sum(weights), 1) for weight in weights)


def _advance(network: Network, skipped: SkipSet) -> Callable[[], Any]:
    """A row as a drafter reads it."""
    inputs, layers = _inputs(network, 1)
    return lambda: network.advance(inputs, layers, skip_attention=skipped.attention, skip_mlp=skipped.mlp).logits


def _forward(network: Network, rows: int) -> Callable[[], Any]:
    """Rows as the verifier reads them."""
    inputs, layers = _inputs(network, rows)
    return lambda: network.forward(inputs, layers).logits


def _inputs(network: Network, rows: int) -> tuple[Any, Any]:
    cache = SlotCache(network)
    extent = cache.extent(CONTEXT + rows)
    cache.reserve(1, extent)
    tokens = torch.full((1, rows), 3, device=network.device) % network.vocab_size
    start = torch.tensor([CONTEXT], device=network.device)
    return chain(tokens, start, extent), cache.layers(slice(0, 1), extent)


def _steady(calls: Mapping[Any, Callable[[], Any]]) -> dict[Any, float]:
    """Times that agree with each other: a row costs drafter and verifier about the same, unless others work here."""
    for call in calls.values():
        call()  # compiles what must be
    seconds = _timed(calls)
    for _ in range(ATTEMPTS):
        if max(seconds["whole"], seconds[1]) < UNSTEADY * min(seconds["whole"], seconds[1]):
            return seconds
        again = _timed(calls)
        seconds = {name: min(seconds[name], again[name]) for name in calls}
    log.warning("this machine is busy: what was timed for the costs of a round does not agree with itself")
    return seconds


def _timed(calls: Mapping[Any, Callable[[], Any]]) -> dict[Any, float]:
    """The best of the blocks' medians: other work on the machine only ever adds."""
    found: dict[Any, list[float]] = {name: [] for name in calls}
    for _ in range(BLOCKS):
        for name, call in calls.items():
            found[name].append(_block(call))
    return {name: min(times) for name, times in found.items()}


def _block(call: Callable[[], Any]) -> float:
    times: list[float] = []
    for _ in range(1 + TIMED):
        began = time.perf_counter()
        logits = call()
        if logits.is_cuda:
            torch.cuda.synchronize(logits.device)
        times.append(time.perf_counter() - began)
    return median(times[1:])


def _around(pipeline: Pipeline, prompt: str) -> float:
    """Seconds of a plain round outside its forward."""
    pipeline.generate(prompt, max_new_tokens=2, temperature=0.0, ignore_eos=True)
    report = pipeline.generate(prompt, max_new_tokens=TOKENS, temperature=0.0, ignore_eos=True).report
    spent = sum(seconds for phase, seconds in report.time.items() if phase != "prefill")
    inside = sum(seconds for phase, seconds in report.forward_time.items() if phase != "prefill")
    return float(max(spent - inside, 0.0) / max(report.rounds, 1))
