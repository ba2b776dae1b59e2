"""The tutorial works as it is written: every file is saved and every command run, in an environment of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "authors" / "tutorial.md"
BLOCK = re.compile(r'^```(sh|python)(?: title="([^"]+)")?\n(.*?)^```', re.MULTILINE | re.DOTALL)


def test_every_python_block_says_where_it_goes() -> None:
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    assert all(title for kind, title, _ in blocks if kind == "python")
    assert sum(kind == "sh" for kind, _, _ in blocks) > 3


@pytest.mark.slow
def test_the_tutorial_from_beginning_to_end(tmp_path: Path) -> None:
    """The core is installed, torch and the rest are borrowed from this environment."""
    venv.create(tmp_path / "venv", with_pip=True)
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    packages = [str(ROOT / "core" / "src"), *(str(path) for path in ROOT.glob("plugins/*/src"))]
    environment = {
        **os.environ,
        "PATH": f"{tmp_path / 'venv' / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([*borrowed, *packages]),
    }
    subprocess.run(["pip", "install", "-q", "--no-deps", str(ROOT / "core")], env=environment, check=True, cwd=tmp_path)
    for kind, title, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if kind == "python":
            (tmp_path / title).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / title).write_text(text, encoding="utf-8")
            continue
        for command in text.strip().splitlines():
            start = time.perf_counter()
            done = subprocess.run(
                command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
            )
            print(f"{time.perf_counter() - start:6.1f} s  {command}\n{done.stdout}")
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    wheels = [path.name for path in (tmp_path / "dist").iterdir()]
    assert wheels == ["fastllm_plugin_phrasebook-0.1.0-py3-none-any.whl"]
