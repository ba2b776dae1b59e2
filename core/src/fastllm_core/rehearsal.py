"""A short run in which every forward of a configuration comes up, so that all of them are compiled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from .controllers import Controller, Fixed

if TYPE_CHECKING:
    from .pipeline import Pipeline


def rehearse(pipeline: Pipeline, batch: bool) -> None:
    """Decode a little in every way: with and without drafts, one text and, for a batch, several.

    The pipeline is left with another controller, and is good for nothing else.
    """
    engine = pipeline.engine
    engine.parts = replace(engine.parts, controller=InTurn(engine.parts.controller, engine.draft_length))
    new = 4 * engine.draft_length + 7  # no multiple of anything: rounds that are one call leave some over
    prompt = [(3 + index % 4) % pipeline.target.vocab_size for index in range(12)]  # repeats itself, for look-up
    for prompts in [[prompt], [prompt, prompt[1:]]] if batch else [[prompt]]:
        for speculate in (True, False):
            pipeline.generate(prompts, max_new_tokens=new, temperature=0, speculate=speculate, ignore_eos=True)


class InTurn(Fixed):
    """Two rounds with the longest drafts, then none, then the same with shorter ones, which may be drafted otherwise.

    Behind a round without, a drafter has two tokens to read, whatever was accepted.
    """

    def __init__(self, own: Controller, longest: int) -> None:
        """own: where drafts end is its word.  longest: tokens to draft."""
        super().__init__(longest)
        self.own, self.rounds = own, 0

    def lengths(self, rows: Sequence[int], expected: Sequence[float] | None = None) -> list[int]:
        """The longest, a shorter one, or none."""
        self.rounds += 1
        shorter = max(self.longest - 1, 1)
        return [(0, self.longest, self.longest, 0, shorter, shorter)[self.rounds % 6]] * len(rows)

    def thresholds(self, rows: Sequence[int], sampled: Sequence[bool]) -> list[float]:
        """The configured controller's."""
        return self.own.thresholds(rows, sampled)
