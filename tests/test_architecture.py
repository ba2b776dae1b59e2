"""The lines between packages hold: plugins know the core's public names only, the core no plugin, listing no torch.

The checker reads source files and imports none of them, so that an import inside a function is found as well. Packages
are found by glob: a new plugin is covered with no edit.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = "fastllm_core"
PLUGIN_PREFIX = "fastllm_plugin_"
OPEN_MODULES = {CORE, f"{CORE}.testing", f"{CORE}.cli.settings"}
"""What a plugin may import from: the names of the core, the kit for tests, and what commands share."""

HEAVY = ("torch", "transformers", "safetensors.torch", "accelerate")
LIGHT_IN_CORE = ("__init__", "cli", "config", "discovery", "errors", "hookspecs", "options")
LIGHT_IN_PLUGINS = ("__init__", "cli", "models", "plugin")
"""Modules (or packages) that list, describe or configure: imported without the seconds that torch takes."""


@dataclass(frozen=True)
class Import:
    """One imported thing: `module`, or `name` from it."""

    line: int
    module: str
    name: str | None = None

    @property
    def full_name(self) -> str:
        return f"{self.module}.{self.name}" if self.name else self.module


@dataclass(frozen=True)
class Source:
    """A module of a package: its file and its dotted name."""

    path: Path
    module: str

    def imports(self, *, module_level: bool = False) -> Iterator[Import]:
        """What it imports anywhere, or only what importing it imports."""
        tree = ast.parse(self.path.read_text(encoding="utf-8"))
        for node in _run_on_import(tree) if module_level else ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from (Import(node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                module = self._absolute(node)
                yield from (Import(node.lineno, module, alias.name) for alias in node.names)

    def _absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = self.module.split(".")
        above = node.level - 1 if self.path.name == "__init__.py" else node.level
        return ".".join([*parts[: len(parts) - above], *([node.module] if node.module else [])])


def _run_on_import(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run when the module is imported: no function bodies, nothing under TYPE_CHECKING."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            yield from (inner for other in node.orelse for inner in (other, *_run_on_import(other)))
            continue
        yield node
        yield from _run_on_import(node)


def packages(root: Path) -> list[Path]:
    """The import packages of core and plugins."""
    return sorted(folder.parent for folder in root.glob("**/src/fastllm_*/__init__.py") if ".venv" not in folder.parts)


def sources(package: Path) -> dict[str, Source]:
    """The modules of a package by dotted name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = Source(path, name)
    return found


def border_violations(root: Path, public: Collection[str]) -> list[str]:
    """Imports that cross a line, as `path:line says what`. public: the names that the core exports."""
    found = []
    for package in packages(root):
        for source in sources(package).values():
            for imported in source.imports():
                complaint = _complaint(package.name, imported, public)
                if complaint:
                    found.append(f"{source.path.relative_to(root)}:{imported.line} {complaint}")
    return found


def _complaint(package: str, imported: Import, public: Collection[str]) -> str | None:
    top = imported.module.split(".")[0]
    if top == package or not top.startswith("fastllm_"):
        return None
    if top != CORE:
        return f"imports {imported.full_name}, which belongs to another plugin"
    if imported.module not in OPEN_MODULES:
        return f"imports from {imported.module}, which is the core's own"
    exported = imported.module != CORE or imported.name in {None, "testing", *public}
    return None if exported else f"imports {imported.full_name}, which is not a public name"


def heavy_violations(root: Path) -> list[str]:
    """Light modules whose import brings torch, directly or through modules of their own package."""
    found = []
    for package in packages(root):
        modules = sources(package)
        for light in LIGHT_IN_CORE if package.name == CORE else LIGHT_IN_PLUGINS:
            name = package.name if light == "__init__" else f"{package.name}.{light}"
            starts = [
                module for module in modules if module == name or (light == "cli" and module.startswith(f"{name}."))
            ]
            found += [problem for start in starts for problem in _heavy_from(modules, start, root)]
    return sorted(set(found))


