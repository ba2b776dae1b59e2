"""What every method must do, with a skip set, with an early exit, and with drafts that end where they are unsure."""

from __future__ import annotations

from typing import Any

from fastllm_core.testing import conformance

EXIT = {"exit_layer": 1}


@conformance("self-speculative")
def test_conformance(check: Any, plugin: Any) -> None:
    check(plugin)


@conformance("self-speculative", options=EXIT)
def test_conformance_of_an_early_exit(check: Any, plugin: Any) -> None:
    check(plugin)
