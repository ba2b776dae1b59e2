"""What controllers make of look-up, replayed over texts that are known: no clock, so the same figures on any machine.

    python plugins/prompt-lookup/benchmarks/replay.py

A greedy text does not depend on what is drafted, so it is written once and then walked through by every controller.
A round of w rows costs 1 + slope * (w - 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final, cast

import fastllm_core
from fastllm_core import Request, Row
from fastllm_core.controllers import CostModel, Round
from fastllm_core.verifier import round_widths
from fastllm_plugin_bench.suite import load_suite
from fastllm_plugin_prompt_lookup.drafter import LookUp
from fastllm_plugin_prompt_lookup.plugin import PromptLookupOptions

LENGTH: Final = 10
REST: Final = 0.05
"""What a round costs beside forwards."""
ASKING: Final = 0.005
"""What a look-up costs."""
SLOPES: Final = {"a row costs 1 %": 0.01, "a row costs 6 %": 0.06}


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt and what the model wrote."""

    prompt: tuple[int, ...]
    written: tuple[int, ...]


def replay(texts: Sequence[Text], slope: float, how: str) -> tuple[float, float]:
    """Tokens a round, and the speed in multiples of plain decoding.

    how: "always" drafts ten, "adapt" lets rows adapt, "accepted" asks `auto` what was accepted, "expected" asks the
    look-up as well.
    """
    controller, rounds, seconds = CostModel(LENGTH), 0, 0.0
    for number, text in enumerate(texts):
        look_up = LookUp(PromptLookupOptions(adapt=how != "always"), cast("Any", SimpleNamespace()))
        row = Row(number, Request(text.prompt, len(text.written) + 1), list(text.prompt), seed=0)
        while done := len(text.written) + len(text.prompt) - row.length:
            most = min(_length(controller, look_up, row, how), done - 1)
            draft = look_up.tree(row, most).tokens if most else []
            look_up.drafted = {row.id: len(draft)}
            rest = text.written[len(text.written) - done :]
            accepted = next((i for i, token in enumerate(draft) if token != rest[i]), len(draft))
            before = row.length
            row.tokens += rest[: accepted + 1]
            round_ = cast("Any", SimpleNamespace(rows=[row], lengths=[before]))
            look_up.observe(round_, *[cast("Any", None)] * 3)
            width = next(each for each in round_widths(LENGTH) if each > len(draft))
            verify, asking = 1.0 + slope * (width - 1), ASKING if most else 0.0
            controller.observe(Round((row.id,), (len(draft),), (accepted,), asking, verify, REST))
            rounds, seconds = rounds + 1, seconds + verify + asking + REST
        controller.release(row.id)
    tokens = sum(len(text.written) for text in texts)
    return tokens / rounds, tokens * (1.0 + REST) / seconds


def _length(controller: CostModel, look_up: LookUp, row: Row, how: str) -> int:
    if how == "accepted":
        return controller.lengths([row.id])[0]
    return controller.lengths([row.id], look_up.expected_acceptance([row]))[0] if how == "expected" else LENGTH


def written(suite: str) -> list[Text]:
    """What `demo` writes on the prompts of a suite."""
    config = {"dtype": "float32", "device": "cpu"}
    with fastllm_core.load("demo", "plain", config=config) as pipeline:
        prompts = [question.turns[0] for question in load_suite(suite).questions]
        results = [pipeline.generate(prompt, max_new_tokens=96, temperature=0.0) for prompt in prompts]
        tokenizer: Any = pipeline.target.tokenizer
        return [
            Text(tuple(tokenizer(prompt)["input_ids"]), result.token_ids)
            for prompt, result in zip(prompts, results, strict=True)
        ]


def main() -> None:
    """Print the table."""
    texts = {suite: written(suite) for suite in ("grounded", "demo")}
    late = [Text(text.prompt, text.written + text.prompt[20:140]) for text in texts["grounded"]]
    for name, some in {**texts, "grounded, then a quotation": late}.items():
        for cost, slope in SLOPES.items():
            for how in ("always", "adapt", "accepted", "expected"):
                rate, speed = replay(some, slope, how)
                print(f"{name:28}{cost:18}{how:10}{rate:6.2f} tokens a round {speed:6.2f} times plain", flush=True)


if __name__ == "__main__":
    main()