def _heavy_from(modules: dict[str, Source], start: str, root: Path) -> Iterator[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name not in modules or name in seen:
            continue
        seen.add(name)
        source = modules[name]
        for imported in source.imports(module_level=True):
            if any(imported.full_name == heavy or imported.full_name.startswith(f"{heavy}.") for heavy in HEAVY):
                where = f"{source.path.relative_to(root)}:{imported.line}"
                yield f"{where} imports {imported.full_name}, and importing {start} must not"
            # Importing a.b.c runs a and a.b as well.
            parts = imported.full_name.split(".")
            waiting += [".".join(parts[: i + 1]) for i in range(len(parts))]


def test_packages_are_found() -> None:
    names = [package.name for package in packages(ROOT)]
    assert CORE in names
    assert len(names) == 1 + len(list(ROOT.glob("plugins/*/pyproject.toml")))


def test_nobody_crosses_a_border() -> None:
    import fastllm_core

    assert border_violations(ROOT, fastllm_core.__all__) == []


def test_nothing_light_imports_torch() -> None:
    assert heavy_violations(ROOT) == []


def plant(root: Path, path: str, code: str) -> None:
    """Write a module into a repository that has a core and two plugins."""
    for package in ("core/src/fastllm_core", "plugins/a/src/fastllm_plugin_a", "plugins/b/src/fastllm_plugin_b"):
        (root / package).mkdir(parents=True, exist_ok=True)
        (root / package / "__init__.py").touch()
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(code, encoding="utf-8")


IN_A = "plugins/a/src/fastllm_plugin_a/drafter.py"


@pytest.mark.parametrize(
    ("path", "code", "complaint"),
    [
        (IN_A, "import fastllm_plugin_b", "another plugin"),
        (IN_A, "from fastllm_plugin_b.drafter import X", "another plugin"),
        (IN_A, "def late():\n    import fastllm_plugin_b", "another plugin"),
        (IN_A, "import fastllm_core.engine", "the core's own"),
        (IN_A, "from fastllm_core.errors import ModelError", "the core's own"),
        (IN_A, "from fastllm_core import engine", "not a public name"),
        (IN_A, "from fastllm_core import ModelError, _private", "not a public name"),
        ("core/src/fastllm_core/compose.py", "def late():\n    from fastllm_plugin_a import X", "another plugin"),
        ("core/src/fastllm_core/compose.py", "import fastllm_plugin_a.drafter", "another plugin"),
    ],
)
def test_planted_crossing_is_found(tmp_path: Path, path: str, code: str, complaint: str) -> None:
    plant(tmp_path, path, code)
    (violation,) = border_violations(tmp_path, ["ModelError"])
    assert violation.startswith(f"{path}:{code.count(chr(10)) + 1} ")
    assert complaint in violation


@pytest.mark.parametrize(
    "code",
    [
        "import fastllm_core",
        "from fastllm_core import ModelError",
        "from fastllm_core import testing",
        "from fastllm_core.testing import conformance",
        "from fastllm_core.cli.settings import Model",
        "from fastllm_plugin_a.heads import Heads",
        "from .heads import Heads",
        "import torch",
    ],
)
def test_what_a_plugin_may_import(tmp_path: Path, code: str) -> None:
    plant(tmp_path, IN_A, code)
    assert border_violations(tmp_path, ["ModelError"]) == []


PLUGIN = "plugins/a/src/fastllm_plugin_a/plugin.py"


@pytest.mark.parametrize(
    ("path", "code"),
    [
        (PLUGIN, "import torch"),
        (PLUGIN, "import torch.nn.functional as F"),
        (PLUGIN, "from transformers import AutoModel"),
        (PLUGIN, "from safetensors.torch import load_file"),
        (PLUGIN, "from safetensors import torch"),
        (PLUGIN, "try:\n    import torch\nexcept ImportError:\n    pass"),
        (PLUGIN, "class Late:\n    import torch"),
        (PLUGIN, "if TYPE_CHECKING:\n    pass\nelse:\n    import torch"),
        ("plugins/a/src/fastllm_plugin_a/models.py", "import torch"),
        ("plugins/a/src/fastllm_plugin_a/__init__.py", "import torch"),
        *((f"core/src/fastllm_core/{light}.py", "from torch import Tensor") for light in LIGHT_IN_CORE),
        ("core/src/fastllm_core/cli/generate.py", "import torch"),
    ],
)
def test_planted_torch_is_found(tmp_path: Path, path: str, code: str) -> None:
    plant(tmp_path, path, code)
    assert [violation for violation in heavy_violations(tmp_path) if violation.startswith(f"{path}:")]


@pytest.mark.parametrize("code", ["from .drafter import X", "from . import drafter", "import fastllm_plugin_a.drafter"])
def test_planted_torch_is_found_behind_another_module(tmp_path: Path, code: str) -> None:
    plant(tmp_path, IN_A, "import torch")
    plant(tmp_path, PLUGIN, code)
    (violation,) = heavy_violations(tmp_path)
    assert violation == f"{IN_A}:1 imports torch, and importing fastllm_plugin_a.plugin must not"


@pytest.mark.parametrize(
    "code",
    [
        "def late():\n    import torch",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from torch import Tensor",
        "def late():\n    from .drafter import X",
        "import torchless",
    ],
)
def test_torch_may_enter_later(tmp_path: Path, code: str) -> None:
    plant(tmp_path, IN_A, "import torch")
    plant(tmp_path, PLUGIN, code)
    assert heavy_violations(tmp_path) == []
