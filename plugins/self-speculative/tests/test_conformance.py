"""What every method must do, with a skip set; and with an early exit, where verification resumes."""

from __future__ import annotations

from typing import Any

import pytest

from fastllm_core.testing import conformance
from fastllm_core.testing.checks import cache, conduct, text
from fastllm_core.testing.subject import Subject

EXIT = {"exit_layer": 1}


@conformance("self-speculative")
def test_conformance(check: Any, plugin: Any) -> None:
    check(plugin)


@pytest.mark.slow
@conformance("self-speculative", options=EXIT)
def test_conformance_of_an_early_exit(check: Any, plugin: Any) -> None:
    check(plugin)


@pytest.mark.parametrize(
    "check", [conduct.check_drafts, text.check_mixed_attention, text.check_long_prompt, cache.check_rollback]
)
def test_an_early_exit_drafts_and_stores_what_it_should(check: Any) -> None:
    check(Subject("self-speculative", EXIT))
