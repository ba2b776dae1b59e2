"""What every method must do, with random heads."""

from __future__ import annotations

from typing import Any

from fastllm_core.testing import conformance


@conformance("medusa")
def test_conformance(check: Any, plugin: Any) -> None:
    check(plugin)
