"""The plugin under fastllm's own kit, with a drafter that numbers and divides text otherwise."""

from __future__ import annotations

from typing import Any

import pytest

from fastllm_core.testing import conformance
from fastllm_core.testing.kit import checks
from fastllm_core.testing.subject import Subject
from fastllm_plugin_uag.plugin import Uag


@conformance("uag")
def test_conformance(check: Any, plugin: Any) -> None:
    check(plugin)


MODES = ("check_greedy_text", "check_sampled_law", "check_matched_law", "check_rollback", "check_ends")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["string", "token"])
@pytest.mark.parametrize("check", [check for check in checks() if check.name in MODES], ids=lambda check: check.name)
def test_conformance_of_each_mode(check: Any, mode: str) -> None:
    subject = Subject("uag")
    subject.options = lambda target: {**Uag.conformance_options(target), "mode": mode}  # type: ignore[method-assign]
    try:
        check(subject)
    finally:
        subject.close()
