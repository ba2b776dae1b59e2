"""What rounds with some trees cost on this device, in the back end that they run in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from fastllm_core import Pipeline, RunReport

from ..tree import Tree

if TYPE_CHECKING:
    from ..drafter import MedusaDrafter

WARM_UP: Final = 8
"""New tokens of a first text, in which a back end prepares itself and memory is touched."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of a round, one for each repeat."""

    verify: Sequence[float]
    rounds: Sequence[float]
    """Of the whole round: drafting, verification, acceptance and what is around them."""

    @property
    def verification(self) -> float:
        """Seconds, the median."""
        return median(self.verify)

    @property
    def round(self) -> float:
        """Seconds of a whole round, the median."""
        return median(self.rounds)


def costs(
    medusa: Pipeline,
    plain: Pipeline,
    trees: Sequence[Tree],
    prompts: Sequence[Any],
    new_tokens: int,
    repeats: int,
    tell: Callable[[], None] = lambda: None,
) -> list[Cost]:
    """Of plain decoding, then of every tree: all take turns, so that a drifting machine is fair to them.

    prompts: decoded side by side.  tell: called after every text, of which there are (trees + 1) x (repeats + 1).
    """
    found: list[list[RunReport]] = [[] for _ in range(len(trees) + 1)]
    for repeat in range(repeats + 1):
        for reports, tree in zip(found, [None, *trees], strict=True):
            count = new_tokens if repeat else WARM_UP
            report = _run(plain if tree is None else medusa, tree, prompts, count)
            if repeat:
                reports.append(report)
            tell()
    return [_cost(reports) for reports in found]


def _run(pipeline: Pipeline, tree: Tree | None, prompts: Sequence[Any], count: int) -> RunReport:
    """One run of the engine, by itself."""
    if tree is not None:
        drafter: MedusaDrafter = pipeline.drafter  # type: ignore[assignment]
        drafter.draw(tree)
    engine = pipeline.engine
    before, rounds = dict(engine.report.time), engine.report.rounds
    pipeline.generate(prompts, max_new_tokens=count, temperature=0.0, ignore_eos=True)
    time = {phase: seconds - before.get(phase, 0.0) for phase, seconds in engine.report.time.items()}
    return RunReport(rounds=engine.report.rounds - rounds, time=time)


def _cost(reports: Sequence[RunReport]) -> Cost:
    whole = [sum(report.time[phase] for phase in ("draft", "verify", "accept", "rest")) for report in reports]
    return Cost(
        [report.time["verify"] / report.rounds for report in reports],
        [seconds / report.rounds for seconds, report in zip(whole, reports, strict=True)],
    )
