"""Every package of the repository is named, versioned and listed as the others are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomli
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
CORE = ROOT / "core"
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))
PACKAGES = [CORE, *PLUGINS]
GROUPS = {
    *("fastllm.plugins", "fastllm.parts", "fastllm.models", "fastllm.commands"),
    *("fastllm.trainers", "fastllm.converters"),
}

each_package = pytest.mark.parametrize("folder", PACKAGES, ids=lambda folder: folder.name)
each_plugin = pytest.mark.parametrize("folder", PLUGINS, ids=lambda folder: folder.name)


def toml(path: Path) -> dict[str, Any]:
    return tomli.loads(path.read_text(encoding="utf-8"))


def project(folder: Path) -> dict[str, Any]:
    return toml(folder / "pyproject.toml")["project"]


def lines(name: str) -> list[str]:
    """Lines of a requirements file without comments."""
    text = (ROOT / ".dev" / name).read_text(encoding="utf-8")
    return [line.split(" #")[0].strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def test_every_folder_of_plugins_is_a_package() -> None:
    folders = {path for path in (ROOT / "plugins").iterdir() if path.is_dir() and not path.name.startswith((".", "_"))}
    assert folders == set(PLUGINS)


def test_every_package_is_installed_for_developers() -> None:
    editable = {line.removeprefix("-e ") for line in lines("requirements.txt") if line.startswith("-e ")}
    assert editable == {f"./{folder.relative_to(ROOT).as_posix()}" for folder in PACKAGES}


def test_constraints_are_used_and_pin_torch() -> None:
    assert "-c constraints.txt" in lines("requirements.txt")
    assert "torch==2.13.0" in lines("constraints.txt")


@each_package
def test_the_oldest_versions_that_are_tested_are_the_oldest_that_are_admitted(folder: Path) -> None:
    pins = {Requirement(line).name: Version(line.split("==")[1]) for line in lines("oldest.txt")}
    for dependency in map(Requirement, project(folder)["dependencies"]):
        if not dependency.name.startswith("fastllm-"):
            oldest = Version(next(bound.version for bound in dependency.specifier if bound.operator == ">="))
            assert pins[dependency.name].release[: len(oldest.release)] == oldest.release, dependency


def test_root_is_no_package() -> None:
    assert set(toml(ROOT / "pyproject.toml")) == {"tool"}


@each_plugin
def test_names_of_a_plugin_agree(folder: Path) -> None:
    assert project(folder)["name"] == f"fastllm-plugin-{folder.name}"
    imported = f"fastllm_plugin_{folder.name.replace('-', '_')}"
    assert toml(folder / "pyproject.toml")["tool"]["flit"]["module"]["name"] == imported
    assert (folder / "src" / imported / "__init__.py").is_file()
    assert [path.name for path in (folder / "src").glob("*/")] == [imported]


def test_names_of_the_core() -> None:
    assert project(CORE)["name"] == "fastllm-core"
    assert project(CORE)["scripts"] == {"fastllm": "fastllm_core.cli:main"}


@each_plugin
def test_entry_points_belong_to_the_plugin(folder: Path) -> None:
    groups = project(folder)["entry-points"]
    assert groups
    assert set(groups) <= GROUPS
    for group, entries in groups.items():
        for name, target in entries.items():
            module, _, attribute = target.partition(":")
            assert module.split(".")[0] == f"fastllm_plugin_{folder.name.replace('-', '_')}"
            assert attribute
            # A method is found by the name of its package: that is what `pip install fastllm-plugin-...` advises.
            if group == "fastllm.plugins":
                assert name == folder.name


def test_names_are_given_once() -> None:
    given = [
        (group, name)
        for folder in PLUGINS
        for group, entries in project(folder)["entry-points"].items()
        for name in entries
    ]
    assert len(given) == len(set(given))


@each_package
def test_versions_agree(folder: Path) -> None:
    core, own = (Version(project(each)["version"]) for each in (CORE, folder))
    assert (own.major, own.minor) == (core.major, core.minor)


@each_plugin
def test_plugin_asks_for_the_core_of_its_version(folder: Path) -> None:
    core = Version(project(CORE)["version"])
    (needed,) = (
        requirement
        for requirement in map(Requirement, project(folder)["dependencies"])
        if requirement.name == "fastllm-core"
    )
    assert str(needed.specifier) == f"<{core.major}.{core.minor + 1},>={core.major}.{core.minor}"


@each_plugin
def test_plugin_depends_on_no_other_plugin(folder: Path) -> None:
    needed = [Requirement(line).name for line in project(folder)["dependencies"]]
    assert not [name for name in needed if name.startswith("fastllm-plugin-")]


@each_package
def test_package_is_complete(folder: Path) -> None:
    for name in ("README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml"):
        assert (folder / name).is_file(), f"{folder.name} has no {name}"
    assert list(folder.glob("src/*/py.typed")), f"{folder.name} has no py.typed"
    assert list(folder.glob("tests/test_*.py")), f"{folder.name} has no tests"
    version = project(folder)["version"]
    assert f"## [{version}]" in (folder / "CHANGELOG.md").read_text(encoding="utf-8")


@each_package
def test_package_metadata_agrees(folder: Path) -> None:
    data = toml(folder / "pyproject.toml")
    assert data["build-system"]["build-backend"] == "flit_core.buildapi"
    assert data["project"]["requires-python"] == ">=3.11"
    assert "Apache-2.0" in data["project"]["license"]
    assert (folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert all("torch==" not in requirement for requirement in data["project"]["dependencies"])
