"""Two runs side by side: what changed, how surely, and what else differs."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from fastllm_core import RequestError
from fastllm_core.cli.app import run
from fastllm_plugin_bench import report
from fastllm_plugin_bench.compare import changes, surroundings


def arm(label: str, ratio: tuple[float, float, float] | None, status: str = "identical") -> dict[str, Any]:
    told = None if ratio is None else dict(zip(("value", "low", "high"), ratio, strict=True))
    return {"label": label, "status": status, "speed": {"overall": {"ratio": told, "per_round": 2.5}}}


def made(*arms: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": report.FORMAT,
        "model": "demo",
        "suite": {"name": "demo", "hash": "x"},
        "plan": {"repeats": 3},
        "hardware": {"what": "a", "load_at_start": 0.1},
        "versions": {"torch": "1"},
        "cases": [{"batch": 1, "temperature": 0.0, "arms": [arm("plain", None, "reference"), *arms]}],
    }


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ((1.0, 0.95, 1.05), (2.0, 1.9, 2.1), "faster"),
        ((2.0, 1.9, 2.1), (1.0, 0.95, 1.05), "slower"),
        ((2.0, 1.5, 2.6), (2.4, 1.9, 3.0), "no sure change"),
    ],
)
def test_a_change_is_called_sure_only_if_it_is(before: Any, after: Any, verdict: str) -> None:
    change = changes(made(arm("a", before)), made(arm("a", after)))[1]
    assert change.verdict == verdict
    assert change.speed is not None
    assert change.speed.value == pytest.approx(after[0] / before[0])


def test_a_text_that_went_wrong_is_named_first() -> None:
    change = changes(made(arm("a", (2.0, 1.9, 2.1))), made(arm("a", (2.0, 1.9, 2.1), "FAILED")))[1]
    assert change.verdict.startswith("identical became FAILED")


def test_methods_of_one_run_only() -> None:
    found = changes(made(arm("a", (2.0, 1.9, 2.1))), made(arm("b", (2.0, 1.9, 2.1))))
    assert [each.verdict for each in found] == ["as before", "only in the first run", "only in the second run"]


def test_what_else_differs_is_told() -> None:
    first = made()
    second = deepcopy(first)
    second["versions"]["torch"] = "2"
    second["hardware"]["load_at_start"] = 3.0
    second["model"] = "other"
    assert list(surroundings(first, second)) == ["model: demo -> other", "versions torch: 1 -> 2"]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, ratio in (("one", (1.0, 0.95, 1.05)), ("two", (2.0, 1.9, 2.1))):
        (tmp_path / name).mkdir()
        report.write(made(arm("a", ratio)), tmp_path / name)  # type: ignore[arg-type]
    assert not run(["bench", "compare", str(tmp_path / "one"), str(tmp_path / "two" / "report.json")])
    assert "faster" in capsys.readouterr().out
    assert not run(["bench", "compare", str(tmp_path / "one"), str(tmp_path / "two"), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["changes"][1]["change"][0] == pytest.approx(2.0)


def test_what_is_no_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is no report of fastllm bench"):
        report.read(tmp_path)
    (tmp_path / "report.json").write_text('{"format": 0}')
    with pytest.raises(RequestError, match="run the benchmark again"):
        report.read(tmp_path)
