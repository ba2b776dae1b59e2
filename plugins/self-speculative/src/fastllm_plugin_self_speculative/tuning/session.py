"""A whole search: from what was asked to texts, costs, studies, a race of the best, and the files that stay."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fastllm_core import RequestError, TargetIdentity, load

from .agreement import Agreement
from .objective import Accepted, Measured, Objective, Predicted
from .plot import picture
from .race import Race
from .result import Outcome, report, result_of
from .setup import SETUP, Setup, default_folder, set_up
from .space import SPACES
from .strategy import strategy_of
from .study import Study, best_of
from .trial import Trial
from .wishes import Wishes

RESULT, PLOT = "skip.json", "search.svg"
VALUE_NAMES: Final = {
    "predicted": "predicted speed against plain decoding",
    "measured": "measured speed against plain decoding",
    "acceptance": "acceptance (below 0: costs too much)",
}


def session(wishes: Wishes) -> dict[str, Any]:
    """Search, race the best, write the files and say what was found. Returns what the result file holds."""
    config = wishes.config.model_copy(update={"method": "plain", "options": {}, "use": []})
    console = Console(stderr=True)
    with load(config=config, trust_remote_code=wishes.trust_remote_code) as plain:
        network = plain.engine.parts.network
        identity = TargetIdentity.of(network)
        folder = wishes.output or default_folder(wishes, identity)
        if wishes.fresh and folder.exists():
            _throw_away(folder)
        setup = set_up(wishes, plain, identity, folder / SETUP, console)
        agreement = Agreement(plain.target, network, setup.texts, wishes.longest)
        race = Race(plain, [text.prompt for text in setup.texts], wishes.new_tokens, wishes.repeats)
        histories = _searched(wishes, setup, folder, _objective(wishes, setup, agreement, race))
        outcome = _finished(wishes, histories, race, console)
        result = result_of(wishes, outcome, setup, identity, plain)
    (folder / RESULT).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    mark = None if wishes.objective == "acceptance" else 1.0
    (folder / PLOT).write_text(picture(histories, VALUE_NAMES[wishes.objective], mark), encoding="utf-8")
    for line in report(outcome, setup.costs, folder / RESULT):
        console.print(line, highlight=False, soft_wrap=True)
    return result


def _throw_away(folder: Path) -> None:
    if any(folder.iterdir()) and not (folder / SETUP).is_file():
        raise RequestError(f"--output {folder}: holds no search, and --fresh would delete it; name another folder")
    shutil.rmtree(folder)


def _objective(wishes: Wishes, setup: Setup, agreement: Agreement, race: Race) -> Objective:
    if wishes.objective == "acceptance":
        return Accepted(agreement, setup.costs, wishes.longest, wishes.most)
    predicted = Predicted(agreement, setup.costs, wishes.longest)
    return Measured(predicted, race.ratio) if wishes.objective == "measured" else predicted


def _searched(wishes: Wishes, setup: Setup, folder: Path, objective: Objective) -> dict[str, list[Trial]]:
    """The history of every search, each with the whole budget."""
    histories = {}
    for name in wishes.searches:
        strategy = strategy_of(name, SPACES[wishes.space](setup.costs.layers), wishes.seed)
        plan = {
            "search": name,
            "space": wishes.space,
            "objective": wishes.objective,
            "seed": wishes.seed,
            "most": wishes.most if wishes.objective == "acceptance" else None,
            "setup": hashlib.sha256((folder / SETUP).read_bytes()).hexdigest(),
        }
        with ExitStack() as stack:
            study = stack.enter_context(Study(folder / f"{name}.jsonl", plan))
            tell = stack.enter_context(_watched(name, wishes.trials))
            deadline = None if wishes.minutes is None else time.monotonic() + 60.0 * wishes.minutes
            histories[name] = study.run(
                strategy,
                objective,
                wishes.trials,
                goes_on=lambda deadline=deadline: deadline is None or time.monotonic() < deadline,  # type: ignore[misc]
                tell=tell,
            )
    return histories


@contextmanager
def _watched(name: str, trials: int) -> Iterator[Callable[[Trial], None]]:
    """A bar on stderr with the phase and the best value so far."""
    columns = (
        TextColumn(name),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[now]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(name, total=trials, now="")
        best: list[Trial] = []

        def tell(trial: Trial) -> None:
            if not best or trial.value > best[0].value:
                best[:] = [trial]
            now = f"{trial.phase}; best {best[0].value:.3f} with {len(best[0].skipped)} skipped"
            progress.update(task, advance=1, now=now)

        yield tell


def _finished(wishes: Wishes, histories: dict[str, list[Trial]], race: Race, console: Console) -> Outcome:
    """Race the best sets of all searches: one pays if it was faster than plain decoding in every repeat.

    Without a race, the objective's word is taken.
    """
    trials = [trial for history in histories.values() for trial in history if trial.skipped]
    ordered = list({trial.skipped: trial for trial in sorted(trials, key=lambda trial: trial.value)}.values())[::-1]
    if not ordered:
        whole = best_of([trial for history in histories.values() for trial in history])
        return Outcome(whole, False, histories=histories)
    raced = ordered[: wishes.finalists]
    if not raced:
        pays = wishes.objective == "acceptance" or ordered[0].value > 1.0
        return Outcome(ordered[0], pays, histories=histories)
    with console.status(f"racing {len(raced)} sets against plain decoding"):
        figures = race.run([(trial.skipped, trial.score.length) for trial in raced])
    order = sorted(range(len(raced)), key=lambda index: -figures[index].ratio)
    figures, raced = [figures[index] for index in order], [raced[index] for index in order]
    return Outcome(raced[0], figures[0].low > 1.0, figures, raced, histories)
