"""Hashes of files, and what else they told, remembered: what has not changed since then is not read again.

Hashing the weights of a large model takes longer than reading them. The kernel notes when a file last changed, in a
time that no program can set; a file whose time, size and place are as they were is what it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

NAME: Final = "digests.jsonl"
RACY_NS: Final = 2_000_000_000
"""A file that changed this short a time ago may change once more within the same tick of the file system's clock."""


class Digests:
    """Hashes by what was hashed, a line each in a file of a folder that belongs to its owner alone."""

    def __init__(self, folder: Path) -> None:
        """folder: where they are remembered. It may be absent; then nothing is."""
        self.path = folder / NAME
        self._lines: tuple[object, dict[str, str]] = None, {}
        """What was read from the file, and the file's state then."""

    def of_file(self, path: Path) -> str:
        """The SHA-256 of a file. Raises OSError if it cannot be read."""
        return self.of_files([path], "", lambda: _sha256(path))

    def of_files(self, paths: Iterable[Path], what: str, compute: Callable[[], str]) -> str:
        """The hash of what was read from files, or what else they told: remembered, or computed.

        what: tells apart several answers of the same files, such as a number format.
        Raises OSError if one of the files is not there.
        """
        states = [state_of(path) for path in paths]
        settled = all(state is not None for state in states)
        key = json.dumps([what, states])
        known = self._known().get(key) if settled else None
        if known is None:
            known = compute()
            if settled:
                self._remember(key, known)
        return known

    def _known(self) -> dict[str, str]:
        try:
            found = self.path.stat()
            state = found.st_ino, found.st_size, found.st_mtime_ns
            if state != self._lines[0]:
                self._lines = state, _parsed(self.path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            return {}
        return self._lines[1]

    def _remember(self, key: str, digest: str) -> None:
        """Append a line. A folder that is absent or cannot be written costs a hash next time, and nothing else."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([key, digest]) + "\n")
        except OSError:
            return


def _parsed(text: str) -> dict[str, str]:
    known = {}
    for line in text.splitlines():
        try:
            key, digest = json.loads(line)
            known[str(key)] = str(digest)
        except (ValueError, TypeError):  # half a line, from a process that was killed
            continue
    return known


def state_of(path: Path) -> list[str | int] | None:
    """Where a file is and when it last changed; None if that does not yet tell it from what it may be in a moment.

    Raises OSError if it is not there.
    """
    found = path.stat()
    changed = found.st_ctime_ns if os.name == "posix" else 0  # elsewhere it is the time of creation
    if not changed or abs(time.time_ns() - changed) < RACY_NS:
        return None
    return [str(path.absolute()), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, changed]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
