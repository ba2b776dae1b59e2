"""Prompt look-up under fastllm's own kit."""

from __future__ import annotations

from typing import Any

from fastllm_core.testing import conformance


@conformance("prompt-lookup")
def test_conformance(check: Any, plugin: Any) -> None:
    check(plugin)
