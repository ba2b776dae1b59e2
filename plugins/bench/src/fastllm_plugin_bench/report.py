"""What a benchmark found, as plain data: written as `report.json`, from which every other form is made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fastllm_core import RequestError

from .cost import Cost
from .equality import Equality
from .statistics import Ratio

FORMAT: Final = 1
FILE: Final = "report.json"
OVERALL: Final = "overall"


@dataclass(frozen=True, slots=True)
class Speed:
    """Speed of an arm in one category, or overall."""

    jobs: int
    tokens: int
    tokens_per_s: float
    """After the prompt: tokens that came after every row had its first."""
    prompt_s: float
    """Mean seconds of a job until every row had its first tokens."""
    per_round: float
    ratio: Ratio | None
    """Times plain decoding, after the prompt."""
    whole_ratio: Ratio | None
    """Times plain decoding, prompt included."""


@dataclass(slots=True)
class ArmReport:
    """What was found of an arm in a case."""

    label: str
    kind: str
    about: Mapping[str, Any]
    status: str
    """reference, identical, near-ties, sampled, lossy, differs (a peer), FAILED, or not applicable."""
    verdict: str
    """The same in words."""
    speed: dict[str, Speed] = field(default_factory=dict)
    """By category, and overall."""
    by_repeat: list[float] = field(default_factory=list)
    """The overall ratio of each repeat."""
    equality: Equality | None = None
    drafted_at: list[int] = field(default_factory=list)
    accepted_at: list[int] = field(default_factory=list)
    row_rounds: int = 0
    rounds: int | None = None
    time: dict[str, float] = field(default_factory=dict)
    forward_time: dict[str, float] = field(default_factory=dict)
    against: dict[str, Ratio] = field(default_factory=dict)
    """A method of fastllm: times the speed of each peer, after the prompt."""
    resumed: float | None = None
    """Share of the rows that verification needed whose first layers drafting had run; None where it never does."""
    cost: Cost | None = None
    predicted: float | None = None
    memory: int = 0
    """Bytes at the peak: the target's weights, what the arm holds, and what a job needs above that."""
    limit: str = ""


@dataclass(frozen=True, slots=True)
class CaseReport:
    """All arms under the same circumstances."""

    batch: int
    temperature: float
    rows: float
    """Mean rows of a job: fewer than the batch size where a category's questions do not fill it."""
    arms: list[ArmReport]


def write(report: Mapping[str, Any], folder: Path) -> Path:
    """`report.json` in a folder."""
    path = folder / FILE
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return path


def read(path: Path) -> dict[str, Any]:
    """A report from its file or the folder that has it. Raises RequestError if it is none."""
    file = path / FILE if path.is_dir() else path
    try:
        report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RequestError(f"{file}: is no report of fastllm bench: {reason}") from error
    if not isinstance(report, dict) or report.get("format") != FORMAT:
        raise RequestError(f"{file}: is no report of this version of fastllm bench; run the benchmark again")
    return report
