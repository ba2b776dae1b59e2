"""`forward`: what is timed fits, and the floor is the model's bytes and arithmetic."""

from __future__ import annotations

import json
from typing import Any

import pytest

import fastllm_core
from fastllm_core import Network
from fastllm_core.cli.app import run
from fastllm_core.testing import tiny_model
from fastllm_plugin_bench.forward import Machine, measure, size_of


@pytest.mark.parametrize("tied", [False, True])
def test_the_size_of_a_model(tied: bool) -> None:
    """4 layers of q 32x32, k and v 16x32, o 32x32, three matrices 48x32 and norms; a table and a head of 64x32."""
    with fastllm_core.load(tiny_model(tie_word_embeddings=tied), config={"method": "plain"}) as pipeline:
        size = size_of(Network(pipeline.target))
    matrices = 4 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32) + 64 * 32
    assert size.multiplied == matrices
    assert size.weights == 4 * (matrices + 9 * 32)
    assert size.cache == 4 * 4 * 2 * (8 + 8)  # bytes, layers, heads, keys and values
    assert size.attention == 4 * 2 * 4 * (8 + 8)


def test_the_floor_is_reading_or_computing() -> None:
    with fastllm_core.load(tiny_model(), config={"method": "plain"}) as pipeline:
        size = size_of(Network(pipeline.target))
        slow_memory, slow_units = Machine(1e3, 1e15), Machine(1e15, 1e3)
        assert size.floor(8, 100, slow_memory) == size.floor(1, 100, slow_memory)
        assert size.floor(8, 100, slow_units) == pytest.approx(8 * size.floor(1, 100, slow_units))
        timings = list(measure(pipeline, [1, 4, 64], [0, 200], 2, slow_memory))
    assert [(each.context, each.rows) for each in timings] == [(0, 1), (0, 4), (0, 64), (200, 1), (200, 4)]
    assert all(0 < each.fastest <= each.seconds for each in timings)


def test_the_command(model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("fastllm_plugin_bench.forward.COPIED", 1 << 20)
    monkeypatch.setattr("fastllm_plugin_bench.forward.SQUARE", 64)
    arguments = ["bench", "forward", "--model", model, "--rows", "1,2", "--contexts", "16", "--repeats", "2"]
    assert not run(arguments)
    assert "times the" in capsys.readouterr().out
    assert not run([*arguments, "--json"])
    told: Any = json.loads(capsys.readouterr().out)
    assert [each["rows"] for each in told["forwards"]] == [1, 2]
    assert told["machine"]["bytes_per_s"] > 0
