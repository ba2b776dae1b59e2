"""Measuring `Costs` in real rounds, in the back end that they run in.

Forwards that are timed alone, one kind after the other, look cheaper than they are: in a round drafts and verification
take turns and drive each other's weights out of the caches, the more so the smaller the draft; and there is work
around them. So rounds are timed as they are.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any, Final

import torch

from fastllm_core import Batch, Draft, Drafter, Network

from ..skipset import SkipSet
from .costs import Costs
from .race import rival

if TYPE_CHECKING:
    from fastllm_core import Pipeline

log = logging.getLogger("fastllm")

TIMED: Final = 9
"""Rounds of each kind, the median of which counts."""
TOKENS: Final = 48
"""Of a text; as many texts are written as it takes."""
UNSTEADY: Final = 1.3
"""Ratio of the quartiles of the same work from which on the machine is called busy."""

Kind = tuple[SkipSet, int]
"""A round: what its draft leaves out, and its length."""


def measure(pipeline: Pipeline, longest: int, prompt: str) -> Costs:
    """Time what a round is made of.

    pipeline: decodes plainly.  longest: tokens of the longest draft.  prompt: what texts are written after.

    Attention as a whole is the difference between drafts with and without it, and each layer's has the share of its
    weights: single sub-layers are too quick to be timed one by one. In a compiled back end that is four programs more.
    """
    every = range(pipeline.engine.parts.network.layers)
    whole, empty = SkipSet(), SkipSet.of(every, every)
    probes = [whole, SkipSet.of(every, []), SkipSet.of([], every), empty]
    lengths = sorted({1, longest})
    widths = sorted({0, *(1 << power for power in range(8) if 1 << power < longest)} - {1})
    kinds = [(skipped, length) for skipped in probes for length in lengths] + [(empty, length) for length in widths]
    drafts, behind = _timed(pipeline, kinds, prompt)

    shortest, longer = lengths[0], lengths[-1]
    over = max(longer - shortest, 1)
    once = [drafts[each, shortest] - (drafts[each, longer] - drafts[each, shortest]) / over for each in probes]
    begin = max(sum(once) / len(once), 0.0) if longer > shortest else 0.0
    step, no_attention, no_mlp, nothing = ((drafts[each, longer] - begin) / longer for each in probes)
    weights = weights_of(pipeline)
    attention, mlp = max(step - no_attention, 0.0), max(step - no_mlp, 0.0)
    rest = max(min(nothing, step - attention - mlp), 0.0)
    return Costs(
        attention=_shared(attention, weights["attention"]),
        mlp=_shared(mlp, weights["mlp"]),
        rest=rest,
        rows=behind,
        shell=max(step - attention - mlp - rest, 0.0) / len(every),
        begin=begin,
    )


def weights_of(pipeline: Pipeline) -> dict[str, list[int]]:
    """Bytes of the parameters of each layer's attention and MLP: what the views without them lack."""
    network = pipeline.engine.parts.network

    def lacking(skipped: SkipSet) -> int:
        port = Network(pipeline.target, adapters=(network.adapter,))
        view = port.view(port.whole._replace(skip_attention=skipped.attention, skip_mlp=skipped.mlp))
        left = {id(each) for each in view.parameters()}
        return sum(each.numel() * each.element_size() for each in port.model.parameters() if id(each) not in left)

    every = range(network.layers)
    return {
        "attention": [lacking(SkipSet.of([layer], [])) for layer in every],
        "mlp": [lacking(SkipSet.of([], [layer])) for layer in every],
    }


def _shared(seconds: float, weights: Sequence[int]) -> tuple[float, ...]:
    return tuple(seconds * weight / max(sum(weights), 1) for weight in weights)


def _timed(pipeline: Pipeline, kinds: Sequence[Kind], prompt: str) -> tuple[dict[Kind, float], dict[int, float]]:
    """Seconds of drafts by their kind, and of the rest of a round by the rows that it verifies."""
    longest = max(length for _, length in kinds)
    tokens = max(TOKENS, longest + 2)  # the last of a text need no draft
    with rival(pipeline, kinds[-1][0], longest) as drafting:
        turns = Turns(kinds)
        drafter = Probe(drafting.engine.parts.drafter, turns)
        drafting.engine.parts = replace(drafting.engine.parts, drafter=drafter, controller=turns)
        for rounds in (1, TIMED):  # the first compile what must be, and bring the weights near
            turns.clear()
            while not turns.had(rounds):
                drafting.generate(prompt, max_new_tokens=tokens, temperature=0.0, ignore_eos=True)
        if "but eager for" in drafting.backend.summary:
            log.warning("drafts would run eagerly beside compiled forwards; compile them: --set forward=compiled")
    low, _, high = quantiles(turns.rests[0], n=4)
    if high > UNSTEADY * low:
        log.warning("this machine is busy: what was timed for the costs of a round does not agree with itself")
    drafts = {kind: median(times) for kind, times in turns.drafts.items()}
    behind = {length + 1: median(times) for length, times in turns.rests.items()}
    return drafts, {rows: max(seconds, behind[1]) for rows, seconds in behind.items()}


class Turns:
    """A controller by which every kind of round takes its turn, so that a drifting machine slows all alike."""

    weighs = False

    def __init__(self, kinds: Sequence[Kind]) -> None:
        """kinds: what rounds to run; one drafts nothing."""
        self.kinds = kinds
        self.drafts: dict[Kind, list[float]] = defaultdict(list)
        """Seconds of each kind's drafts."""
        self.rests: dict[int, list[float]] = defaultdict(list)
        """Seconds of a round behind its draft, by the draft's length."""
        self._turn = 0

    @property
    def skipped(self) -> SkipSet:
        """What the coming round's draft leaves out."""
        return self.kinds[self._turn][0]

    def clear(self) -> None:
        """Forget all times."""
        self.drafts.clear()
        self.rests.clear()

    def had(self, rounds: int) -> bool:
        """Whether each kind has had so many turns."""
        return all(len(self.drafts[kind] if kind[1] else self.rests[0]) >= rounds for kind in self.kinds)

    def lengths(self, rows: Sequence[int], expected: Sequence[float] | None = None) -> list[int]:
        """See `Controller`."""
        return [self.kinds[self._turn][1]] * len(rows)

    def thresholds(self, rows: Sequence[int], sampled: Sequence[bool]) -> list[float]:
        """See `Controller`."""
        return [0.0] * len(rows)

    def observe(self, round_: Any) -> None:
        """Note the times. A draft that was cut short, at a text's end, has another turn."""
        kind = self.kinds[self._turn]
        if round_.drafted == (kind[1],):
            if kind[1]:
                self.drafts[kind].append(round_.draft_seconds)
            self.rests[kind[1]].append(round_.verify_seconds + round_.rest_seconds)
            self._turn = (self._turn + 1) % len(self.kinds)

    def release(self, row: int) -> None:
        """See `Controller`."""

    def state(self, row: int) -> dict[str, float]:
        """See `Controller`."""
        return {}


class Probe(Drafter):
    """Drafts with what the turn says, the whole model too, and waits until the draft is there."""

    def __init__(self, drafter: Any, turns: Turns) -> None:
        """drafter: the `SkippingDrafter` of a pipeline."""
        self.drafter, self.turns = drafter, turns
        self.proposal = drafter.proposal

    def propose(self, batch: Batch) -> Draft:
        """See `Drafter`."""
        self.drafter.skipped = self.turns.skipped
        draft: Draft = self.drafter.draft(batch)
        if batch.device.type == "cuda":
            torch.cuda.synchronize(batch.device)
        return draft
