"""Where settings come from, and how a wrong one is reported: by dotted key, with its source and what was meant."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import tomli
from pydantic import BaseModel, ValidationError

from .errors import ConfigError
from .suggest import did_you_mean

PREFIX = "FASTLLM_"
RESERVED = ("FASTLLM_PLUGINS", "FASTLLM_CACHE", "FASTLLM_COMPILED", "FASTLLM_CONFIG", "FASTLLM_TRACE_PLUGINS")
"""Variables of fastllm that are not configuration keys."""

Path_ = tuple[str, ...]
Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Layer:
    """Settings of one source, by path."""

    source: str
    values: Mapping[Path_, object]
    texts: bool = False
    """Strings are as typed by a person and still have to be read as TOML values."""


def flatten(values: Mapping[str, object], prefix: Path_ = ()) -> Iterator[tuple[Path_, object]]:
    """Every leaf of a nested mapping by its path; keys may be dotted. An empty table is a leaf."""
    for key, value in values.items():
        path = (*prefix, *key.split(".")) if not prefix else (*prefix, key)
        if isinstance(value, Mapping) and value:
            yield from flatten(value, path)
        else:
            yield path, dict(value) if isinstance(value, Mapping) else value


def file(path: Path) -> Layer:
    """The settings of a TOML file."""
    try:
        return Layer(str(path), dict(flatten(tomli.loads(path.read_text(encoding="utf-8")))))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration: {error.strerror or error}") from error
    except (tomli.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def environment(environ: Mapping[str, str], model: type[BaseModel]) -> list[Layer]:
    """The settings of variables such as FASTLLM_DRAFT__LENGTH, one layer each. An empty variable counts as unset.

    A plugin's name may have hyphens, which a shell allows in no variable: `_` stands for them there.
    """
    known = [PREFIX + "__".join(path).upper() for path in _leaves(model)]
    layers, problems = [], []
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in RESERVED or not environ[name]:
            continue
        path = tuple(name[len(PREFIX) :].lower().split("__"))
        if name not in known and not (path[0] == "options" and len(path) > 2):
            problems.append(f"{name}: unknown environment variable{did_you_mean(name, [*known, *RESERVED])}")
        if path[0] == "options" and len(path) > 2:
            path = (path[0], path[1].replace("_", "-"), *path[2:])
        layers.append(Layer(f"environment variable {name}", {path: environ[name]}, texts=True))
    if problems:
        raise ConfigError("\n".join(problems))
    return layers


def merge(layers: Iterable[Layer], model: type[BaseModel]) -> tuple[dict[str, Any], dict[Path_, str]]:
    """Nested settings, later layers winning, and which source each came from. Raises ConfigError."""
    merged: dict[str, Any] = {}
    sources: dict[Path_, str] = {}
    for layer in layers:
        for path, value in layer.values.items():
            if "trust_remote_code" in path:
                raise ConfigError(
                    f"{'.'.join(path)}: never read from a configuration ({layer.source}), since it runs foreign code; "
                    "say --trust-remote-code or load(..., trust_remote_code=True)"
                )
            read = _read(value, _annotation(model, path)) if layer.texts and isinstance(value, str) else value
            _put(merged, path, read, layer.source)
            sources[path] = layer.source
    return merged, sources


def validate(model: type[Model], values: Mapping[str, Any], sources: Mapping[Path_, str], prefix: Path_ = ()) -> Model:
    """The model from its values. Raises ConfigError with one line for each problem.

    prefix: what stands before the model's own keys, such as ("options", "kangaroo").
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = []
        for detail in error.errors(include_url=False):
            path = (*prefix, *(str(part) for part in detail["loc"]))
            lines.append(_problem(detail, path, _source(path, sources), model, len(prefix)))
        raise ConfigError("\n".join(dict.fromkeys(lines))) from error


def _put(merged: dict[str, Any], path: Path_, value: object, source: str) -> None:
    table = merged
    for depth, key in enumerate(path[:-1], start=1):
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{'.'.join(path)}: '{'.'.join(path[:depth])}' is a value and not a table ({source})")
    if value == {} and isinstance(table.get(path[-1]), dict):
        return  # an empty table adds nothing to one that is there
    table[path[-1]] = value


def _read(text: str, annotation: Any) -> object:
    """A string as its key wants it: itself for a text, split at commas for a list, else as a TOML value."""
    try:
        values = tomli.loads(f"value = {text}")
        value = values["value"] if len(values) == 1 else text
    except tomli.TOMLDecodeError:
        value = text
    wanted = set(_members(annotation))
    if isinstance(value, str) or str in wanted or not isinstance(value, bool | int | float | list | dict):
        value = value if isinstance(value, str) else text
        return [part.strip() for part in value.split(",") if part.strip()] if list in wanted else value
    return value


def _members(annotation: Any) -> Iterator[Any]:
    """The plain types of an annotation: str | None gives str and NoneType, Literal["a"] gives str."""
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        for member in get_args(annotation):
            yield from _members(member)
    elif origin is Literal:
        yield from {type(value) for value in get_args(annotation)}
    else:
        yield origin or annotation


def _annotation(model: type[BaseModel], path: Path_) -> Any:
    """The annotation of a key, or None if it is unknown or free."""
    field = model.model_fields.get(path[0])
    if field is None:
        return None
    if len(path) == 1:
        return field.annotation
    inner = field.annotation
    return _annotation(inner, path[1:]) if isinstance(inner, type) and issubclass(inner, BaseModel) else None


def _leaves(model: type[BaseModel], prefix: Path_ = ()) -> Iterator[Path_]:
    """Every key of a model that holds a value, not a table."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _leaves(inner, (*prefix, name))
        elif get_origin(inner) is not dict:
            yield (*prefix, name)


def _problem(detail: Any, path: Path_, source: str, model: type[BaseModel], skip: int) -> str:
    dotted = ".".join(path)
    if detail["type"] == "extra_forbidden":
        return f"{dotted}: unknown key{source}{_meant(path, model, skip)}"
    if detail["type"] == "missing":
        return f"{dotted}: must be given{source}"
    given = repr(detail["input"])
    shown = given if len(given) <= 60 else given[:57] + "..."
    if detail["type"] == "model_type":
        keys = ", ".join(f"{dotted}.{name}" for name in _annotation(model, path[skip:]).model_fields)
        return f"{dotted}: is a table, not {shown}{source}; its keys are {keys}"
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"{dotted}: {message}, not {shown}{source}"


def _meant(path: Path_, model: type[BaseModel], skip: int) -> str:
    """The key that was probably meant: one of the same table, or one of that name elsewhere."""
    own = path[skip:]
    leaves = [*_leaves(model)]
    tables = [(name,) for name, field in model.model_fields.items() if _annotation(model, (name,)) is not None]
    siblings = [".".join(leaf) for leaf in (*leaves, *tables) if leaf[:-1] == own[:-1]]
    names = {leaf[-1]: ".".join(leaf) for leaf in leaves}
    close = get_close_matches(".".join(own), siblings, n=1) or [
        names[name] for name in get_close_matches(own[-1], names, n=1, cutoff=0.8)
    ]
    return f"; did you mean '{'.'.join((*path[:skip], close[0]))}'?" if close else ""


def _source(path: Path_, sources: Mapping[Path_, str]) -> str:
    for known, source in sources.items():
        shorter = min(len(known), len(path))
        if known[:shorter] == path[:shorter]:
            return f" ({source})"
    return ""
