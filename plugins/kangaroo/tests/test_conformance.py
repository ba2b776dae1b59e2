"""What every method must do, with a random adapter that is as wide as the paper's, and with a whole layer."""

from __future__ import annotations

from typing import Any

from fastllm_core.testing import conformance


@conformance("kangaroo")
def test_conformance(check: Any, plugin: Any) -> None:
    check(plugin)
