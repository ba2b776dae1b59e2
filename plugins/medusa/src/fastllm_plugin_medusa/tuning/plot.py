"""The picture of a sweep: verification, tokens per round and speed over nodes. SVG that stands alone."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .session import Point

WIDTH, PANEL = 640, 180
LEFT, RIGHT, TOP, BOTTOM = 56, 20, 30, 26
LINE, BEST = "#2563eb", "#d97706"
STYLE: Final = (
    "text{font:12px system-ui,sans-serif;fill:#444}.title{font-weight:600}.grid{stroke:#ddd}"
    "polyline{fill:none;stroke-width:2}svg{background:#fff}"
)


def picture(points: Sequence[Point], best: Point, plain: float) -> str:
    """Three panels under each other, the best size marked.

    plain: tokens per second of plain decoding.
    """
    panels = [
        ("milliseconds of a verification", [1e3 * point.cost.verification for point in points]),
        ("tokens per round", [point.tokens for point in points]),
        (f"tokens per second (plain: {plain:.1f})", [point.speed for point in points]),
    ]
    nodes = [len(point.tree) for point in points]
    parts = [
        _panel(index * PANEL, title, nodes, values, len(best.tree)) for index, (title, values) in enumerate(panels)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {PANEL * len(panels)}" role="img">'
        f"<style>{STYLE}</style>{''.join(parts)}</svg>\n"
    )


def _panel(top: int, title: str, nodes: Sequence[int], values: Sequence[float], best: int) -> str:
    high = 1.1 * max(values)
    across = (WIDTH - LEFT - RIGHT) / max(nodes)
    up = (PANEL - TOP - BOTTOM) / high
    bottom = top + PANEL - BOTTOM
    places = [(LEFT + count * across, bottom - value * up) for count, value in zip(nodes, values, strict=True)]
    parts = [f'<text class="title" x="{LEFT}" y="{top + 18}">{escape(title)}</text>']
    for step in range(3):
        value = step * high / 2
        y = bottom - value * up
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    parts.append(f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}" stroke="{LINE}"/>')
    for count, value, (x, y) in zip(nodes, values, places, strict=True):
        colour, radius = (BEST, 5) if count == best else (LINE, 3)
        tip = f"{count} nodes: {value:.3g}"
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}"><title>{tip}</title></circle>')
        if count == best:
            parts.append(f'<text x="{x:.1f}" y="{y - 9:.1f}" text-anchor="middle">{count}: {value:.3g}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{bottom + 17}" text-anchor="end">{max(nodes)} nodes</text>')
    return "".join(parts)
