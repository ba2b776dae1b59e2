"""The report as one page that needs nothing else: plots first, figures below them, reasons beside them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any, Final

from . import svg, wording
from .report import OVERALL

COLOURS: Final = (
    *("#3b6fd4", "#d1652f", "#2f9461", "#8a5cc2", "#b8901a", "#c2447d", "#3b97a8", "#6b7280"),
    *("#8c4a3c", "#7aa52c", "#1f3f86", "#e58bb2", "#5d8f7b", "#b07cf0"),
)
REFERENCE: Final = "#9aa3ad"
PHASES: Final = {
    "prefill": "#c3c8ce",
    "draft": "#d1652f",
    "verify": "#3b6fd4",
    "accept": "#b8901a",
    "rest": "#8a5cc2",
}
GOOD: Final = ("identical", "reference", "near-ties", "sampled")


def render(report: Mapping[str, Any]) -> str:
    """The page."""
    style = (files(__package__) / "page.css").read_text(encoding="utf-8")
    title = f"{report['model']}: decoding methods compared"
    body = "".join([*_head(report), *(part for case in report["cases"] for part in _case(case)), *_tail(report)])
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width">\n<style>{style}</style>\n<main>{body}</main>\n</html>\n'
    )


def _head(report: Mapping[str, Any]) -> Iterator[str]:
    hardware, suite, plan = report["hardware"], report["suite"], report["plan"]
    yield f"<h1>{escape(report['model'])}: decoding methods compared</h1>"
    yield (
        f'<p class="quiet">{escape(hardware["what"])}, {hardware["threads"]} threads, {hardware["dtype"]} · suite '
        f"{escape(suite['name'])}, {suite['questions']} questions · {plan['repeats']} repeats of at most "
        f"{plan['max_new_tokens']} new tokens · {escape(report['created'])}</p>"
    )
    if suite["skipped"]:
        yield f'<p class="warn">{len(suite["skipped"])} questions are longer than the context and were skipped.</p>'
    for label, reason in report["absent"].items():
        yield f'<p class="warn">Not run: <b>{escape(label)}</b>: {escape(reason)}</p>'


def _case(case: Mapping[str, Any]) -> Iterator[str]:
    colours = _colours(case["arms"])
    yield f"<h2>{escape(wording.case_title(case))}</h2>"
    yield f'<p class="lead">{_summary(case)}</p>'
    yield _figures(case, colours)
    timed = [arm for arm in case["arms"][1:] if arm["speed"] and arm["speed"][OVERALL]["ratio"]]
    if timed:
        yield '<div class="plots">'
        yield _plot("Speed, times plain decoding", "whiskers: 95 % intervals", _by_category(case, timed, colours))
        yield _plot("Tokens per round against speed", "dashed: rounds as cheap as plain ones", _scatter(timed, colours))
        drafting = {arm["label"]: wording.acceptance(arm) for arm in timed if arm["drafted_at"]}
        if drafting:
            plot = svg.curves(drafting, colours, "position in the draft")
            yield _plot("Drafted tokens that were kept", "share of those drafted there", plot)
        split = _split(case["arms"])
        if split:
            plot = svg.stacked(split, PHASES, "ms")
            yield _plot("Where the time goes", "milliseconds per token, prompts included", plot)
        yield "</div>"
    yield _reasons(case)


def _summary(case: Mapping[str, Any]) -> str:
    """The answer, before any figure."""
    timed = [arm for arm in case["arms"][1:] if arm["speed"] and arm["speed"][OVERALL]["ratio"]]
    sound = [arm for arm in timed if arm["status"] in GOOD]
    failed = [arm["label"] for arm in case["arms"] if arm["status"] == "FAILED"]
    words = []
    if sound:
        best = max(sound, key=lambda arm: arm["speed"][OVERALL]["ratio"]["value"])
        ratio = best["speed"][OVERALL]["ratio"]
        if ratio["low"] > 1:
            words.append(f"<b>{escape(best['label'])}</b> is fastest: {wording.times(ratio)} plain decoding.")
        else:
            name = escape(best["label"])
            words.append(f"Nothing is surely faster than plain decoding; best is {name}, {wording.times(ratio)}.")
    if failed:
        words.append(f'<b class="bad">Failed: {escape(", ".join(failed))}.</b>')
    return " ".join(words)


def _figures(case: Mapping[str, Any], colours: Mapping[str, str]) -> str:
    head = ("method", "tokens/s", "times plain", "with prompt", "tokens/round", "predicted", "prompt", "memory", "text")
    rows = "".join(_row(arm, colours[arm["label"]]) for arm in case["arms"])
    cells = "".join(f"<th>{name}</th>" for name in head)
    return f'<div class="wide"><table><tr>{cells}</tr>{rows}</table></div>'


def _row(arm: Mapping[str, Any], colour: str) -> str:
    kind = "good" if arm["status"] in GOOD else "bad" if arm["status"] == "FAILED" else "doubt"
    words = "" if arm["status"] == "reference" else arm["verdict"].removesuffix(" identical")
    badge = f'<span class="badge {kind}">{escape(arm["status"])}</span> {escape(words)}'
    name = f'<span class="dot" style="background:{colour}"></span>{escape(arm["label"]).replace(":", ":<wbr>")}'
    speed = wording.overall(arm)
    figures = ["-"] * 7
    if speed is not None:
        figures = [
            f"{speed['tokens_per_s']:.1f}",
            wording.times(speed["ratio"]),
            wording.times(speed["whole_ratio"]),
            f"{speed['per_round']:.2f}",
            "-" if arm["predicted"] is None else f"{arm['predicted']:.2f}x",
            f"{speed['prompt_s'] * 1e3:.0f} ms",
            wording.megabytes(arm["memory"]),
        ]
    cells = "".join(f'<td class="number">{figure}</td>' for figure in figures)
    return f"<tr><td>{name}</td>{cells}<td>{badge}</td></tr>"


def _by_category(case: Mapping[str, Any], arms: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> str:
    groups = {}
    for name in (OVERALL, *wording.categories(case)):
        ratios = [(arm["label"], arm["speed"].get(name, {}).get("ratio")) for arm in arms]
        groups[name] = [
            svg.Bar(label, ratio["value"], ratio["low"], ratio["high"], colours[label])
            for label, ratio in ratios
            if ratio
        ]
    return svg.bars(groups, mark=1.0)


def _scatter(arms: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> str:
    dots = []
    for arm in arms:
        speed = arm["speed"][OVERALL]
        ratio = speed["ratio"]
        dots.append(
            svg.Dot(
                arm["label"], speed["per_round"], ratio["value"], ratio["low"], ratio["high"], colours[arm["label"]]
            )
        )
    return svg.scatter(dots, "tokens per round", "times plain decoding")


def _split(arms: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Milliseconds per token by phase, of arms that have a clock."""
    found = {}
    for arm in arms:
        tokens = arm["speed"].get(OVERALL, {}).get("tokens")
        if arm["time"] and tokens:
            found[arm["label"]] = {phase: 1e3 * arm["time"].get(phase, 0.0) / tokens for phase in PHASES}
    return found


