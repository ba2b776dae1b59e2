"""The model card of a trained head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastllm_core import Head


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
        f"fastllm generate --model {target.model} --method {head.method} --set options.{head.method}.adapter=FOLDER",
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


def _shares(values: list[float]) -> str:
    return ", ".join(f"{value:.0%}" for value in values)


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in values.items())
