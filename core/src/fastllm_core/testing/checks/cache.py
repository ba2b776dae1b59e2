"""Checks of what is stored: after any verdict, the caches hold what a fresh reading of the text would."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import torch

from ... import layout
from ...batch import Batch
from ...cache import SlotCache
from ...engine import Parts
from ...network import Network
from ...protocols import Draft, Guarantee, KVCache, Scores, Verdict
from ..situations import drafters, greedy, plain_texts, prompts, texts
from ..subject import Subject

ROUNDS: Final = 200
TOLERANCE: Final = 1e-3
"""Largest difference of a key or value; rounding of tiny models stays far below."""


class AnyVerdict:
    """Accepts a random part of every draft, and a random token behind it: every rollback there is."""

    guarantee = Guarantee.EXACT

    def __init__(self, seed: int = 0) -> None:
        """seed: of the verdicts."""
        self.rng = random.Random(seed)

    def decide(self, batch: Batch, draft: Draft, scores: Scores) -> Verdict:
        """A random path of each draft, none and the whole among them."""
        paths = [self._path(draft, row) for row in range(len(batch))]
        depth = draft.width
        kept = [[int(draft.tokens[row, node]) for node in path] for row, path in enumerate(paths)]
        tokens = [[*line, self.rng.randrange(scores.logits.shape[-1])] for line in kept]

        def made(values: list[Any]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.long, device=draft.tokens.device)

        return Verdict(
            made([len(path) for path in paths]),
            made([path + [-1] * (depth - len(path)) for path in paths]).reshape(len(batch), depth),
            made([line + [-1] * (depth + 1 - len(line)) for line in tokens]),
        )

    def _path(self, draft: Draft, row: int) -> list[int]:
        count = int(draft.lengths[row])
        end = self.rng.randrange(-1, count)
        path: list[int] = []
        while end >= 0:
            path.append(end)
            end = end - 1 if draft.parents is None else int(draft.parents[row, end])
        return path[::-1]


class CacheWatch:
    """Compares every cache with a fresh reading, every few rounds."""

    def __init__(self, every: int = 5) -> None:
        """every: rounds between two comparisons."""
        self.every, self.rounds, self.pipeline = every, 0, None

    def observe(self, batch: Batch, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        """After the commit: the target's cache, then the drafter's."""
        self.rounds += 1
        if self.rounds % self.every:
            return
        pipeline: Any = self.pipeline
        parts = pipeline.engine.parts
        for row in batch.rows:
            stored = parts.cache.lengths[row.slot]
            assert stored == row.length - 1, (
                f"round {self.rounds}: the target's cache holds {stored} rows for {row.length} committed tokens"
            )
        for cache, whose in ((parts.cache, "the target's"), *((each, "a drafter's") for each in parts.drafter_caches)):
            network = parts.network if whose == "the target's" else _network(cache)
            entry = None if network is None or network.reads_tokens else _entry(parts)
            _compare(cache, network, batch, whose, self.rounds, entry)


def check_rollback(subject: Subject) -> None:
    """200 rounds of random verdicts: lengths, and the contents of every slot cache, are those of a fresh reading."""
    target = subject.target()
    requests = greedy(prompts(12, target.vocab_size, longest=20), 120)
    expected = plain_texts(subject, target, greedy(prompts(12, target.vocab_size, longest=20), 60))
    for toy in drafters(subject, requests, expected):
        watch = CacheWatch()
        with subject.pipeline(target, config={"engine.max_rows": 3}, beside=toy) as pipeline:
            watch.pipeline = pipeline  # type: ignore[assignment]
            engine = pipeline.engine
            engine.parts = replace(engine.parts, acceptor=AnyVerdict(), observers=(*engine.parts.observers, watch))
            waiting = list(requests)
            while watch.rounds < ROUNDS and waiting:
                texts(pipeline, [waiting.pop() for _ in range(min(6, len(waiting)))], every=2)


def _network(cache: KVCache) -> Network | None:
    """Whose keys and values a drafter's cache holds, if that can be told and read afresh."""
    network = getattr(cache, "network", None)
    return network if isinstance(network, Network) else None


def _entry(parts: Parts) -> Callable[[torch.Tensor], torch.Tensor]:
    """What enters a drafter's network that embeds no tokens: the target's hidden states, at the one layer it asks for.

    Returns int64[1, R] -> float[1, R, H], read by the target alone.
    """
    assert parts.drafter is not None
    (layer,) = parts.drafter.hidden_layers

    def read(tokens: torch.Tensor) -> torch.Tensor:
        fresh = SlotCache(parts.network)
        fresh.reserve(1, tokens.shape[1])
        inputs = layout.chain(tokens, torch.zeros(1, dtype=torch.long, device=tokens.device), fresh.capacity)
        layers = fresh.layers(slice(0, 1), fresh.capacity)
        return parts.network.forward(inputs, layers, hidden_layers=(layer,)).hidden[layer]

    return read


@torch.inference_mode()
def _compare(
    cache: KVCache,
    network: Network | None,
    batch: Batch,
    whose: str,
    rounds: int,
    entry: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> None:
    if network is None:
        return
    for row in batch.rows:
        count = cache.lengths[row.slot]
        if not count:
            continue
        fresh = SlotCache(network)
        fresh.reserve(1, count)
        tokens = torch.tensor([row.tokens[:count]], device=network.device).clamp(max=network.vocab_size - 1)
        start = torch.zeros(1, dtype=torch.long, device=network.device)
        hidden = None if entry is None else entry(tokens)
        network.forward(
            layout.chain(tokens, start, fresh.capacity, hidden=hidden),
            fresh.layers(slice(0, 1), fresh.capacity),
            last_logits_only=True,
        )
        stored = cache.layers(slice(row.slot, row.slot + 1), cache.extent(count))
        wanted = fresh.layers(slice(0, 1), fresh.capacity)
        for layer, (ours, theirs) in enumerate(zip(stored, wanted, strict=True)):
            for have, want, what in zip(ours, theirs, ("keys", "values"), strict=True):
                if not want.numel():
                    continue
                off = (have[:, :, :count] - want[:, :, :count]).abs().amax((0, 1, 3))
                wrong = (off > TOLERANCE).nonzero()
                assert not len(wrong), (
                    f"round {rounds}: {whose} cache differs from a fresh reading of the {count} tokens it holds: "
                    f"{what} of layer {layer}, first at token {int(wrong[0])}, by {float(off.max()):.2g}"
                )
