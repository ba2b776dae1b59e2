"""Curves of a run as SVG: no script, no network, no library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import ceil, floor, log10
from typing import Any, Final

from .state import State

WIDTH: Final = 640
PANEL: Final = 190
"""Height of a picture, its title and axis included."""
LEFT: Final = 52
RIGHT: Final = 16
TOP: Final = 28
BOTTOM: Final = 26
STYLE: Final = (
    "text{font:12px sans-serif;fill:#444}.title{font-weight:600}.grid{stroke:#ccc;stroke-width:.5}"
    "polyline{fill:none;stroke-width:2}svg{background:#fff}"
)
TRAINED: Final = "#7a9cc6"
HELD: Final = "#b3432b"
DRAFTS: Final = (HELD, "#c9883a", "#6b8f4e", "#4a7fa5", "#7d5ba6", "#555555")
"""Colours of the first draft, the second, ..."""
TOPS: Final = (1, 5)
"""How many of a draft's candidates are looked at."""

Line = tuple[str, str, Sequence[tuple[float, float]]]
"""Name, colour, points."""


def curves(state: State) -> str:
    """Loss, tokens per round, and acceptance under sampling, over steps."""
    held = [(float(each["step"]), each) for each in state.evaluations]
    panels: list[tuple[str, list[Line]]] = [
        (
            "loss",
            [
                ("training", TRAINED, [(float(step), loss) for step, loss in state.losses]),
                ("held out", HELD, [(step, each["loss"]) for step, each in held]),
            ],
        ),
        (
            "tokens per round, greedy, foretold",
            [("held out", HELD, [(s, each["tokens_per_round"]) for s, each in held])],
        ),
        ("chance that sampling accepts a draft", [("held out", HELD, [(s, each["overlap"]) for s, each in held])]),
    ]
    panels += [(name, _lines(state, name)) for name in _figures(state)]
    parts = [_panel(index * PANEL, title, lines) for index, (title, lines) in enumerate(panels)]
    height = PANEL * len(panels)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">'
        f"<style>{STYLE}</style>{''.join(parts)}</svg>\n"
    )


def _figures(state: State) -> list[str]:
    """Names of the method's own figures, and of what is made of its ranks."""
    last = state.evaluations[-1] if state.evaluations else {}
    return [*last.get("figures", {}), *(f"top-{top} of each draft" for top in TOPS if "accuracies" in last)]


def _lines(state: State, name: str) -> list[Line]:
    """A line for a number, or one for each draft."""
    found: dict[str, list[tuple[float, float]]] = {}
    for each in state.evaluations:
        value = figure(each, name)
        for label, number in enumerate(value) if isinstance(value, list) else [("held out", value)]:
            found.setdefault(str(label + 1) if isinstance(label, int) else label, []).append((each["step"], number))
    return [(label, DRAFTS[index % len(DRAFTS)], points) for index, (label, points) in enumerate(found.items())]


def figure(evaluation: Mapping[str, Any], name: str) -> Any:
    """A figure of an evaluation by name: a number, or a list of one for each draft."""
    if name in evaluation.get("figures", {}):
        return evaluation["figures"][name]
    top = int(name.removeprefix("top-").split()[0])
    return [sum(shares[:top]) for shares in evaluation["accuracies"]]


def _panel(top: float, title: str, lines: Sequence[Line]) -> str:
    points = [point for _, _, line in lines for point in line]
    if not points:
        return ""
    last = max(x for x, _ in points) or 1.0
    marks = _marks(min(y for _, y in points), max(y for _, y in points))
    low, high = marks[0], marks[-1]
    across = (WIDTH - LEFT - RIGHT) / last
    up = (PANEL - TOP - BOTTOM) / (high - low)
    bottom = top + PANEL - BOTTOM
    parts = [f'<text class="title" x="{LEFT}" y="{top + 18}">{escape(title)}</text>']
    for mark in marks:
        y = bottom - (mark - low) * up
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{mark:g}</text>')
    for index, (name, colour, line) in enumerate(lines):
        path = " ".join(f"{LEFT + x * across:.1f},{bottom - (y - low) * up:.1f}" for x, y in line)
        parts.append(f'<polyline points="{path}" stroke="{colour}"/>')
        x = WIDTH - RIGHT - min(90, 360 // len(lines)) * (len(lines) - index)
        parts.append(f'<text x="{x}" y="{top + 18}" style="fill:{colour}">{escape(name)}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{bottom + 16}" text-anchor="end">step {last:g}</text>')
    return "".join(parts)


def _marks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers around two values, about `count` steps apart."""
    raw = max(high - low, abs(high) * 1e-3, 1e-9) / count
    power = 10.0 ** floor(log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw)
    first, last = floor(low / step), ceil(high / step)
    return [round(index * step, 10) for index in range(first, max(last, first + 1) + 1)]
