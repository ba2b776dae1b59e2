"""A search on disk: a line that says what is searched, then a line for each trial, written as they come."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from fastllm_core import ConfigError, Journal, RequestError

from ..skipset import SkipSet
from .objective import Objective
from .strategy import Strategy
from .trial import Score, Trial

VERSION: Final = 1


class Study:
    """The trials of one search, in a file that an interrupted search goes on from; also a context manager.

    What is written is never asked for again, and what comes next follows from it alone. So a search that was stopped
    and went on has the same history as one that was not, wherever its scores are deterministic.
    """

    def __init__(self, path: Path, plan: Mapping[str, Any]) -> None:
        """Open or continue a file. plan: everything that the search follows from, as JSON values.

        Raises RequestError if the file holds another search, ConfigError if it is corrupt.
        """
        self.path = path
        self.history: list[Trial] = []
        self._journal = Journal(path)
        lines = self._journal.lines
        asked = json.loads(json.dumps({"version": VERSION, "plan": plan}))
        if lines:
            self._check_plan(self._parsed(lines[0], 1), asked)
        for number, line in enumerate(lines[1:]):
            self.history.append(self._trial(line, number))
        if not lines:
            self._journal.write(asked)

    def run(
        self,
        strategy: Strategy,
        objective: Objective,
        trials: int,
        *,
        goes_on: Callable[[], bool] = lambda: True,
        tell: Callable[[Trial], None] = lambda trial: None,
    ) -> list[Trial]:
        """Search until there are `trials` trials, nothing is left to try, or `goes_on` says no. Returns all of them.

        A set that was tried before is not tried again: its trial has the old figures.
        """
        known: dict[SkipSet, Score] = {trial.skipped: trial.score for trial in self.history}
        for trial in self.history:
            tell(trial)
        while len(self.history) < trials and goes_on():
            step = strategy.next(self.history)
            if step is None:
                break
            phase, skipped = step
            if skipped not in known:
                known[skipped] = objective.score(skipped)
            trial = Trial(len(self.history), phase, skipped, known[skipped])
            self.history.append(trial)
            self._journal.write(trial.to_json())
            tell(trial)
        return self.history

    def _check_plan(self, found: Any, asked: Mapping[str, Any]) -> None:
        if not isinstance(found, dict) or "plan" not in found:
            raise self._corrupt(1, "it does not say what is searched")
        if found.get("version") != VERSION:
            raise RequestError(f"study {self.path}: it is of another version; say --fresh to throw it away")
        different = [key for key in asked["plan"] if asked["plan"][key] != found["plan"].get(key)]
        if different:
            raise RequestError(
                f"study {self.path}: holds another search (different: {', '.join(different)}); name another folder "
                "with --output, or say --fresh to throw it away"
            )

    def _trial(self, line: str, number: int) -> Trial:
        try:
            trial = Trial.read(self._parsed(line, number + 2))
        except (KeyError, TypeError, ValueError) as error:
            raise self._corrupt(number + 2, f"it is no trial ({type(error).__name__}: {error})") from error
        if trial.number != number:
            raise self._corrupt(number + 2, f"trial {number} was expected, not {trial.number}")
        return trial

    def _parsed(self, line: str, number: int) -> Any:
        try:
            return json.loads(line)
        except ValueError as error:
            raise self._corrupt(number, str(error)) from error

    def _corrupt(self, line: int, reason: str) -> ConfigError:
        return ConfigError(
            f"study {self.path}, line {line}: {reason}; delete what follows line {line - 1}, or start anew with --fresh"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._journal.close()


def best_of(history: list[Trial]) -> Trial:
    """The trial with the largest value, the first of equals."""
    return max(history, key=lambda trial: (trial.value, -trial.number))


def best_so_far(history: list[Trial]) -> list[float]:
    """The largest value up to each trial."""
    values: list[float] = []
    for trial in history:
        values.append(max(trial.value, values[-1] if values else trial.value))
    return values
