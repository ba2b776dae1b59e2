"""On the demo model: with `exact = true` every method writes the same tokens; without it, near-ties explain the rest.

`pytest -m slow tests/test_exactness.py -s` compares 200 prompts in both dtypes and prints the counts.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

import fastllm_core
from fastllm_core import Generation

Openings = Callable[[int], list[str]]
METHODS = ["speculative", "prompt-lookup"]


def generations(method: str, dtype: str, texts: list[str], rows: int, **settings: Any) -> list[Generation]:
    config = {
        "dtype": dtype,
        "device": "cpu",
        "engine.max_rows": rows,
        "draft.controller": "fixed",
        "draft.length": 5,
        "forward": os.environ.get("FASTLLM_FORWARD", "eager"),
        **settings.pop("config", {}),
    }
    with fastllm_core.load("demo", method, config=config) as pipeline:
        answers: list[Generation] = pipeline.generate(texts, **settings)
    return answers


def differing(ours: list[Generation], theirs: list[Generation]) -> list[fastllm_core.Difference]:
    pairs = zip(ours, theirs, strict=True)
    return [difference for one, other in pairs if (difference := one.difference(other)) is not None]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_exact_is_the_same_tokens_for_200_prompts(
    dtype: str, rows: int, temperature: float, method: str, story_openings: Openings
) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 40, "temperature": temperature, "seed": 5}
    texts = story_openings(200)
    plain = generations("plain", dtype, texts, rows, config={"exact": True}, **settings)
    fast = generations(method, dtype, texts, rows, config={"exact": True}, **settings)
    count = len(differing(plain, fast))
    print(f"exact, {method}, {dtype}, B = {rows}, temperature {temperature}: {count} of {len(texts)} differ")
    assert count == 0


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_without_it_every_difference_is_a_near_tie(
    dtype: str, rows: int, method: str, story_openings: Openings
) -> None:
    texts = story_openings(200)
    plain = generations("plain", dtype, texts, rows, max_new_tokens=40, temperature=0.0)
    fast = generations(method, dtype, texts, rows, max_new_tokens=40, temperature=0.0)
    parted = differing(plain, fast)
    explained = sum(difference.near_tie for difference in parted)
    ties, tokens = (sum(values) for values in zip(*((g.report.near_ties, g.report.tokens) for g in plain), strict=True))
    print(f"{method}, {dtype}, B = {rows}: {len(parted)} of {len(texts)} differ, {explained} of these at a near-tie; "
          f"{ties} of {tokens} tokens ({ties / tokens:.2%}) are near-ties")  # fmt: skip
    assert explained == len(parted)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_exact_is_the_same_tokens_for_a_few_prompts(dtype: str, method: str, story_openings: Openings) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 16, "temperature": 0.0, "config": {"exact": True}}
    texts = story_openings(6)
    plain = generations("plain", dtype, texts, 3, **settings)
    fast = generations(method, dtype, texts, 3, **{**settings, "config": {"exact": True}})
    assert differing(plain, fast) == []
    assert sum(answer.report.accepted for answer in fast) > (20 if method == "speculative" else 0)
