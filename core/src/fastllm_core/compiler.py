"""From a step to a program on disk: torch.export, then AOTInductor.

Ahead of time rather than `torch.compile`, because a program has no guards and no Python in a call, is its own disk
cache, and loads without a compiler. Kernels are chosen by timing while it is compiled, among oneDNN's and the
compiler's own: the latter win by a factor of two for few rows over small models.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import shutil
import time
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import torch

from .errors import UnsupportedModel

if TYPE_CHECKING:
    from .step import Step

OPTIONS: Final[dict[str, Any]] = {
    "freezing": True,  # weights are folded and packed for the kernels that read them
    "max_autotune": True,
    "max_autotune_gemm_backends": "CPP,ATEN",
}
OPEN_RANGES: Final = "prefer_deferred_runtime_asserts_over_guards"
"""The option of torch.export without which the extent would have to be the capacity."""


def obstacle() -> str | None:
    """Why nothing can be compiled here, with what to do; None if it can."""
    if OPEN_RANGES not in inspect.signature(torch.export.export).parameters:
        return f"torch {torch.__version__} cannot export a forward over an open extent; a newer torch can"
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except (exc.InvalidCxxCompiler, RuntimeError):
        return "there is no C++ compiler: install one (g++ or clang++), or set CXX to it"
    return None


def compile_step(step: Step, path: Path) -> dict[str, Any]:
    """Export a step and write its program to `path`. Returns the seconds that it took.

    Raises UnsupportedModel, with the reason in one line, if the step cannot be exported or compiled.
    """
    began = time.perf_counter()
    try:
        with torch.inference_mode(False), torch.no_grad(), _quietly(), _scratch(path.parent):
            open_ranges: Any = {OPEN_RANGES: True}
            exported: Any = torch.export.export(
                step, step.example(), dynamic_shapes=step.open_sizes(), strict=False, **open_ranges
            )
            exported_at = time.perf_counter()
            package = path.with_suffix(".pt2")
            torch._inductor.aoti_compile_and_package(
                exported, package_path=str(package), inductor_configs=dict(OPTIONS)
            )
            _unpack(package, path)
    except Exception as error:  # whatever a compiler raises: the answer is to run without it
        line = next((line for line in str(error).splitlines() if line.strip()), "")
        raise UnsupportedModel(f"{type(error).__name__}: {line[:200]}") from error
    return {
        "export_seconds": round(exported_at - began, 1),
        "compile_seconds": round(time.perf_counter() - exported_at, 1),
    }


def _unpack(package: Path, path: Path) -> None:
    """Keep a package's library alone: packages are unpacked at every start, which takes longer than loading them."""
    with zipfile.ZipFile(package) as archive:
        (library,) = [name for name in archive.namelist() if name.endswith(".so")]
        with archive.open(library) as packed, path.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked, 1 << 20)
    package.unlink()


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the tables and warnings that compiling prints."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch._inductor", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[None]:
    """A place for what the compiler leaves behind (it holds the weights once more), gone afterwards."""
    from torch._inductor import utils

    fresh: Any = getattr(utils, "fresh_cache", None) or utils.fresh_inductor_cache
    with TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as scratch, fresh(dir=scratch):
        yield
