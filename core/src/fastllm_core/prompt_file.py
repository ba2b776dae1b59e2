"""The prompts that tuning listens to: a file's, or a few built-in ones."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from .errors import ConfigError

BUILT_IN: Final = "prompts.txt"


def read_prompts(path: Path | None, limit: int | None = None) -> list[str]:
    """One prompt a line: text, or in a .jsonl file objects with `prompt`, `text` or `turns`, of which the first counts.

    path: None is the built-in set, which suits a model of stories or of general English; yours suit your model better.
    Raises ConfigError.
    """
    if path is None:
        text = (files(__package__) / BUILT_IN).read_text(encoding="utf-8")
    else:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(f"--prompts {path}: cannot be read: {reason}") from error
    lines = [line for line in text.splitlines() if line.strip()]
    if path is not None and path.suffix == ".jsonl":
        lines = [_prompt(line, f"--prompts {path}, line {number}") for number, line in enumerate(lines, start=1)]
    if not lines:
        raise ConfigError(f"--prompts {path}: holds no prompt")
    return lines[:limit]


def _prompt(line: str, where: str) -> str:
    try:
        value: Any = json.loads(line)
        turns = value.get("turns") or [None]
        found = value.get("prompt") or value.get("text") or turns[0]
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise ConfigError(f"{where}: an object with prompt, text or turns was expected") from error
    if not isinstance(found, str):
        raise ConfigError(f"{where}: an object with prompt, text or turns was expected")
    return found
