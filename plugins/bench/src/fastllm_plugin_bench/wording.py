"""How figures are written, in every form of a report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from .report import OVERALL

ALARMING: Final = ("FAILED", "differs")
PHASES: Final = ("prefill", "draft", "verify", "accept", "rest")


def times(ratio: Mapping[str, float] | None) -> str:
    """`2.12x (2.05..2.20)`; a dash where there is none, no interval where everything was measured once."""
    if ratio is None:
        return "-"
    interval = f" ({ratio['low']:.2f}..{ratio['high']:.2f})" if ratio["low"] < ratio["high"] else ""
    return f"{ratio['value']:.2f}x{interval}"


def case_title(case: Mapping[str, Any]) -> str:
    """`batch 4, temperature 0`, and how many rows there really were if categories did not fill the batches."""
    fewer = f" ({case['rows']:.1f} rows on average)" if 0 < case["rows"] < case["batch"] else ""
    return f"batch {case['batch']}{fewer}, temperature {case['temperature']:g}"


def overall(arm: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """An arm's speed over all categories; None if it was not measured."""
    speed: Mapping[str, Any] | None = arm["speed"].get(OVERALL)
    return speed


def categories(case: Mapping[str, Any]) -> list[str]:
    """Categories of a case; none if there is only one, which is the whole."""
    names = list(dict.fromkeys(name for arm in case["arms"] for name in arm["speed"] if name != OVERALL))
    return names if len(names) > 1 else []


def megabytes(count: int) -> str:
    """`1,234 MB`."""
    return f"{count / 1e6:,.0f} MB"


def shares(time: Mapping[str, float], *, of: tuple[str, ...] = PHASES) -> dict[str, float]:
    """Each phase's share of a time split."""
    total = sum(time.get(phase, 0.0) for phase in of)
    return {phase: time.get(phase, 0.0) / total for phase in of} if total else {}


def acceptance(arm: Mapping[str, Any]) -> list[float]:
    """Share of the drafted tokens that were kept, by position."""
    pairs = zip(arm["accepted_at"], arm["drafted_at"], strict=True)
    return [accepted / drafted if drafted else 0.0 for accepted, drafted in pairs]


def parting(arm: Mapping[str, Any]) -> str:
    """Where a text parts from plain decoding's, in a sentence; empty if none does."""
    first = (arm["equality"] or {}).get("first")
    if not first:
        return ""
    tie = ", a near-tie" if first["near_tie"] else ""
    return (
        f"question {first['question']}, turn {first['turn'] + 1}, token {first['position'] + 1}{tie}: "
        f"after {first['before']!r} plain decoding goes on {first['plain']!r}, {arm['label']} {first['other']!r}"
    )


def split(arm: Mapping[str, Any]) -> str:
    """`draft 31 %, verify 58 %, ...` of the rounds; a dash where an arm does not say."""
    found = shares(arm["time"], of=PHASES[1:])
    return ", ".join(f"{phase} {share:.0%}" for phase, share in found.items() if share >= 0.005) or "-"


def explanation(arm: Mapping[str, Any]) -> list[str]:
    """Why an arm is as fast as it is, a line each, what matters most first."""
    speed = overall(arm)
    if speed is None:
        return []
    lines = []
    if arm["status"] in ALARMING or arm["status"] == "near-ties":
        lines.append(parting(arm) or arm["verdict"])
    if arm["cost"]:
        kept = " ".join(f"{share:.0%}" for share in acceptance(arm))
        lines.append(arm["limit"])
        lines.append(
            f"drafting a token costs {arm['cost']['ratio']:.2f} plain steps, verifying {arm['cost']['verify']:.2f}; "
            f"the cost model expects {arm['predicted']:.2f}x if verifying cost 1, measured {times(speed['ratio'])}"
        )
        lines.append(f"rounds: {split(arm)}; accepted by position: {kept}")
    if arm.get("resumed") is not None:
        lines.append(f"{arm['resumed']:.0%} of verified rows resumed behind the first layers, which drafting had run")
    whole = f"; with it {times(speed['whole_ratio'])}" if speed["whole_ratio"] else ""
    lines.append(f"prompt {speed['prompt_s'] * 1e3:.0f} ms a job{whole}; memory {megabytes(arm['memory'])}")
    if arm["against"]:
        lines.append("times the speed of " + ", ".join(f"{name} {times(it)}" for name, it in arm["against"].items()))
    return lines
