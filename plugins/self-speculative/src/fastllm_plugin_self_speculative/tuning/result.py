"""What a search found: as a file that the method reads, and for people."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..skipfile import FORMAT, VERSION
from ..skipset import SkipSet
from .costs import Costs
from .race import Measured as Figures
from .study import best_of
from .trial import Trial

if TYPE_CHECKING:
    from fastllm_core import Pipeline, TargetIdentity

    from .setup import Setup
    from .wishes import Wishes

LIBRARIES: Final = ("fastllm-core", "fastllm-plugin-self-speculative", "torch", "transformers", "optuna")


@dataclass(slots=True)
class Outcome:
    """What a session found."""

    best: Trial
    pays: bool
    figures: Sequence[Figures] = ()
    """Of the finalists that were raced, the best first."""
    raced: Sequence[Trial] = ()
    histories: Mapping[str, list[Trial]] = field(default_factory=dict)


def result_of(
    wishes: Wishes, outcome: Outcome, setup: Setup, identity: TargetIdentity, plain: Pipeline
) -> dict[str, Any]:
    """The result file: a skip set that the method reads, and everything that it came from."""
    best, costs = outcome.best, setup.costs
    chosen = best.skipped if outcome.pays else SkipSet()
    predicted = costs.speedup(best.skipped, best.score.acceptance, best.score.length)
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": asdict(identity),
        "attention": sorted(chosen.attention),
        "mlp": sorted(chosen.mlp),
        "draft_length": best.score.length if outcome.pays else None,
        "pays": outcome.pays,
        "best": outcome.figures[0].ratio if outcome.figures else predicted,
        "tried": {
            "attention": sorted(best.skipped.attention),
            "mlp": sorted(best.skipped.mlp),
            "phase": best.phase,
            "acceptance": best.score.acceptance,
            "draft_cost": best.score.cost,
            "draft_length": best.score.length,
            "predicted_speedup": predicted,
        },
        "raced": [
            {"attention": sorted(trial.skipped.attention), "mlp": sorted(trial.skipped.mlp), **figures.to_json()}
            for trial, figures in zip(outcome.raced, outcome.figures, strict=True)
        ],
        "objective": wishes.objective,
        "space": wishes.space,
        "searches": {
            name: {"trials": len(history), "best": best_of(history).value}
            for name, history in outcome.histories.items()
        },
        "seed": wishes.seed,
        "costs": costs.to_json(),
        "prompts": len(setup.texts),
        "new_tokens": wishes.new_tokens,
        "device": plain.device.description,
        "dtype": str(plain.target.dtype).removeprefix("torch."),
        "forwards": plain.backend.summary,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of Python, and of what a search rests on."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def report(outcome: Outcome, costs: Costs, path: Path) -> list[str]:
    """What was found, line by line.  path: of the result file."""
    best = outcome.best
    if not best.skipped:
        return ["nothing was tried but the whole model; give more trials"]
    predicted = costs.speedup(best.skipped, best.score.acceptance, best.score.length)
    lines = [
        f"best set: skips {best.skipped}",
        f"acceptance {best.score.acceptance:.3f}, a drafted token costs {best.score.cost:.2f} of a plain one; "
        f"predicted {predicted:.2f} times plain decoding's speed, drafting {best.score.length}",
    ]
    for trial, found in zip(outcome.raced, outcome.figures, strict=True):
        lines.append(
            f"measured, {len(trial.skipped)} skipped: {found.ratio:.2f} times ({found.low:.2f} to {found.high:.2f}), "
            f"{found.tokens_per_round:.2f} tokens a round, acceptance {found.acceptance:.2f}, {found.same} of "
            f"{found.texts} texts the same"
        )
    if not outcome.pays:
        ratio = outcome.figures[0].ratio if outcome.figures else predicted
        return [
            *lines,
            f"no skip set surely pays: the best one runs at {ratio:.2f} times plain decoding's speed. With {path} the "
            "method drafts nothing",
        ]
    return [
        *lines,
        f'use it:  method = "self-speculative"  draft.length = {best.score.length}  '
        f'options.self-speculative.skip = "{path}"',
    ]
