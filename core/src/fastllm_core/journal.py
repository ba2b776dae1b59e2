"""A file of JSON lines that is written as things happen, and that an interrupted run goes on from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from .errors import ConfigError


class Journal:
    """What stood in the file, and what is appended to it; also a context manager."""

    def __init__(self, path: Path) -> None:
        """Read a file, if it is there. Raises ConfigError if it is no text."""
        self.path = path
        self.lines = _whole_lines(path)
        """What stood in it; what an interruption left of a last line is cut off."""
        self._file: IO[str] | None = None

    def write(self, value: Mapping[str, Any]) -> None:
        """Append a line, at once. The first one opens the file, and makes its folder."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8")
        self._file.write(json.dumps(value, separators=(",", ":")) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _whole_lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with path.open("rb+") as file:
            file.truncate(len(whole))
    try:
        return whole.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: it is no text file; delete it, or say --fresh to start anew") from error
