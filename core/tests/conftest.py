"""What the tests of the core share."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass
class FakeSite:
    """A folder on the import path into which distributions are installed by hand."""

    folder: Path

    def install(
        self,
        distribution: str,
        entry_points: Mapping[str, Mapping[str, str]],
        modules: Mapping[str, str],
        *,
        version: str = "0.1.0",
        direct_url: Mapping[str, object] | None = None,
    ) -> None:
        """entry_points: value by name by group.  modules: source by module name."""
        info = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        lines = []
        for group, values in entry_points.items():
            lines += [f"[{group}]", *(f"{name} = {value}" for name, value in values.items())]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        if direct_url is not None:
            (info / "direct_url.json").write_text(json.dumps(direct_url))
        for name, source in modules.items():
            (self.folder / f"{name}.py").write_text(textwrap.dedent(source))

    def plugin(self, name: str, source: str, **more: str) -> None:
        """Install `fastllm-plugin-NAME` with a class `Plugin` as a method of that name (`kind="parts"`: as a part)."""
        kind = more.pop("kind", "plugins")
        distribution = more.pop("distribution", f"fastllm-plugin-{name}")
        module = distribution.replace("-", "_")
        self.install(distribution, {f"fastllm.{kind}": {name: f"{module}:Plugin"}}, {module: source})


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSite]:
    """An empty fake site; modules imported from it are forgotten afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.delenv("FASTLLM_PLUGINS", raising=False)
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield FakeSite(folder)
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(sys.modules[name].__file__).startswith(str(folder)):
            del sys.modules[name]
