"""`fastllm plugins new`: what it writes is a package that installs, works and passes the kit."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import tomli
from typer.testing import CliRunner

from fastllm_core import ConfigError
from fastllm_core.cli.app import app
from fastllm_core.scaffold import write
from fastllm_core.testing.kit import checks
from fastllm_core.testing.subject import Subject

if TYPE_CHECKING:
    from conftest import FakeSite

ROOT = Path(__file__).parents[2]


def test_it_writes_the_files_of_a_package(tmp_path: Path) -> None:
    made = {str(path.relative_to(tmp_path)) for path in write("my-method", tmp_path)}
    assert made == {
        "pyproject.toml",
        "README.md",
        "CHANGELOG.md",
        "src/fastllm_plugin_my_method/__init__.py",
        "src/fastllm_plugin_my_method/plugin.py",
        "src/fastllm_plugin_my_method/drafter.py",
        "src/fastllm_plugin_my_method/py.typed",
        "tests/test_conformance.py",
    }
    project = tomli.loads((tmp_path / "pyproject.toml").read_text())["project"]
    assert project["name"] == "fastllm-plugin-my-method"
    assert project["entry-points"]["fastllm.plugins"] == {"my-method": "fastllm_plugin_my_method.plugin:MyMethod"}
    assert "$" not in "".join(path.read_text() for path in tmp_path.rglob("*.*") if path.is_file())


@pytest.mark.parametrize("name", ["My", "my_method", "-x", "1x", "a--b", "", "x-"])
def test_a_name_that_cannot_be_one_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be a plugin's name: use small letters, digits and single hyphens"):
        write(name, tmp_path)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty: name another folder with --folder"):
        write("mine", tmp_path)


def test_the_code_is_what_ruff_would_write(tmp_path: Path) -> None:
    write("my-method", tmp_path)
    for command in (["format", "--check"], ["check"]):
        settings = ["--config", str(ROOT / "pyproject.toml"), "--config", "src=['src']"]
        ruff = [sys.executable, "-m", "ruff", *command]  # `make test` activates no environment
        done = subprocess.run([*ruff, *settings, str(tmp_path / "src")], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_new_plugin_passes_the_quick_checks(site: FakeSite, tmp_path: Path) -> None:
    made = tmp_path / "new"
    write("fresh", made)
    module = "fastllm_plugin_fresh"
    source = made / "src" / module
    for path in source.iterdir():
        target = site.folder / module / path.name
        target.parent.mkdir(exist_ok=True)
        target.write_text(path.read_text())
    entry = {"fastllm.plugins": {"fresh": f"{module}.plugin:Fresh"}}
    site.install("fastllm-plugin-fresh", entry, {})
    subject = Subject("fresh")
    quick = ("check_metadata", "check_options", "check_import_is_light", "check_drafts", "check_ends")
    for check in checks():
        if check.name in quick:
            check(subject)


def test_new_from_the_command_line_says_what_comes_next(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["plugins", "new", "mine", "--folder", str(tmp_path / "mine")])
    assert done.exit_code == 0
    assert "fastllm plugins check mine" in done.output


def test_doctor_names_the_broken_one_and_the_remedy(site: FakeSite) -> None:
    site.plugin("hurt", "import nothing_of_that_name")
    done = CliRunner().invoke(app, ["plugins", "doctor"])
    assert done.exit_code == 1
    assert "broken  plugin 'hurt' (fastllm-plugin-hurt 0.1.0" in done.output
    assert "No module named 'nothing_of_that_name'" in done.output
    assert "pip install --upgrade fastllm-plugin-hurt" in done.output
    assert "ok      " in done.output, "it goes on behind a broken one"


@pytest.mark.slow
def test_a_new_plugin_installs_and_passes_in_a_fresh_environment(tmp_path: Path) -> None:
    """Not editable, beside a wheel of the core; torch and the rest are borrowed from this environment."""
    write("fresh", tmp_path / "new")
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    borrowed = os.pathsep.join(path for path in sys.path if path.endswith("site-packages"))
    environment = {**os.environ, "PYTHONPATH": borrowed}
    for package in (ROOT / "core", tmp_path / "new"):
        subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", str(package)], check=True)
    fastllm = str(tmp_path / "venv" / "bin" / "fastllm")
    done = subprocess.run([fastllm, "plugins", "check", "fresh"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 failed" in done.stdout
