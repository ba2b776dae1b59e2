"""The folder of compiled programs: a library for each, beside it what it was compiled from, and the weights of all.

A program is code that will run in this process. So the folder belongs to its owner alone, a program is either whole or
not there, and one is loaded only if its key and the hashes of its library and weights are the ones recorded.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import platformdirs
from filelock import FileLock, Timeout

from . import constants
from .constants import Constant, files
from .digests import Digests
from .errors import ConfigError

Key = Mapping[str, Any]
"""Everything that a program depends on, as JSON values."""

PROGRAM, RECORD, LOCK, PART = ".so", ".json", ".lock", ".part-"
SWEEPING: Final = "constants" + LOCK
"""Held while weights come or go: a program that is on its way in must not lose those that it shares."""
STALE_SECONDS: Final = 3600.0
"""An unfinished build this old was abandoned."""
WAIT_SECONDS: Final = 1800.0
"""How long one process waits while another compiles the same program."""


@dataclass(frozen=True, slots=True)
class Program:
    """A compiled program on disk."""

    path: Path
    key: Key
    facts: Mapping[str, Any]
    """What was noted when it was compiled: seconds, and what it is, for people."""
    bytes: int
    """Of its library."""
    sha256: str
    used: float
    """When it was last taken, seconds since 1970."""
    weights: tuple[Constant, ...] = ()
    """In files that other programs may read too."""

    @property
    def name(self) -> str:
        """What it is, for people."""
        return str(self.facts.get("name", self.path.stem))


class ProgramFolder:
    """Programs by key. Several processes may use the same folder."""

    def __init__(self, folder: Path | None = None, limit_bytes: int = 20 << 30) -> None:
        """folder: where; None is the user's cache folder.  limit_bytes: above this, the longest unused ones go."""
        self.folder = programs_folder() if folder is None else folder
        self.limit_bytes = limit_bytes
        self.digests = Digests(self.folder)

    def find(self, key: Key) -> Program | None:
        """The program that was compiled from exactly this, unharmed, or None. Taking it counts as using it."""
        digest = digest_of(key)
        program = self._read(self.folder / f"{digest}{RECORD}")
        if program is None or program.key != json.loads(_text(key)) or not self._is_unharmed(program):
            return None
        os.utime(program.path.with_suffix(RECORD))
        return program

    def __bool__(self) -> bool:
        """Whether there is any program at all: if not, nobody need work out a key."""
        return self.folder.is_dir() and next(self.folder.glob(f"*{RECORD}"), None) is not None

    def has_like(self, facts: Mapping[str, Mapping[str, Any]]) -> bool:
        """Whether any program's key has these values in these parts, so that it is worth working out a whole key."""
        return any(
            all(program.key.get(part, {}).get(name) == value for part in facts for name, value in facts[part].items())
            for program in self
        )

    def __iter__(self) -> Iterator[Program]:
        """All programs, the longest unused one first."""
        found = (self._read(path) for path in self.folder.glob(f"*{RECORD}"))
        return iter(sorted((one for one in found if one is not None), key=lambda one: one.used))

    def keep(self, key: Key, build: Callable[[Path], Mapping[str, Any]]) -> Program:
        """The program of a key; `build(file)` writes it if it is not there and returns facts about it.

        One process builds, others wait for it. Raises ConfigError if the folder cannot be used.
        """
        self._make_folder()
        digest = digest_of(key)
        try:
            with FileLock(self.folder / f"{digest}{LOCK}", timeout=WAIT_SECONDS):
                found = self.find(key)
                if found is None:
                    self._build(key, digest, build)
                    found = self.find(key)
        except Timeout as error:
            raise ConfigError(
                f"another process has been compiling for {WAIT_SECONDS / 60:.0f} minutes; if none is, delete "
                f"{error.lock_file}"
            ) from error
        if found is None:
            raise ConfigError(f"{self.folder}: a program was written and cannot be read back; is the disk full?")
        self._shrink(found)
        return found

    def clear(self) -> tuple[int, int]:
        """Delete every program. Returns how many there were and their bytes."""
        gone = list(self)
        size = size_of(gone)
        for program in gone:
            _remove(program.path)
        if self.folder.is_dir():
            self._sweep()
            for path in (*self.folder.glob(f"*{LOCK}"), self.digests.path):
                path.unlink(missing_ok=True)
        return len(gone), size

    def refusal(self) -> str | None:
        """Why nothing from this folder may be run, None if all is well or there is no folder."""
        try:
            found = self.folder.stat()
        except FileNotFoundError:
            return None
        if not hasattr(os, "getuid"):
            return None
        if found.st_uid != os.getuid():
            return f"{self.folder} belongs to somebody else, and programs in it would run as you"
        if stat.S_IMODE(found.st_mode) & 0o077:
            return f"{self.folder} is open to others, and programs in it would run as you: chmod 700 {self.folder}"
        return None

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigError(
                f"{self.folder}: compiled programs cannot be kept there ({error.strerror}); name another folder in "
                "the environment variable FASTLLM_COMPILED"
            ) from error
        reason = self.refusal()
        if reason:
            raise ConfigError(reason)
        for part in self.folder.glob(f"{PART}*"):
            if time.time() - part.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(part, ignore_errors=True)

    def _build(self, key: Key, digest: str, build: Callable[[Path], Mapping[str, Any]]) -> None:
        with TemporaryDirectory(dir=self.folder, prefix=PART, ignore_cleanup_errors=True) as part:
            fresh = Path(part) / f"{digest}{PROGRAM}"
            facts = build(fresh)
            weights = sorted(fresh.parent.joinpath(constants.FOLDER).glob("*"))
            record = {
                "key": dict(key),
                "facts": dict(facts),
                "sha256": self.digests.of_file(fresh),
                "bytes": fresh.stat().st_size,
            }
            note = fresh.with_suffix(RECORD)
            note.write_text(_text(record), encoding="utf-8")
            for path in (fresh, note, *weights):
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
            with FileLock(self.folder / SWEEPING, timeout=WAIT_SECONDS):
                self._constants.mkdir(exist_ok=True, mode=0o700)
                for path in weights:
                    if not self._has(path.name):
                        os.replace(path, self._constants / path.name)
                os.replace(fresh, self.folder / fresh.name)  # the record last: what has one is whole
                os.replace(note, self.folder / note.name)

    def _read(self, path: Path) -> Program | None:
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            return Program(
                path.with_suffix(PROGRAM),
                record["key"],
                record["facts"],
                int(record["bytes"]),
                record["sha256"],
                path.stat().st_mtime,
                constants.of(record["facts"]),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _is_unharmed(self, program: Program) -> bool:
        if self.refusal():
            return False
        try:
            parts = {program.path: (program.bytes, program.sha256)}
            parts |= {self._constants / name: (size, name) for name, size in files(program.weights).items()}
            return all(
                path.stat().st_size == size and self.digests.of_file(path) == digest
                for path, (size, digest) in parts.items()
            )
        except OSError:
            return False

    def _has(self, constant: str) -> bool:
        """Whether a file of weights is there, whole: a process may have mapped it, so that it is not exchanged."""
        try:
            return self.digests.of_file(self._constants / constant) == constant
        except OSError:
            return False

    @property
    def _constants(self) -> Path:
        return self.folder / constants.FOLDER

    def _shrink(self, newest: Program) -> None:
        """Delete the longest unused programs until the rest fits; the newest stays in any case."""
        programs, removed = [program for program in self if program.path != newest.path], False
        while programs and size_of([*programs, newest]) > self.limit_bytes:
            _remove(programs.pop(0).path)
            removed = True
        if removed:
            self._sweep()

    def _sweep(self) -> None:
        """Delete weights that no program reads any more."""
        with FileLock(self.folder / SWEEPING, timeout=WAIT_SECONDS):
            needed = {name for program in self for name in files(program.weights)}
            for path in self._constants.glob("*"):
                if path.name not in needed:
                    path.unlink(missing_ok=True)
            with suppress(OSError):  # goes only when it is empty
                self._constants.rmdir()


def programs_folder() -> Path:
    """Where programs are kept: `FASTLLM_COMPILED`, else `programs` in `FASTLLM_CACHE` or the user's cache folder."""
    own, cache = os.environ.get("FASTLLM_COMPILED"), os.environ.get("FASTLLM_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    root = Path(cache).expanduser().absolute() if cache else platformdirs.user_cache_path("fastllm", appauthor=False)
    return root / "programs"


def size_of(programs: Iterable[Program]) -> int:
    """Bytes of some programs on disk; weights that they share count once."""
    programs = list(programs)
    weights = {name: size for program in programs for name, size in files(program.weights).items()}
    return sum(program.bytes for program in programs) + sum(weights.values())


def digest_of(key: Key) -> str:
    """The name of a key's files."""
    return hashlib.sha256(_text(key).encode()).hexdigest()[:32]


def _text(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True, indent=1)


def _remove(program: Path) -> None:
    """The record first: what has none is not there. Then the library, and what an older version kept in its place."""
    program.with_suffix(RECORD).unlink(missing_ok=True)
    for path in program.parent.glob(f"{program.stem}.*"):
        if path.suffix != LOCK:
            path.unlink(missing_ok=True)
