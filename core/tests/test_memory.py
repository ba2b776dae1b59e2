"""What cannot fit is refused before it is read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastllm_core import memory
from fastllm_core.errors import ModelError
from fastllm_core.models import load_model
from fastllm_core.testing import tiny_model

CPU = torch.device("cpu")


def test_what_is_free_is_read_from_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    assert memory.available_bytes(CPU) is None, "nobody can say"
    assert memory.shortage(1 << 60, CPU) is None
    (tmp_path / "meminfo").write_text("MemTotal:  100 kB\nMemAvailable:      5 kB\n")
    assert memory.available_bytes(CPU) == 5120
    assert memory.shortage(5120, CPU) is None
    assert memory.shortage(5_000_000_000, CPU) == "needs 5.0 GB, and 0.0 GB are free on cpu"


def test_weights_that_do_not_fit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path)
    weights = sum(parameter.numel() for parameter in model.parameters())
    asked = []

    def free(_: torch.device) -> int:
        asked.append(True)
        return weights * 4 - 1

    monkeypatch.setattr(memory, "available_bytes", free)
    with pytest.raises(ModelError, match=r"needs 0\.0 GB.*take a smaller one"):
        load_model(tmp_path, device="cpu", dtype="float32")
    assert load_model(tmp_path, device="cpu", dtype="bfloat16").dtype is torch.bfloat16
    assert len(asked) == 2
