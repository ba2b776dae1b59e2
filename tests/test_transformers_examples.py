"""The examples of `core/benchmarks/transformers_examples.py` write the same with and without the drop-in."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fastllm_core import custom_generate

FILE = Path(__file__).parent.parent / "core" / "benchmarks" / "transformers_examples.py"
SPEC = importlib.util.spec_from_file_location("transformers_examples", FILE)
assert SPEC is not None
assert SPEC.loader is not None
examples: Any = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(examples)

METHODS: dict[str, dict[str, Any]] = {
    "speculative": {"draft_model": "demo-drafter"},
    "prompt-lookup": {},
}


@cache
def loaded() -> Any:
    return examples.load("demo", "float32")


@cache
def plain(name: str) -> Any:
    return examples.EXAMPLES[name](*loaded())


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[pytest.mark.slow] * (name != "speculative")) for name in METHODS]
)
@pytest.mark.parametrize("name", examples.EXAMPLES)
def test_an_example_writes_the_same(name: str, method: str) -> None:
    model, tokenizer = loaded()
    config = {"draft": {"controller": "fixed"}}
    with custom_generate(method, config=config, tokenizer=tokenizer, **METHODS[method]) as fast:
        assert examples.EXAMPLES[name](model, tokenizer, custom_generate=fast) == plain(name)
        assert sum(report.drafted for report in fast.reports) > 0
