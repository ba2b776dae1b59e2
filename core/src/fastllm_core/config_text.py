"""The configuration as TOML text: a commented file to start from, and what is in force."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from .config import CONFIG_FILE, Config

HEAD = f"""\
# Configuration of fastllm. Found as {CONFIG_FILE} in the current directory, by FASTLLM_CONFIG, or by --config.
# Every value below is the default; what is commented out is unset. The environment (FASTLLM_DRAFT__LENGTH=3) and the
# command line (--set draft.length=3) win over this file.
"""
OPTIONS_EXAMPLE = """
# Options of each plugin by its name; `fastllm plugins show NAME` lists them.
# [options.speculative]
# draft_model = "demo-drafter"
"""


def starter() -> str:
    """A commented configuration file that states every default, made from the fields' descriptions."""
    return HEAD + "".join(_values(Config)) + "".join(_tables(Config)) + OPTIONS_EXAMPLE


def to_toml(config: Config, *, brief: bool = False) -> str:
    """A configuration as TOML; what is unset is left out. brief: leave out what is the default as well."""
    return "\n".join(_lines(config.model_dump(exclude_defaults=brief), ())).strip() + "\n"


def _values(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        if _table(field) is None and name != "options":
            default = field.get_default(call_default_factory=True)
            line = f"# {name} = {_hint(field)}" if default is None else f"{name} = {_toml(default)}"
            yield f"\n{_comment(field.description)}{line}\n"


def _tables(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        table = _table(field)
        if table is not None:
            yield f"\n{_comment(field.description)}[{name}]\n"
            yield "".join(_values(table)).replace("\n\n", "\n").lstrip("\n")


def _table(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _comment(text: str | None) -> str:
    return "".join(f"# {line}\n" for line in textwrap.wrap(text or "", 110))


def _hint(field: FieldInfo) -> str:
    """A value of the right type for a key that is unset."""
    kinds = str(field.annotation)
    return '""' if "str" in kinds else "1.0" if "float" in kinds else "1"


def _lines(table: dict[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    for key, value in table.items():
        if not isinstance(value, dict) and value is not None:
            yield f"{_key(key)} = {_toml(value)}"
    for key, value in table.items():
        if isinstance(value, dict):
            inner = list(_lines(value, (*path, key)))
            if inner and not inner[0].startswith("\n["):
                yield f"\n[{'.'.join(_key(part) for part in (*path, key))}]"
            yield from inner


def _key(key: str) -> str:
    return key if key.replace("-", "").replace("_", "").isalnum() and key.isascii() else json.dumps(key)


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)} = {_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(inner) for inner in value) + "]"
    return json.dumps(value, ensure_ascii=False)  # strings, numbers and booleans are written as in JSON
