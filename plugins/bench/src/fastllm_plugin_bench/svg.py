"""Plots as SVG text: no script, no network, no library."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10
from typing import Final

WIDTH: Final = 560
LEFT: Final = 150
"""Room for names at the left of a bar."""
RIGHT: Final = 56
BAR: Final = 15
GAP: Final = 12
CHARACTERS: Final = 22
"""Of a name that fits beside a bar."""
SHARES: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
NAMED: Final = 24
"""Of a name beside a point."""
LINE: Final = 13
LONG: Final = 44
"""Of a name in a legend."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar with its interval."""

    name: str
    value: float
    low: float
    high: float
    colour: str


@dataclass(frozen=True, slots=True)
class Dot:
    """A point with a name and an interval upwards and downwards."""

    name: str
    x: float
    y: float
    low: float
    high: float
    colour: str


def ticks(top: float, count: int = 5) -> list[float]:
    """Round numbers from 0 to at least `top`, about `count` of them."""
    raw = max(top, 1e-9) / count
    power = 10.0 ** floor(log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw)
    return [index * step for index in range(ceil(top / step - 1e-9) + 1)]


def bars(groups: Mapping[str, Sequence[Bar]], *, mark: float) -> str:
    """Horizontal bars in named groups, with whiskers, and a line at `mark`. The first group names each bar."""
    marks = ticks(max((bar.high for group in groups.values() for bar in group), default=mark))
    scale = (WIDTH - LEFT - RIGHT) / marks[-1]
    parts, y = [], 8.0
    first = next(iter(groups), "")
    for name, group in groups.items():
        if name != first:
            parts.append(text(LEFT - 8, y + len(group) * BAR / 2 + 4, short(name), anchor="end"))
        for bar in group:
            if name == first:
                parts.append(text(LEFT - 8, y + BAR - 4, short(bar.name), anchor="end", size=11))
            x = LEFT + bar.value * scale
            tip = f"{bar.name}, {name}: {bar.value:.2f} ({bar.low:.2f} to {bar.high:.2f})"
            parts += [
                f'<rect x="{LEFT}" y="{y + 1:.1f}" width="{max(bar.value * scale, 1):.1f}" height="{BAR - 3}" rx="2" '
                f'fill="{bar.colour}"><title>{escape(tip)}</title></rect>',
                whisker(LEFT + bar.low * scale, LEFT + bar.high * scale, y + BAR / 2 - 0.5),
                text(max(x, LEFT + bar.high * scale) + 6, y + BAR - 4, f"{bar.value:.2f}", size=11),
            ]
            y += BAR
        y += GAP
    axis = [
        *(line(LEFT + tick * scale, 4, LEFT + tick * scale, y, "grid") for tick in marks),
        line(LEFT + mark * scale, 2, LEFT + mark * scale, y, "mark"),
        *(text(LEFT + tick * scale, y + 14, f"{tick:g}", anchor="middle", kind="quiet") for tick in marks),
    ]
    return frame(y + 24, [*axis, *parts])


def stacked(rows: Mapping[str, Mapping[str, float]], colours: Mapping[str, str], unit: str) -> str:
    """Bars made of named pieces, each as long as it lasts, with its name above it."""
    left = 16.0
    marks = ticks(max((sum(row.values()) for row in rows.values()), default=1.0))
    scale = (WIDTH - left - RIGHT) / marks[-1]
    parts, y = [], 14.0
    for name, row in rows.items():
        x = left
        parts.append(text(left, y, short(name, LONG)))
        for piece, value in row.items():
            tip = f"{name}, {piece}: {value:.3g} {unit}"
            parts.append(
                f'<rect x="{x:.1f}" y="{y + 5:.1f}" width="{value * scale:.1f}" height="16" fill="{colours[piece]}">'
                f"<title>{escape(tip)}</title></rect>"
            )
            x += value * scale
        parts.append(text(x + 6, y + 17, f"{sum(row.values()):.3g}", size=11))
        y += 40
    y -= 12
    axis = [line(left + tick * scale, 4, left + tick * scale, y, "grid") for tick in marks]
    names = [text(left + tick * scale, y + 14, f"{tick:g}", anchor="middle", kind="quiet") for tick in marks]
    names_below, end = legend(colours, y + 36)
    return frame(end, [*axis, *names, *parts, names_below])


