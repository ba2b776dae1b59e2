"""The conformance kit: is a plugin what it says, and is its text what plain decoding writes?

In pytest, the whole test file:

    from fastllm_core.testing import conformance

    @conformance("kangaroo")
    def test_conformance(check, plugin):
        check(plugin)

Without pytest: `fastllm plugins check kangaroo`, or `run("kangaroo")`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from .checks import cache, conduct, law, package, text
from .subject import Subject, SubjectOptions

Function = Callable[[Subject], None]


def _always(subject: Subject) -> bool:
    return True


def _composes(subject: Subject) -> bool:
    return not subject.lossy


def _drafts(subject: Subject) -> bool:
    return subject.drafts


CHECKS: Final[tuple[tuple[Function, Callable[[Subject], bool]], ...]] = (
    (package.check_metadata, _always),
    (package.check_options, _always),
    (package.check_import_is_light, _always),
    (conduct.check_drafts, _drafts),
    (text.check_greedy_text, _composes),
    (text.check_compiled_text, _composes),
    (text.check_long_prompt, _composes),
    (text.check_mixed_attention, _composes),
    (text.check_ends, _composes),
    (text.check_mixed_requests, _composes),
    (text.check_controls, _composes),
    (law.check_sampled_law, _composes),
    (law.check_law_over_rounds, _composes),
    (law.check_matched_law, lambda subject: subject.drafts and not subject.lossy),
    (law.check_same_seed_same_text, _always),
    (cache.check_rollback, _composes),
    (conduct.check_rows_are_independent, _drafts),
    (conduct.check_pipelines_are_independent, _composes),
    (conduct.check_model_is_untouched, _always),
    (conduct.check_nothing_is_left, _composes),
)
"""Every check, and the plugins that it is for; a plugin that says it is lossy is not compared with plain decoding."""


class ConformanceError(AssertionError):
    """A plugin failed a check; the message names plugin, check and what was seen."""


@dataclass(frozen=True)
class Check:
    """One check, callable with the plugin under test."""

    function: Function
    applies: Callable[[Subject], bool]

    @property
    def name(self) -> str:
        """`check_greedy_text`."""
        return self.function.__name__

    @property
    def summary(self) -> str:
        """What it asks, in a sentence."""
        return (self.function.__doc__ or "").partition("\n")[0]

    def __call__(self, subject: Subject) -> None:
        """Raise ConformanceError if the plugin fails it; whatever else it raises is a failure too."""
        try:
            self.function(subject)
        except Exception as error:
            seen = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            raise ConformanceError(f"plugin '{subject.name}', {self.name}: {seen}") from error


class LazySubject:
    """The subject of a pytest module: found when the first test asks, so that collecting imports nothing."""

    def __init__(self, name: str, options: SubjectOptions | None) -> None:
        """name, options: as for `Subject`."""
        self.name, self.options = name, options

    @cached_property
    def found(self) -> Subject:
        """The installed plugin."""
        return Subject(self.name, self.options)


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a check."""

    check: Check
    outcome: str
    """"passed", "failed", "skipped" (not for this plugin), "expected" (failed as said), "unexpected" (passed)."""
    message: str = ""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether this is as it should be."""
        return self.outcome in ("passed", "skipped", "expected")


def checks() -> list[Check]:
    """Every check, in the order in which a new author would want to hear of failures."""
    return [Check(function, applies) for function, applies in CHECKS]


def run(
    name: str, options: SubjectOptions | None = None, expected_failures: Mapping[str, str] | None = None
) -> Iterator[Result]:
    """Check an installed plugin, yielding each result as it comes.

    options: for the plugin, or a function that makes them for a target; by default its `conformance_options`.
    expected_failures: reasons by name of check; a check that passes nevertheless is not ok.
    """
    expected = dict(expected_failures or {})
    _check_names(expected)
    subject = Subject(name, options)
    try:
        for check in checks():
            yield _result(check, subject, expected.get(check.name))
    finally:
        subject.close()


def conformance(
    name: str, *, options: SubjectOptions | None = None, expected_failures: Mapping[str, str] | None = None
) -> Callable[[Callable[..., None]], Any]:
    """Make a pytest function of (check, plugin) run once for each check.

    name: the plugin's, as in the configuration.  options: as for `run`.
    expected_failures: reasons by name of check; they become strict xfails, so that mending one without saying so fails.
    """
    import pytest

    expected = dict(expected_failures or {})
    _check_names(expected)
    subject = LazySubject(name, options)

    def call(check: Check) -> Callable[[LazySubject], None]:
        def checked(plugin: LazySubject) -> None:
            if not check.applies(plugin.found):
                pytest.skip(f"not for {name}")
            check(plugin.found)

        return checked

    cases = [
        pytest.param(
            call(check),
            id=check.name,
            marks=[pytest.mark.xfail(reason=expected[check.name], strict=True)] if check.name in expected else [],
        )
        for check in checks()
    ]

    def decorate(test: Callable[..., None]) -> Any:
        return pytest.mark.parametrize("check", cases)(pytest.mark.parametrize("plugin", [subject], ids=[name])(test))

    return decorate


def _result(check: Check, subject: Subject, reason: str | None) -> Result:
    start = time.perf_counter()
    try:
        if not check.applies(subject):
            return Result(check, "skipped")
        check(subject)
    except Exception as error:
        seconds = time.perf_counter() - start
        return Result(check, "failed" if reason is None else "expected", reason or str(error), seconds)
    seconds = time.perf_counter() - start
    if reason is None:
        return Result(check, "passed", seconds=seconds)
    return Result(check, "unexpected", f"it passes, although it was expected to fail: {reason}", seconds)


def _check_names(expected: Mapping[str, str]) -> None:
    known = {check.name for check in checks()}
    for name in expected:
        if name not in known:
            raise ValueError(f"expected_failures: there is no check '{name}'; there are {', '.join(sorted(known))}")
