"""Which methods take part, each with settings of its own: `plain,speculative,speculative:draft.length=3`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fastllm_core import Config, ConfigError, load_config

PLAIN: Final = "plain"
EVERY: Final = "all"


@dataclass(frozen=True, slots=True)
class Choice:
    """One method with its settings."""

    label: str
    """As it was asked for, which is what tables call it."""
    method: str
    settings: Mapping[str, str] = field(default_factory=dict)
    """Values as typed, by dotted configuration key."""
    optional: bool = False
    """Nobody named it: if it cannot run here, the report says so, and the others run."""


def parse(text: str, installed: Sequence[str]) -> list[Choice]:
    """The choices of a `--methods` argument, plain decoding first, which is what the others are compared with.

    text: methods separated by commas, each with settings behind colons: `speculative:draft.length=3:lossy=true`. A key
    without a dot that is none of the configuration's is an option of the method: `speculative:draft_model=small`.
    `all` stands for every method of `installed`. Raises ConfigError.
    """
    choices = [Choice(PLAIN, PLAIN)]
    for part in (piece.strip() for piece in text.split(",")):
        if part == EVERY:
            choices += [Choice(name, name, optional=True) for name in installed]
        elif part:
            choices.append(_choice(part))
    return list({choice.label: choice for choice in choices}.values())


def _choice(text: str) -> Choice:
    method, *settings = re.split(r":(?=[\w.-]+=)", text)
    if not method or "=" in method:
        raise ConfigError(f"--methods {text}: write METHOD or METHOD:KEY=VALUE, such as speculative:draft.length=3")
    pairs = [setting.partition("=")[::2] for setting in settings]
    return Choice(text, method, {_key(method, key): value for key, value in pairs})


def _key(method: str, key: str) -> str:
    return key if "." in key or key in Config.model_fields else f"options.{method}.{key}"


def configured(
    choice: Choice,
    file: Path | None,
    overrides: Mapping[str, object],
    defaults: Mapping[str, Mapping[str, object]],
) -> Config:
    """The configuration of a choice: the file's, with `--set` and the choice's own settings on top.

    defaults: options by plugin that the model recommends. Options of methods that are not this one are left out: one
    file may serve all methods. Raises ConfigError.
    """
    config = load_config(file, {**overrides, **choice.settings, "method": choice.method})
    roles = [name for name in config.roles.model_dump().values() if name]
    taken = {choice.method, *config.use, *roles}
    tables = {name: {**defaults.get(name, {}), **config.options.get(name, {})} for name in taken}
    return config.model_copy(update={"options": {name: table for name, table in tables.items() if table}})