def scatter(dots: Sequence[Dot], x_name: str, y_name: str) -> str:
    """Named points with whiskers; a line where both axes agree."""
    height, left, bottom = 360, 48, 312
    xs, ys = ticks(max(dot.x for dot in dots)), ticks(max(max(dot.high for dot in dots), 1.0))
    across, up = (WIDTH - left - 120) / xs[-1], (bottom - 14) / ys[-1]
    both = min(xs[-1], ys[-1])
    parts = [
        *(line(left, bottom - y * up, WIDTH - 120, bottom - y * up, "grid") for y in ys),
        *(text(left - 6, bottom - y * up + 4, f"{y:g}", anchor="end", kind="quiet") for y in ys),
        *(text(left + x * across, bottom + 16, f"{x:g}", anchor="middle", kind="quiet") for x in xs),
        line(left, bottom - up, WIDTH - 120, bottom - up, "mark"),
        line(left, bottom, left + both * across, bottom - both * up, "dashed"),
        text((left + WIDTH - 120) / 2, bottom + 36, x_name, anchor="middle", kind="quiet"),
        text(left, 9, y_name, kind="quiet"),
    ]
    taken = [(left + dot.x * across - 7, left + dot.x * across + 7, bottom - dot.y * up + 4) for dot in dots]
    for dot in sorted(dots, key=lambda each: -each.y):
        x, y = left + dot.x * across, bottom - dot.y * up
        end = x + 10 + 6.8 * len(short(dot.name, NAMED))
        named = _free(x + 8, end, y + 4, taken)
        taken.append((x + 8, end, named))
        parts += [
            line(x, bottom - dot.low * up, x, bottom - dot.high * up, "whisker"),
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5.5" fill="{dot.colour}" stroke="var(--page)" stroke-width="1.5">'
            f"<title>{escape(f'{dot.name}: {dot.x:.2f}, {dot.y:.2f}')}</title></circle>",
            text(x + 10, named, short(dot.name, NAMED)),
        ]
    return frame(height, parts)


def _free(start: float, end: float, y: float, taken: Sequence[tuple[float, float, float]]) -> float:
    """The next place downwards where words from `start` to `end` overlap none of those that are there."""
    while any(start < right and left < end and abs(other - y) < LINE for left, right, other in taken):
        y += 2
    return y


def curves(series: Mapping[str, Sequence[float]], colours: Mapping[str, str], x_name: str) -> str:
    """Shares, 0 to 1, over positions 1, 2, ...; each line named by the legend."""
    left, bottom = 48, 212
    longest = max((len(values) for values in series.values()), default=1)
    across, up = (WIDTH - left - 32) / max(longest - 1, 1), bottom - 14
    parts = [
        *(line(left, bottom - share * up, WIDTH - 32, bottom - share * up, "grid") for share in SHARES),
        *(text(left - 6, bottom - share * up + 4, f"{share:.0%}", anchor="end", kind="quiet") for share in SHARES),
        *(text(left + i * across, bottom + 16, str(i + 1), anchor="middle", kind="quiet") for i in range(longest)),
        text((left + WIDTH) / 2, bottom + 36, x_name, anchor="middle", kind="quiet"),
    ]
    for name, values in series.items():
        places = [(left + i * across, bottom - share * up) for i, share in enumerate(values)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colours[name]}" stroke-width="2.5"/>')
        for (x, y), share in zip(places, values, strict=True):
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colours[name]}">'
                f"<title>{escape(f'{name}: {share:.0%}')}</title></circle>"
            )
    names_below, end = legend({name: colours[name] for name in series}, bottom + 60)
    return frame(end, [*parts, names_below])


def legend(colours: Mapping[str, str], y: float) -> tuple[str, float]:
    """Names beside their colours, on as many lines as they need, and where the next line would be."""
    parts, x = [], 16.0
    for name, colour in colours.items():
        length = 30 + 6.8 * len(short(name, LONG))
        if x > 16 and x + length > WIDTH:
            x, y = 16.0, y + 18
        parts.append(f'<rect x="{x:.1f}" y="{y - 9}" width="10" height="10" rx="2" fill="{colour}"/>')
        parts.append(text(x + 15, y, short(name, LONG)))
        x += length
    return "".join(parts), y + 18


def frame(height: float, parts: Sequence[str]) -> str:
    """The parts as one picture."""
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img">{"".join(parts)}</svg>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A line of a kind that the style sheet knows."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def whisker(low: float, high: float, y: float) -> str:
    """An interval along a bar."""
    ends = (line(x, y - 3, x, y + 3, "whisker") for x in (low, high))
    return line(low, y, high, y, "whisker") + "".join(ends)


def text(x: float, y: float, words: str, *, anchor: str = "start", size: int = 12, kind: str = "") -> str:
    """Words at a place."""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"'
    return f'<text class="{kind}" {place}>{escape(words)}</text>'


def short(name: str, limit: int = CHARACTERS) -> str:
    """A name that fits: keys without their sections, `speculative:length=3`, then cut."""
    name = re.sub(r":[\w-]+\.(?:[\w-]+\.)*(?=[\w-]+=)", ":", name)
    return name if len(name) <= limit else name[: limit - 1] + "…"
