"""`pick`: the winner is sound and surely faster, and its file is a configuration that runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomli

import fastllm_core
from fastllm_core import ConfigError
from fastllm_core.cli.app import run
from fastllm_plugin_bench.pick import pick, winner, written
from fastllm_plugin_bench.session import Wishes


def arm(label: str, low: float, value: float, status: str = "identical") -> dict[str, Any]:
    ratio = {"value": value, "low": low, "high": 2 * value - low}
    return {"label": label, "status": status, "speed": {"overall": {"whole_ratio": ratio}}}


PLAIN = {"label": "plain", "status": "reference", "speed": {"overall": {"whole_ratio": None}}}


@pytest.mark.parametrize(
    ("arms", "chosen"),
    [
        ([arm("a", 1.2, 1.5), arm("b", 1.6, 1.8)], "b"),
        ([arm("a", 0.9, 1.5)], "plain"),
        ([arm("wrong", 2.0, 3.0, "FAILED"), arm("lossy", 2.0, 2.5, "lossy"), arm("right", 1.1, 1.2)], "right"),
        ([{"label": "absent", "status": "not applicable", "speed": {}}], "plain"),
    ],
)
def test_the_winner_is_sound_and_surely_faster(arms: list[dict[str, Any]], chosen: str) -> None:
    assert winner([PLAIN, *arms]) == chosen


def wishes(model: str, methods: str) -> Wishes:
    overrides = {"model": model, "device": "cpu", "dtype": "float32", "draft.controller": "fixed"}
    return Wishes(methods=methods, limit=2, max_new_tokens=16, overrides=overrides)


def test_where_nothing_helps_plain_decoding_is_written(model: str, methods: list[str], tmp_path: Path) -> None:
    choice = pick(wishes(model, "slow,dropping,crashing"), seconds=1)
    assert choice.label == "plain"
    text = written(choice)
    settings = tomli.loads(text)
    assert (settings["model"], settings["method"]) == (model, "plain")
    assert "slow: 0." in text
    assert "crashing: not measured, failed" in text
    path = tmp_path / "fastllm.toml"
    path.write_text(text)
    with fastllm_core.load(config=path) as pipeline:
        assert pipeline.method == "plain"


def test_the_winner_is_written_with_its_settings(model: str, methods: list[str], monkeypatch: Any) -> None:
    monkeypatch.setattr("fastllm_plugin_bench.pick.winner", lambda arms: "echo:draft.length=2")
    settings = tomli.loads(written(pick(wishes(model, "echo:draft.length=2"), seconds=1)))
    assert (settings["method"], settings["draft"]["length"]) == ("echo", 2)


def test_a_file_is_not_overwritten_unasked(tmp_path: Path) -> None:
    path = tmp_path / "fastllm.toml"
    path.touch()
    with pytest.raises(ConfigError, match="exists; say --force"):
        run(["bench", "pick", "--write", str(path)])
