"""Plugins as their users get them: wheels, in an environment that has never seen this checkout."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
ROLES = dict(
    re.findall(
        r'^```python title="(\w+)"\n(.*?)^```',
        (ROOT / "docs/authors/roles.md").read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
)
PROJECT = """
[build-system]
requires = ["flit_core>=3.12,<4"]
build-backend = "flit_core.buildapi"

[project]
name = "third-party-{role}"
version = "1.0"
description = "Fills a role"
dependencies = ["fastllm-core>=0.1,<0.2"]

[project.entry-points."fastllm.parts"]
{role} = "third_party_{role}.plugin:Plugin"

[tool.flit.module]
name = "third_party_{role}"
"""


def packages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("packages", ROOT / ".dev/packages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*command: object, cwd: Path, fails: bool = False) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert (done.returncode != 0) is fails, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def wheel(source: Path, dist: Path) -> Path:
    before = set(dist.glob("*.whl"))
    run(sys.executable, "-m", "build", "--wheel", "--outdir", dist, source, cwd=dist)
    return next(iter(set(dist.glob("*.whl")) - before))


def written(folder: Path, role: str, code: str) -> Path:
    """The page's example as a package: the plugin in a module that is light to import, the rest in another."""
    source = folder / role
    package = source / f"third_party_{role}"
    package.mkdir(parents=True)
    (source / "pyproject.toml").write_text(PROJECT.format(role=role), encoding="utf-8")
    (package / "__init__.py").write_text(f'"""Fills the role of the {role}."""\n', encoding="utf-8")
    above, plugin = code.split("class Plugin:")
    (package / "role.py").write_text(above, encoding="utf-8")
    needed = ", ".join(re.findall(r"^class (\w+)", above, re.MULTILINE))
    plugin = re.sub(r"(    def fastllm_\w+\(.*\):\n)", rf"\1        from .role import {needed}\n\n", plugin)
    text = f"from fastllm_core import hookimpl\n\n\nclass Plugin:{plugin}"
    (package / "plugin.py").write_text(text, encoding="utf-8")
    return source


@pytest.mark.slow
def test_wheels_of_third_parties_are_found_checked_and_removed(tmp_path: Path) -> None:
    """A drafter from `plugins new`, and an acceptor, a cache wrapper and a verifier as a third party writes them."""
    dist = tmp_path / "dist"
    dist.mkdir()
    run(Path(sys.executable).parent / "fastllm", "plugins", "new", "cuckoo", cwd=tmp_path)
    sources = {"cuckoo": next(tmp_path.glob("*cuckoo*"))}
    sources |= {role: written(tmp_path, role, code) for role, code in ROLES.items()}
    wheels = {name: wheel(source, dist) for name, source in sources.items()}
    ours = [wheel(ROOT / "core", dist), wheel(ROOT / "plugins" / "demo", dist)]
    programs = packages().environment(tmp_path / "env", [*ours, *wheels.values()])

    for name in wheels:
        print(run(programs / "fastllm", "plugins", "check", name, cwd=tmp_path))
    story = ("generate", "--model", "demo", "Once upon a time", "--max-new-tokens", "20")
    plain = run(programs / "fastllm", *story, "--method", "plain", cwd=tmp_path)
    everything = ("--method", "cuckoo", "--set", f"use={json.dumps(list(ROLES))}")
    assert run(programs / "fastllm", *story, *everything, cwd=tmp_path) == plain

    for name, path in wheels.items():
        distribution = path.name.split("-")[0].replace("_", "-")
        run(programs / "python", "-m", "pip", "uninstall", "--yes", "--quiet", distribution, cwd=tmp_path)
        assert name not in run(programs / "fastllm", "plugins", "list", cwd=tmp_path)
        assert "error: " in run(programs / "fastllm", "plugins", "check", name, cwd=tmp_path, fails=True)
        assert run(programs / "fastllm", *story, "--method", "plain", cwd=tmp_path) == plain
