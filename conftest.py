"""For every test of the repository: programs that someone has compiled on this machine are not taken.

`FASTLLM_COMPILED=FOLDER FASTLLM_FORWARD=compiled pytest -m slow tests/test_equality.py` runs a suite by compiled ones.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

os.environ.setdefault("FASTLLM_COMPILED", str(Path(tempfile.gettempdir()) / "fastllm-tests-compile-nothing"))
