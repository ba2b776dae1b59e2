"""What the index costs in time: microseconds a token, over texts of three kinds and lengths.

python plugins/prompt-lookup/benchmarks/cost.py
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from random import Random
from statistics import median
from types import SimpleNamespace
from typing import Any, Final, cast

from fastllm_core import Request, Row
from fastllm_plugin_prompt_lookup.drafter import LookUp
from fastllm_plugin_prompt_lookup.plugin import PromptLookupOptions

CONTEXTS: Final = (1_000, 8_000, 32_000)
TIMED: Final = 400


def words(rng: Random, count: int) -> list[int]:
    """As in language: a few tokens are everywhere, most are rare."""
    return [int(30_000 * rng.random() ** 4) for _ in range(count)]


def copies(rng: Random, count: int) -> list[int]:
    """A page that is copied again and again, with a change now and then."""
    page = words(rng, 500)
    return [rng.choice(page) if rng.random() < 0.02 else page[at % len(page)] for at in range(count)]


def one_word(rng: Random, count: int) -> list[int]:
    """The same token for ever: as many places as there are tokens."""
    return [7] * count


KINDS: Final[tuple[Callable[[Random, int], list[int]], ...]] = (words, copies, one_word)
SETTINGS: Final[dict[str, dict[str, Any]]] = {
    "defaults": {},
    "first": {"pick": "first"},
    "frequent": {"pick": "frequent"},
    "max_ngram=8": {"max_ngram": 8},
    "branches=4": {"branches": 4},
}


def microseconds(text: Sequence[int], context: int, options: dict[str, Any]) -> tuple[float, float]:
    """For a token of the prompt, and median for one that is written: indexing it, what to expect, and a draft."""
    look_up = LookUp(PromptLookupOptions(adapt=False, **options), cast("Any", SimpleNamespace()))
    row = Row(1, Request(tuple(text[:context]), len(text) - context), list(text[:context]), seed=0)
    began = time.perf_counter()
    look_up.prefill(row, 0, context, {})
    prompt = (time.perf_counter() - began) / context
    written = []
    for token in text[context:]:
        row.tokens.append(token)
        began = time.perf_counter()
        look_up.expected_acceptance([row])
        look_up.tree(row, 10)
        written.append(time.perf_counter() - began)
    return prompt * 1e6, median(written) * 1e6


def main() -> None:
    """Print the table."""
    print(f"{'text':10}{'options':14}" + "".join(f"{context:>20,}" for context in CONTEXTS))
    for kind in KINDS:
        for name, options in SETTINGS.items():
            cells = []
            for context in CONTEXTS:
                text = kind(Random(1), context + TIMED)
                prompt, written = microseconds(text, context, options)
                cells.append(f"{prompt:10.1f}{written:7.1f} us")
            print(f"{kind.__name__:10}{name:14}" + "".join(cells))
    print("per token of the prompt, and of the output with its look-up")


if __name__ == "__main__":
    main()
