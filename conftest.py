"""For every test of the repository: programs that someone has compiled on this machine are not taken, and one thread.

Tiny models gain nothing from a second thread, and beside other work they wait for it. Slow tests keep torch's own
number, since what exact mode and compiled programs promise depends on it.
`FASTLLM_COMPILED=FOLDER FASTLLM_FORWARD=compiled pytest -m slow tests/test_equality.py` runs a suite by compiled ones.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports it: kernels for a GPU then run, slowly, without one
os.environ.setdefault("FASTLLM_COMPILED", str(Path(tempfile.gettempdir()) / "fastllm-tests-compile-nothing"))


def pytest_configure(config: pytest.Config) -> None:
    """One thread, in this process and in those that tests start, unless slow tests were asked for."""
    if config.option.markexpr in ("", "not slow and not gpu") and "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)
