"""The conformance kit catches every wrong plugin by the check meant for it, and lets the right one pass."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fastllm_core.testing.kit import ConformanceError, Result, checks, conformance, run
from fastllm_core.testing.subject import Subject

if TYPE_CHECKING:
    from conftest import FakeSite

WRONG = {
    "off-by-one": ("OffByOne", "check_drafts", "tokens were drafted in a row where at most"),
    "argmax-with-soft-q": ("ArgMaxWithSoftQ", "check_sampled_law", "standard deviations from"),
    "dropped-token": ("DroppedToken", "check_sampled_law", "standard deviations from"),
    "stale-q": ("StaleQ", "check_sampled_law", "standard deviations from"),
    "never-rolls-back": ("NeverRollsBack", "check_rollback", "a drafter's cache differs from a fresh reading"),
    "mutates-the-model": ("MutatesTheModel", "check_model_is_untouched", "the user's model is changed"),
    "shares-state": ("SharesState", "check_pipelines_are_independent", "beside another pipeline"),
    "leaks-into-neighbour": ("LeaksIntoNeighbour", "check_rows_are_independent", "beside other rows"),
    "holds-rows": ("HoldsRows", "check_nothing_is_left", "still held"),
    "overruns-the-end": ("OverrunsTheEnd", "check_ends", "an end token"),
    "resamples-the-root": ("ResamplesTheRoot", "check_sampled_law", "standard deviations from"),
    "position-keyed-block": ("PositionKeyedBlock", "check_law_over_rounds", "standard deviations from"),
    "ignores-controls": ("IgnoresControls", "check_controls", "where plain decoding says"),
    "whole-config-in-view": ("WholeConfigInView", "check_mixed_attention", "where plain decoding says"),
}
PARTS = ("whole-config-in-view", "ignores-controls", "overruns-the-end", "resamples-the-root", "position-keyed-block")

LOSSY = """
from fastllm_core import Guarantee, hookimpl
from fastllm_core.verifier import TargetVerifier


class Plugin:
    api_version = 1

    def __init__(self, options):
        pass

    @hookimpl
    def fastllm_make_verifier(self, context, drafter):
        verifier = TargetVerifier(context)
        verifier.guarantee = Guarantee.LOSSY
        return verifier
"""


@pytest.fixture
def wrong(site: FakeSite) -> FakeSite:
    """All of them, installed."""
    names = {name: f"fastllm_wrong:{kind}" for name, (kind, _, _) in WRONG.items()}
    site.install(
        "fastllm-wrong",
        {
            "fastllm.plugins": {"right": "fastllm_wrong:Right"}
            | {name: value for name, value in names.items() if name not in PARTS},
            "fastllm.parts": {name: names[name] for name in PARTS},
        },
        {"fastllm_wrong": (Path(__file__).parent / "wrong_plugins.py").read_text()},
    )
    return site


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_plugin_is_caught_by_the_check_meant_for_it(wrong: FakeSite, name: str) -> None:
    _, meant, seen = WRONG[name]
    check = next(check for check in checks() if check.name == meant)
    subject = Subject(name)
    assert check.applies(subject)
    with pytest.raises(ConformanceError, match=f"plugin '{name}', {meant}: .*{seen}"):
        check(subject)


@pytest.mark.slow
def test_the_right_one_passes_every_check(wrong: FakeSite) -> None:
    results = list(run("right"))
    assert [result.message for result in results if not result.ok] == []
    assert sum(result.outcome == "passed" for result in results) > 14


def test_expected_failures_are_fine_until_they_pass(wrong: FakeSite) -> None:
    expected = {"check_metadata": "it has none", "check_drafts": "one token too many"}
    results = {result.check.name: result for result in take(run("off-by-one", expected_failures=expected), 4)}
    assert (results["check_drafts"].outcome, results["check_drafts"].ok) == ("expected", True)
    assert (results["check_metadata"].outcome, results["check_metadata"].ok) == ("unexpected", False)
    with pytest.raises(ValueError, match="there is no check 'check_nothing'"):
        next(run("right", expected_failures={"check_nothing": "?"}))


def test_in_pytest_an_expected_failure_is_a_strict_xfail() -> None:
    @conformance("right", expected_failures={"check_drafts": "one token too many"})
    def test(check: object, plugin: object) -> None: ...

    cases = {case.id: case.marks for mark in test.pytestmark if mark.args[0] == "check" for case in mark.args[1]}
    assert list(cases) == [check.name for check in checks()]
    assert [(name, mark.name, mark.kwargs["strict"]) for name, marks in cases.items() for mark in marks] == [
        ("check_drafts", "xfail", True)
    ]


def test_a_lossy_plugin_is_not_compared_with_plain_decoding(site: FakeSite) -> None:
    site.plugin("cheap", LOSSY, kind="parts")
    subject = Subject("cheap")
    applying = {check.name for check in checks() if check.applies(subject)}
    assert "check_greedy_text" not in applying
    assert {"check_metadata", "check_same_seed_same_text", "check_model_is_untouched"} <= applying


def take(results: Iterator[Result], count: int) -> list[Result]:
    return [next(results) for _ in range(count)]
