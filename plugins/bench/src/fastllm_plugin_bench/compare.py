"""What changed between two runs: speeds, acceptance, texts, and what they ran on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import exp, hypot, log
from typing import Any

from . import wording
from .report import OVERALL
from .statistics import Ratio

Report = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Change:
    """One method in one case, in both runs."""

    case: str
    label: str
    before: Mapping[str, Any] | None
    """The first run's; None if it did not take part."""
    after: Mapping[str, Any] | None

    @property
    def speed(self) -> Ratio | None:
        """How its speed relative to plain decoding changed, with an interval; None where one run has none.

        The runs are independent, so the relative errors of their ratios add in squares.
        """
        ratios = [_ratio(arm) for arm in (self.before, self.after)]
        if ratios[0] is None or ratios[1] is None:
            return None
        first, second = ratios[0], ratios[1]
        change = log(second["value"] / first["value"])
        down = hypot(log(second["value"] / second["low"]), log(first["high"] / first["value"]))
        up = hypot(log(second["high"] / second["value"]), log(first["value"] / first["low"]))
        return Ratio(exp(change), exp(change - down), exp(change + up))

    @property
    def verdict(self) -> str:
        """What to say of it."""
        if self.before is None or self.after is None:
            return "only in the second run" if self.before is None else "only in the first run"
        words = []
        if self.before["status"] != self.after["status"]:
            words.append(f"{self.before['status']} became {self.after['status']}")
        speed = self.speed
        if speed is not None:
            faster = "faster" if speed.low > 1 else "slower" if speed.high < 1 else "no sure change"
            words.append(faster)
        return ", ".join(words) or "as before"


def changes(first: Report, second: Report) -> list[Change]:
    """Every method of every case that either run has."""
    before, after = _by_place(first), _by_place(second)
    places = dict.fromkeys((*before, *after))
    return [Change(case, label, before.get((case, label)), after.get((case, label))) for case, label in places]


def surroundings(first: Report, second: Report) -> Iterator[str]:
    """What else differs between the runs, and may be the cause."""
    for name in ("model", "suite", "plan", "hardware", "versions"):
        old, new = _flat(first[name]), _flat(second[name])
        for key in dict.fromkeys((*old, *new)):
            if key not in ("load_at_start", "skipped") and old.get(key) != new.get(key):
                yield f"{name}{' ' + key if key else ''}: {old.get(key, 'none')} -> {new.get(key, 'none')}"


def _by_place(report: Report) -> dict[tuple[str, str], Mapping[str, Any]]:
    return {
        (f"batch {case['batch']}, temperature {case['temperature']:g}", arm["label"]): arm
        for case in report["cases"]
        for arm in case["arms"]
    }


def _ratio(arm: Mapping[str, Any] | None) -> Mapping[str, float] | None:
    speed = None if arm is None else wording.overall(arm)
    ratio: Mapping[str, float] | None = None if speed is None else speed["ratio"]
    return ratio if ratio and ratio["low"] > 0 else None


def _flat(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {"": value}


def as_json(first: Report, second: Report) -> dict[str, Any]:
    """The comparison, ready for JSON."""
    return {
        "surroundings": list(surroundings(first, second)),
        "changes": [
            {
                "case": change.case,
                "label": change.label,
                "before": _ratio(change.before),
                "after": _ratio(change.after),
                "change": None if change.speed is None else [change.speed.value, change.speed.low, change.speed.high],
                "tokens_per_round": [_per_round(change.before), _per_round(change.after)],
                "verdict": change.verdict,
            }
            for change in changes(first, second)
        ],
    }


def _per_round(arm: Mapping[str, Any] | None) -> float | None:
    return None if arm is None or not arm["speed"] else float(arm["speed"][OVERALL]["per_round"])
