"""Files that hold skip sets: this plugin's own and the two formats that were published, and the sets that ship here.

- this plugin's own: `{"format": "fastllm-skip-set", "version": 1, "attention": [...], "mlp": [...], "model": {...}}`
- Draft & Verify's: `{"<model>": {"attention": [...], "mlp": [...]}, ...}`
- fast-llm-inference's: `{"attn": [...], "mlp": [...]}`
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from fastllm_core import ConfigError, TargetIdentity

from .skipset import SkipSet

FORMAT: Final = "fastllm-skip-set"
VERSION: Final = 1
PUBLISHED: Final = "published.json"
ANY: Final = TargetIdentity()
"""What a file says of its model that says nothing."""


@dataclass(frozen=True, slots=True)
class Found:
    """A skip set and where it came from."""

    skipped: SkipSet
    source: str
    """For messages: the file, or the published set's name."""
    identity: TargetIdentity = ANY
    """The model that it is for, as far as the file says."""
    best: float | None = None
    """If nothing is skipped because nothing pays: speed against plain decoding of the best set that was tried."""


def find(name: str, model: str) -> Found:
    """The set that `name` stands for: a file, or one that ships with this plugin.

    model: the target's name, which chooses among several sets in a file. Raises ConfigError.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return read(path, model)
    known = published()
    if name in known:
        return known[name]
    if path.suffix or len(path.parts) > 1:
        raise ConfigError(f"skip set {name}: there is no such file")
    raise ConfigError(f"skip set '{name}' is no file and no published set; published: {', '.join(known)}")


def published() -> dict[str, Found]:
    """The sets that ship with this plugin, by name."""
    text = (files(__package__) / PUBLISHED).read_text(encoding="utf-8")
    return {
        name: Found(_sets(entry, name), f"published set '{name}'", TargetIdentity.read(entry["model"]))
        for name, entry in json.loads(text).items()
    }


def read(path: Path, model: str) -> Found:
    """The set of a file in any of the formats. Raises ConfigError."""
    source = f"skip set {path}"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or ["empty"])[0]
        raise ConfigError(f"{source} cannot be read: {reason}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{source}: a JSON object was expected, not a {type(value).__name__}")
    if "format" in value:
        return _own(value, source)
    if value.keys() <= {"attn", "attention", "mlp"} and value:
        return Found(_sets(value, source), source)
    name, entry = _entry(value, source, model)
    return Found(_sets(entry, source), source, TargetIdentity(model=name))


def _own(value: Mapping[str, Any], source: str) -> Found:
    if value["format"] != FORMAT:
        raise ConfigError(f"{source}: its format is {value['format']!r}, not '{FORMAT}'")
    if value.get("version") != VERSION:
        raise ConfigError(f"{source}: it is of version {value.get('version')}, and this plugin reads version {VERSION}")
    model = value.get("model", {})
    if not isinstance(model, dict):
        raise ConfigError(f"{source}: model must be an object that says which model the set is for")
    return Found(_sets(value, source), source, TargetIdentity.read(model), value.get("best"))


def _entry(value: Mapping[str, Any], source: str, model: str) -> tuple[str, Any]:
    """The one entry of a file of sets by model, or the one with the target's name."""
    if len(value) == 1:
        return next(iter(value.items()))
    for name, entry in value.items():
        if name == model or name.rpartition("/")[2] == model.rstrip("/").rpartition("/")[2]:
            return name, entry
    names = ", ".join(value) or "none"
    raise ConfigError(f"{source}: holds sets for {names}, and none of them is called '{model}'; leave only one there")


def _sets(value: Any, source: str) -> SkipSet:
    if not isinstance(value, dict):
        raise ConfigError(f"{source}: a set is an object with the lists attention (or attn) and mlp")
    attention = value.get("attention", value.get("attn"))
    return SkipSet.of(_layers(attention, "attention", source), _layers(value.get("mlp"), "mlp", source))


def _layers(value: Any, name: str, source: str) -> list[int]:
    if not isinstance(value, list) or any(type(layer) is not int for layer in value):
        raise ConfigError(f"{source}: {name} must be a list of layer numbers, not {value!r:.60}")
    return value
