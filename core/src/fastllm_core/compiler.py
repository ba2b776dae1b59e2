"""From a step to a program on disk: torch.export, then AOTInductor.

Ahead of time rather than `torch.compile`, because a program has no guards and no Python in a call, is its own disk
cache, and loads without a compiler. Matrices are multiplied by the compiler's own kernels: they win by a factor of two
for few rows over small models, and their packed weights can be mapped from a file and shared (`constants.py`). Only
where a processor multiplies bfloat16 without tiles, oneDNN's are tried as well, by timing while it is compiled.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import patch

import torch

from . import constants
from .errors import UnsupportedModel

if TYPE_CHECKING:
    from .step import Step

OPTIONS: Final[dict[str, Any]] = {
    "freezing": True,  # weights are folded and packed for the kernels that read them
    "max_autotune": True,
    "max_autotune_gemm_backends": "CPP,ATEN",
}
APART: Final[dict[str, Any]] = {"aot_inductor.package": True, "aot_inductor.package_constants_in_so": False}
"""A library of code alone."""
OPEN_RANGES: Final = "prefer_deferred_runtime_asserts_over_guards"
"""The option of torch.export without which the extent would have to be the capacity."""


def obstacle() -> str | None:
    """Why nothing can be compiled here, with what to do; None if it can."""
    exports = inspect.signature(torch.export.export).parameters
    unguarded = inspect.signature(torch.export.ExportedProgram.module).parameters
    if OPEN_RANGES not in exports or "check_guards" not in unguarded:
        return f"torch {torch.__version__} cannot export a forward over an open extent; a newer torch can"
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except (exc.InvalidCxxCompiler, RuntimeError):
        return "there is no C++ compiler: install one (g++ or clang++), or set CXX to it"
    return None


def compile_step(step: Step, path: Path) -> dict[str, Any]:
    """Export a step, write its program to `path`, and its weights beside it. Returns the seconds and the weights' list.

    Raises UnsupportedModel, with the reason in one line, if the step cannot be exported or compiled.
    """
    began = time.perf_counter()
    folder = path.parent / constants.FOLDER
    folder.mkdir(exist_ok=True)
    try:
        with torch.inference_mode(False), torch.no_grad(), _quietly(), _scratch(path.parent):
            open_ranges: Any = {OPEN_RANGES: True}
            exported: Any = torch.export.export(
                step, step.example(), dynamic_shapes=step.open_sizes(), strict=False, **open_ranges
            )
            exported_at = time.perf_counter()
            with _own_kernels(step.network.dtype), _constants_written(folder) as written:
                made: Any = torch._inductor.aot_compile(
                    exported.module(check_guards=False), *exported.example_inputs, options={**OPTIONS, **APART}
                )
            (library,) = [file for file in made if isinstance(file, str) and file.endswith(".so")]
            os.replace(library, path)
    except Exception as error:  # whatever a compiler raises: the answer is to run without it
        line = next((line for line in str(error).splitlines() if line.strip()), "")
        raise UnsupportedModel(f"{type(error).__name__}: {line[:200]}") from error
    return {
        "export_seconds": round(exported_at - began, 1),
        "compile_seconds": round(time.perf_counter() - exported_at, 1),
        constants.FACT: constants.told(written),
    }


@contextlib.contextmanager
def _own_kernels(dtype: torch.dtype) -> Iterator[None]:
    """Without oneDNN's kernels for matrices of weights, where the compiler's own are as good.

    Products with the cache have no others, so that the option for all products will not do.
    """
    from torch._inductor import mkldnn_lowerings

    if dtype == torch.bfloat16 and not torch.cpu._is_amx_tile_supported():
        yield
        return
    with patch.object(mkldnn_lowerings, "use_aten_gemm_kernels", lambda: False):
        yield


@contextlib.contextmanager
def _constants_written(folder: Path) -> Iterator[list[constants.Constant]]:
    """Keep the weights of what is compiled: the compiler's own list of them has one name for several."""
    from torch._inductor.codecache import AotCodeCompiler

    written: list[constants.Constant] = []
    compile_code: Any = AotCodeCompiler.compile

    def compile_and_keep(graph: Any, *arguments: Any, **named: Any) -> Any:
        for name in graph.constants:
            if name not in graph.folded_constants:
                written.append(constants.write(name, graph.get_original_value_of_constant(name), folder))
        return compile_code(graph, *arguments, **named)

    with patch.object(AotCodeCompiler, "compile", compile_and_keep):
        yield written


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
