"""The cache folder of grown models: a folder in it is either whole or not there."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import platformdirs
from safetensors import SafetensorError

from fastllm_core import ModelError

PART = ".part-"
"""How the name of an unfinished build starts."""

MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json")
"""What a whole model has."""

STALE_SECONDS = 3600.0
"""An unfinished build this old was abandoned: the slowest takes a minute."""


def models_folder() -> Path:
    """Where models are kept: under `FASTLLM_CACHE` if that is set, else in the user's cache folder."""
    chosen = os.environ.get("FASTLLM_CACHE")
    root = Path(chosen).expanduser().absolute() if chosen else platformdirs.user_cache_path("fastllm", appauthor=False)
    return root / "models"


def keep(
    folder_name: str, what: str, size: int, build: Callable[[Path], None], files: Sequence[str] = MODEL_FILES
) -> Path:
    """The folder of that name; `build(empty_folder)` fills it with `files` first if they are not there.

    The build happens beside it and is renamed into place, so that a reader never sees half a model and two processes
    may build at once. what: said on standard error before a build. size: bytes that the build will write.
    Raises ModelError if the folder cannot be written.
    """
    folder = models_folder() / folder_name
    if _is_whole(folder, files):
        return folder
    sys.stderr.write(f"building {what} in {folder}\n")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder.parent)
        # Asked first, since a full disk may end a process that writes through mapped memory with a signal.
        free = shutil.disk_usage(folder.parent).free
        if free < size:
            raise OSError(f"only {free / 1e6:.0f} MB are free")
        with TemporaryDirectory(dir=folder.parent, prefix=PART, ignore_cleanup_errors=True) as part:
            fresh = Path(part) / "fresh"
            fresh.mkdir()
            build(fresh)
            _flush(fresh)
            _publish(fresh, folder, files)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ModelError(
            f"cannot keep {folder_name} in {folder.parent}: {reason}; it needs {size / 1e6:.0f} MB in a folder "
            "that can be written: make room there, or name another folder in the environment variable FASTLLM_CACHE"
        ) from error
    return folder


def _is_whole(folder: Path, files: Sequence[str]) -> bool:
    return all((folder / name).is_file() for name in files)


def _publish(fresh: Path, folder: Path, files: Sequence[str]) -> None:
    try:
        os.replace(fresh, folder)
    except OSError:
        if _is_whole(folder, files):  # another process was faster, and its model is as good
            return
        if not folder.exists():
            raise
        os.replace(folder, fresh.with_name("damaged"))  # someone deleted files from it; goes with the part folder
        os.replace(fresh, folder)


def _flush(folder: Path) -> None:
    """To the disk before the rename, or a power cut could leave a whole-looking folder of empty files."""
    for path in folder.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def _sweep(parent: Path) -> None:
    for part in parent.glob(f"{PART}*"):
        try:
            if time.time() - part.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(part, ignore_errors=True)
        except FileNotFoundError:  # its owner has just finished
            continue
