"""The picture of a search: every trial, and the best so far, search by search. SVG that stands alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

from .study import best_so_far
from .trial import Trial

WIDTH, HEIGHT = 720, 360
LEFT, RIGHT, TOP, BOTTOM = 56, 20, 20, 300
COLOURS: Final = ("#2563eb", "#d97706", "#059669", "#db2777")
STYLE: Final = (
    "text{font:12px system-ui,sans-serif;fill:#444}.grid{stroke:#ddd}.mark{stroke:#888;stroke-dasharray:4 3}"
    "path{fill:none;stroke-width:2}"
)


def picture(histories: Mapping[str, list[Trial]], value_name: str, mark: float | None) -> str:
    """Values over trials. mark: where to draw a line, such as 1 for plain decoding's speed."""
    values = [trial.value for history in histories.values() for trial in history]
    low, high = _range([*values, *([] if mark is None else [mark])])
    last = max(len(history) for history in histories.values()) - 1

    def x(number: float) -> float:
        return LEFT + number / max(last, 1) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return BOTTOM - (value - low) / (high - low) * (BOTTOM - TOP)

    parts = [f"<style>{STYLE}</style>", f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>']
    for step in range(5):
        value = low + step * (high - low) / 4
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{y(value):.1f}" x2="{WIDTH - RIGHT}" y2="{y(value):.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.2f}</text>')
    if mark is not None:
        parts.append(f'<line class="mark" x1="{LEFT}" y1="{y(mark):.1f}" x2="{WIDTH - RIGHT}" y2="{y(mark):.1f}"/>')
    for (name, history), colour in zip(histories.items(), _cycle(len(histories)), strict=True):
        for trial in history:
            tip = f"{name}, trial {trial.number} ({trial.phase}): {trial.value:.3f}, skips {trial.skipped}"
            parts.append(
                f'<circle cx="{x(trial.number):.1f}" cy="{y(trial.value):.1f}" r="2.5" fill="{colour}" '
                f'fill-opacity="0.45"><title>{escape(tip)}</title></circle>'
            )
        places = [(x(number), y(value)) for number, value in enumerate(best_so_far(history))]
        parts.append(f'<path stroke="{colour}" d="{_steps(places)}"/>')
    place = float(LEFT)
    for name, colour in zip(histories, _cycle(len(histories)), strict=True):
        parts.append(f'<rect x="{place:.0f}" y="{BOTTOM + 36}" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{place + 15:.0f}" y="{BOTTOM + 45}">{escape(name)}: best so far</text>')
        place += 130 + 7 * len(name)
    parts.append(
        f'<text x="{(LEFT + WIDTH) / 2:.0f}" y="{BOTTOM + 20}" text-anchor="middle">trials (0 to {last})</text>'
    )
    parts.append(f'<text x="{LEFT}" y="13">{escape(value_name)}</text>')
    inside = "".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{inside}</svg>\n'


def _range(values: Sequence[float]) -> tuple[float, float]:
    """From the smallest to the largest, with some room."""
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 0.05
    return low - room, high + room


def _steps(places: Sequence[tuple[float, float]]) -> str:
    """A line that changes at trials only."""
    moves = [f"H{x:.1f}V{y:.1f}" for x, y in places[1:]]
    return f"M{places[0][0]:.1f},{places[0][1]:.1f}{''.join(moves)}"


def _cycle(count: int) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(count)]
