"""The benchmark of a round's own work runs: it stands in for a back end, and must do what the engine asks of one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "core" / "benchmarks" / "round_cost.py"


def test_every_case_is_measured() -> None:
    command = [sys.executable, str(SCRIPT), "--rows", "1", "2", "--tokens", "20", "--repeats", "1"]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    assert [line.split()[:2] for line in ran.stdout.splitlines()] == [
        [case, rows] for case in ("plain", "fixed", "auto") for rows in ("1", "2")
    ]
