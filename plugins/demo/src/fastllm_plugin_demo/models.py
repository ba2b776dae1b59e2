"""The model names that this package registers. Importing this module is cheap: no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .shape import Shape

FORMAT = 1
"""Raised whenever `grow` or `build` write something else for the same recipe, so that no stale cache is used."""

Options = Mapping[str, Mapping[str, object]]
"""Default options by plugin name."""

PAIRED: Options = {
    "speculative": {"draft_model": "demo-drafter"},
    "uag": {"draft_model": "demo-drafter-512"},
}

HEAD_FILES = ("config.json", "model.safetensors")


def _paired(target: str) -> Options:
    """What drafts for a target: the same drafter for all, and a head of its own."""
    return {**PAIRED, "kangaroo": {"adapter": f"{target}-kangaroo"}, "medusa": {"heads": f"{target}-medusa"}}


@dataclass(frozen=True, slots=True)
class Shipped:
    """A model inside this package."""

    description: str
    folder: str
    method: str | None = None
    options: Options = field(default_factory=dict, hash=False)

    def path(self) -> Path:
        """The folder to load."""
        return Path(__file__).with_name("models") / self.folder


@dataclass(frozen=True, slots=True)
class Grown:
    """A larger model that computes what its source computes, built when first asked for and kept in the cache."""

    name: str
    description: str
    shape: Shape
    source: Shipped
    seed: int = 0
    method: str | None = "speculative"
    options: Options = field(default_factory=dict, hash=False)

    def path(self) -> Path:
        """The folder to load. The first call builds it, in seconds; raises ModelError if it cannot be written."""
        from . import cache

        count = self._parameters()
        what = f"{self.name} (grown from {self.source.folder} to {count / 1e6:.0f}M parameters)"
        bytes_in_all = 2 * count + 4_000_000  # bfloat16, and some room for the tokenizer
        return cache.keep(f"{self.name}-{self._recipe_hash()}", what, bytes_in_all, self._build)

    def _build(self, folder: Path) -> None:
        from .build import build  # torch enters here

        build(self.name, self.source.path(), self.shape, self.seed, folder)

    def _parameters(self) -> int:
        config: dict[str, Any] = json.loads((self.source.path() / "config.json").read_text(encoding="utf-8"))
        return self.shape.parameters(head_dim=config["head_dim"], vocabulary=config["vocab_size"])

    def _recipe_hash(self) -> str:
        """Changes with everything that the folder's contents follow from."""
        digest = hashlib.sha256(f"{FORMAT} {self.shape} {self.seed}".encode())
        contents = (path for path in self.source.path().iterdir() if path.suffix != ".md")
        for path in sorted(contents):
            digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class GrownHead:
    """A head for a grown model that drafts what its source drafts for the small one, built when first asked for."""

    name: str
    description: str
    source: Shipped
    target: Grown
    method: str | None = None
    options: Options = field(default_factory=dict, hash=False)

    def path(self) -> Path:
        """The folder to load. The first call builds it, and its target; raises ModelError if it cannot be written."""
        from . import cache

        what = f"{self.name} (grown from {self.source.folder})"
        most = 32 * self.target.shape.hidden**2  # a whole decoder layer in bfloat16, and some room
        return cache.keep(f"{self.name}-{self._recipe_hash()}", what, most, self._build, HEAD_FILES)

    def _build(self, folder: Path) -> None:
        from .heads import build  # torch enters here

        build(self.source.path(), self.target, folder)

    def _recipe_hash(self) -> str:
        digest = hashlib.sha256(f"{FORMAT} {self.target._recipe_hash()}".encode())
        for name in HEAD_FILES:
            digest.update((self.source.path() / name).read_bytes())
        return digest.hexdigest()[:12]


DEMO = Shipped("children's stories in English, 6M parameters", "stories-6m-4096", "speculative", _paired("demo"))
DRAFTER = Shipped("drafter for the demo models, 1M parameters, their tokenizer", "stories-1m-4096")
DRAFTER_512 = Shipped("drafter with another tokenizer (512 entries), 260k parameters", "stories-260k-512")
KANGAROO = Shipped("adapter for demo, for the method kangaroo", "stories-6m-4096-kangaroo")
MEDUSA = Shipped("heads for demo, for the method medusa", "stories-6m-4096-medusa")


def _grown(name: str, size: str, shape: Shape) -> Grown:
    description = f"demo, grown to the cost of {size} parameters: the same stories"
    return Grown(name, description, shape, DEMO, options=_paired(name))


def _grown_adapter(target: Grown) -> GrownHead:
    return GrownHead(f"{target.name}-kangaroo", f"adapter for {target.name}, grown with it", KANGAROO, target)


def _grown_heads(target: Grown) -> GrownHead:
    return GrownHead(f"{target.name}-medusa", f"heads for {target.name}, grown with it", MEDUSA, target)


DEMO_100M = _grown("demo-100m", "100M", Shape(768, 14, 2048, 24, 12))
DEMO_350M = _grown("demo-350m", "350M", Shape(1024, 28, 2816, 32, 16))
DEMO_1B = _grown("demo-1b", "1B", Shape(2048, 20, 5504, 64, 32))

GROWN: Mapping[str, Grown] = {model.name: model for model in (DEMO_100M, DEMO_350M, DEMO_1B)}
"""Every grown model by its name."""

KANGAROO_100M, KANGAROO_350M, KANGAROO_1B = map(_grown_adapter, (DEMO_100M, DEMO_350M, DEMO_1B))
MEDUSA_100M, MEDUSA_350M, MEDUSA_1B = map(_grown_heads, (DEMO_100M, DEMO_350M, DEMO_1B))
