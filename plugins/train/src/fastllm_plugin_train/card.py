"""The model card of a trained head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastllm_core import Head

from . import plot


def card(head: Head, told: Mapping[str, Any]) -> str:
    """What it is, how it was made, and what it does, as Markdown. told: what `curves.json` holds."""
    target = head.target
    lines = [
        "---",
        "library_name: fastllm",
        f"base_model: {target.model}",
        f"tags: [fastllm, {head.method}]",
        "---",
        "",
        f"# A {head.method} head for {target.model}",
        "",
        f"For `{target.model_type}` with {target.layers} layers, {target.hidden_size} hidden dimensions and "
        f"{target.vocab_size} entries; output matrix `{target.head}`. Another target is refused.",
        "",
        "```",
        f"fastllm generate --model {target.model} --method {head.method} {_settings(head.method, told['generating'])}",
        "```",
        "",
        "## How it was made",
        "",
        f"`fastllm train {head.method}` on {', '.join(told['data'])}: {told['steps']} steps of "
        f"{told['recipe']['batch']} rows of {told['recipe']['length']} tokens, {told['seconds']:.0f} s. "
        f"Options: {_pairs(told['options'])}.",
        "",
        "## What it does",
        "",
        *_figures(told),
    ]
    return "\n".join(lines) + "\n"


def _figures(told: Mapping[str, Any]) -> list[str]:
    first, best = told["evaluations"][0], min(told["evaluations"], key=lambda each: each["loss"])
    lines = [
        "| on held-out text | before training | after |",
        "| --- | --- | --- |",
        f"| loss | {first['loss']:.3f} | {best['loss']:.3f} |",
        f"| tokens per round, greedy, foretold | {first['tokens_per_round']:.2f} | {best['tokens_per_round']:.2f} |",
        f"| chance that sampling accepts a draft | {first['overlap']:.1%} | {best['overlap']:.1%} |",
        *_own_figures(first, best),
    ]
    proof = told["proof"]
    if not proof:
        return lines
    foretold, measured = proof["foretold"], proof["measured"]
    return [
        *lines,
        "",
        f"Generated from {proof['texts']} held-out prompts: {measured['tokens_per_round']:.2f} tokens per round, where "
        f"{foretold['tokens_per_round']:.2f} were foretold. Drafts accepted at each position: "
        f"{_shares(measured['by_position'])} (foretold {_shares(foretold['by_position'])}).",
    ]


def _own_figures(first: Mapping[str, Any], best: Mapping[str, Any]) -> list[str]:
    """Rows for the method's own figures, for how often each rank is right, and for the tree."""
    rows = [(name, first["figures"][name], best["figures"][name]) for name in best.get("figures", {})]
    lines = [f"| {name} | {_numbers(before)} | {_numbers(after)} |" for name, before, after in rows]
    if "accuracies" in best:
        for name in (f"top-{top} of each draft" for top in plot.TOPS):
            lines.append(f"| {name} | {_shares(plot.figure(first, name))} | {_shares(plot.figure(best, name))} |")
    if "nodes" in best:
        for name, key in (("of a chain", "chain"), ("if drafts were independent", "expected")):
            lines.append(f"| tokens per round {name} | {first[key]:.2f} | {best[key]:.2f} |")
        lines.append(f"| drafted tokens of a round | {first['nodes']} | {best['nodes']} |")
    return lines


def _settings(method: str, options: Mapping[str, Any]) -> str:
    return " ".join(f"--set options.{method}.{name}={value}" for name, value in options.items() if value == "FOLDER")


def _numbers(value: Any) -> str:
    return ", ".join(f"{each:.2f}" for each in (value if isinstance(value, list) else [value]))


def _shares(values: list[float]) -> str:
    return ", ".join(f"{value:.0%}" for value in values)


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in values.items())
