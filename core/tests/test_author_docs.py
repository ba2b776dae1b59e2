"""The plugins shown to authors work: each role's example is installed and put through the conformance kit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fastllm_core.testing import Check, Subject
from fastllm_core.testing.kit import checks

if TYPE_CHECKING:
    from conftest import FakeSite

PAGE = Path(__file__).parents[2] / "docs" / "authors" / "roles.md"
EXAMPLES = dict(re.findall(r'^```python title="(\w+)"\n(.*?)^```', PAGE.read_text(), re.MULTILINE | re.DOTALL))
QUICK = ("check_metadata", "check_options", "check_ends", "check_long_prompt", "check_model_is_untouched")


def run(subject: Subject, wanted: list[Check]) -> None:
    for check in wanted:
        if check.applies(subject):
            check(subject)


def test_every_role_has_an_example() -> None:
    assert set(EXAMPLES) == {"acceptor", "kv_cache", "verifier"}


@pytest.mark.parametrize("role", EXAMPLES)
def test_the_example_of_a_role_passes_the_quick_checks(site: FakeSite, role: str) -> None:
    site.plugin(role, EXAMPLES[role], kind="parts")
    run(Subject(role), [check for check in checks() if check.name in QUICK])


@pytest.mark.slow
@pytest.mark.parametrize("role", EXAMPLES)
def test_the_example_of_a_role_passes_every_check(site: FakeSite, role: str) -> None:
    site.plugin(role, EXAMPLES[role], kind="parts")
    subject = Subject(role)
    run(subject, [check for check in checks() if check.name != "check_import_is_light"])  # they are single files
