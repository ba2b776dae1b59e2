"""The raw events of a run, a JSON line for each job, appended as they happen: a stopped run goes on from there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fastllm_core import Journal, RequestError

from .arm import JobRun, RowRun, Step

FILE = "events.jsonl"
Key = tuple[int, int, int, int, str]
"""Case, repeat, group, turn, arm."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One job of one arm."""

    case: int
    repeat: int
    group: int
    turn: int
    arm: str
    questions: tuple[str, ...]
    """Who asked, row by row."""
    prompt_tokens: tuple[int, ...]
    run: JobRun | None
    """None if it failed."""
    memory: int = 0
    """Bytes that were needed above what was in use before."""
    error: str | None = None

    @property
    def key(self) -> Key:
        """Which job of the plan it is."""
        return (self.case, self.repeat, self.group, self.turn, self.arm)


@dataclass(slots=True)
class Notes:
    """What else the report must know and only a running benchmark sees."""

    weights: int = 0
    """Bytes of the target."""
    loaded: dict[str, int] = field(default_factory=dict)
    """Bytes that each arm added when it was loaded and warmed up."""


class Record:
    """The file of a run, open for appending; also a context manager."""

    def __init__(self, folder: Path, plan: Mapping[str, Any]) -> None:
        """Open or continue the record of a plan in a folder. Raises RequestError if it is another plan's."""
        self.path = folder / FILE
        self.done: dict[Key, Measured] = {}
        self._journal = Journal(self.path)
        lines = self._journal.lines
        if lines and json.loads(lines[0]) != json.loads(json.dumps({"plan": plan})):
            raise RequestError(
                f"--output {folder}: holds the events of another benchmark; name another folder, or say --fresh to "
                "throw them away"
            )
        for line in lines[1:]:
            measured = from_json(json.loads(line))
            self.done[measured.key] = measured
        if not lines:
            self._journal.write({"plan": plan})

    def add(self, measured: Measured) -> None:
        """Append a job."""
        self.done[measured.key] = measured
        self._journal.write(to_json(measured))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._journal.close()


def to_json(measured: Measured) -> dict[str, Any]:
    """A job as a line; steps as lists, since there are many."""
    value = {name: item for name, item in asdict(measured).items() if name != "run"}
    run = measured.run
    if run is not None:
        value["run"] = {
            "seconds": run.seconds,
            "rounds": run.rounds,
            "time": dict(run.time),
            "forward_time": dict(run.forward_time),
            "verified_rows": run.verified_rows,
            "resumed_rows": run.resumed_rows,
            "rows": [
                {
                    "near_ties_at": row.near_ties_at,
                    "steps": [[step.at, step.tokens, step.drafted, step.accepted] for step in row.steps],
                }
                for row in run.rows
            ],
        }
    return value


def from_json(value: Mapping[str, Any]) -> Measured:
    """The job of a line."""
    told = value.get("run")
    run = None
    if told is not None:
        rows = [RowRun(list(_steps(row["steps"])), tuple(row["near_ties_at"])) for row in told["rows"]]
        resumed = told.get("verified_rows", 0), told.get("resumed_rows", 0)
        run = JobRun(rows, told["seconds"], told["rounds"], told["time"], told["forward_time"], *resumed)
    plain = {name: item for name, item in value.items() if name not in ("run", "questions", "prompt_tokens")}
    return Measured(**plain, questions=tuple(value["questions"]), prompt_tokens=tuple(value["prompt_tokens"]), run=run)


def read(path: Path) -> list[Measured]:
    """Every job of a record, for a recount."""
    return [from_json(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()[1:]]


def _steps(told: Iterable[Any]) -> Iterable[Step]:
    return (Step(at, tuple(tokens), tuple(drafted), accepted) for at, tokens, drafted, accepted in told)
