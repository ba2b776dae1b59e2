"""A new plugin package: a working n-gram drafter to start from, written by `fastllm plugins new`."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Final

from ..errors import ConfigError

FILES: Final = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "src/{module}/__init__.py": "init.py",
    "src/{module}/plugin.py": "plugin.py",
    "src/{module}/drafter.py": "drafter.py",
    "src/{module}/py.typed": "py.typed",
    "tests/test_conformance.py": "test_conformance.py",
}
"""Template by path in the new package."""


def write(name: str, folder: Path) -> list[Path]:
    """Write a package for the plugin `name` into a folder, and return its files.

    Raises ConfigError if the name cannot be one, or if the folder is not empty.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise ConfigError(f"'{name}' cannot be a plugin's name: use small letters, digits and single hyphens")
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty: name another folder with --folder")
    from importlib.metadata import version

    core = version("fastllm-core").split(".")
    words = name.split("-")
    values = {
        "name": name,
        "module": f"fastllm_plugin_{name.replace('-', '_')}",
        "kind": "".join(word.capitalize() for word in words),
        "lowest": f"{core[0]}.{core[1]}",
        "next": f"{core[0]}.{int(core[1]) + 1}",
    }
    made = []
    for path, template in FILES.items():
        target = folder / path.format(**values)
        target.parent.mkdir(parents=True, exist_ok=True)
        text = (files(__package__) / "template" / f"{template}.txt").read_text(encoding="utf-8")
        target.write_text(Template(text).substitute(values), encoding="utf-8")
        made.append(target)
    return made