def _plot(title: str, note: str, picture: str) -> str:
    return f'<figure><figcaption><b>{title}</b> <span class="quiet">{note}</span></figcaption>{picture}</figure>'


def _reasons(case: Mapping[str, Any]) -> str:
    items = []
    for arm in case["arms"]:
        lines = [escape(line) for line in wording.explanation(arm)]
        if lines:
            items.append(f"<dt>{escape(arm['label'])}</dt><dd>{'<br>'.join(lines)}</dd>")
    return f"<details open><summary>Why</summary><dl>{''.join(items)}</dl></details>" if items else ""


def _tail(report: Mapping[str, Any]) -> Iterator[str]:
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    yield f"<h2>How it was measured</h2><p><code>fastllm {escape(shlex.join(report['command']))}</code></p>"
    yield (
        "<p>All methods took turns on each prompt, with the same seed and after a warm-up, and one counter counted "
        "their tokens up to the end of the text. Ratios are of tokens per second after the prompt; intervals come from "
        f'drawing prompts and repeats anew. Questions: {escape(report["suite"]["hash"])}.</p><p class="quiet">'
        f"{escape(versions)}</p>"
    )


def _colours(arms: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    labels = [arm["label"] for arm in arms[1:]]
    return {arms[0]["label"]: REFERENCE} | {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(labels)}
