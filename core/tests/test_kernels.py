"""The kernels are compiled for cards that are not here: the interpreter accepts more than the compiler does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the kernels are in Triton's language")

COMPILE = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from fastllm_core import kernels

OTHERS = {
    **dict.fromkeys(("squares", "partial", "extremes", "frequencies", "found"), "*fp32"),
    **dict.fromkeys(("tokens", "positions", "slots", "firsts"), "*i64"),
    **dict.fromkeys(("mask", "close"), "*i1"),
    **dict.fromkeys(("eps", "scale", "scaling", "noise"), "fp32"),
    **dict.fromkeys(("size", "rows", "width", "extent", "head_count", "count", "parts"), "i32"),
    **{f"count{index}": "i32" for index in (1, 2, 3)},
    **{f"{name}_{what}": "i32" for name in ("key", "value") for what in ("batch", "head")},
    **{f"{name}_stride": "i32" for name in ("x", "squares")},
}
backend, architecture, warp, dtype = sys.argv[1:]
target = GPUTarget(backend, int(architecture) if architecture.isdigit() else architecture, int(warp))
attention = {"GROUPS": 4, "WIDTH": 64, "NEW": 16, "PART": 256, "STEP": 128}
product = {"M": 16, "N": 32, "K": 64}
for name, constants in (
    ("enter", {"TOKENS": True, "SCALED": True, "SIZE": 256, "HALF": 32}),
    ("project", {**product, "BIAS": True, "GROUPS": 16, "EVEN": False}),
    ("gate", {**product, "GROUPS": 16, "EVEN": True}),
    ("add", {**product, "BIAS": False, "SCALED": True, "EVEN": True}),
    ("attend", {**attention, "NORMED": True, "SPLIT": True}),
    ("attend", {**attention, "NORMED": False, "SPLIT": False}),
    ("merge", {"WIDTH": 64}),
    ("rank", {"PART": 4096}),
    ("choose", {"PARTS": 32}),
):
    kernel = getattr(kernels, name)
    kinds = [OTHERS.get(each.name, f"*{dtype}") for each in kernel.params]
    if name == "choose":
        kinds[kernel.arg_names.index("tokens")] = "*i64"
    signature = dict(zip(kernel.arg_names, kinds))
    signature.update(dict.fromkeys(constants, "constexpr"))
    triton.compile(ASTSource(kernel, signature, constants, {}), target=target)
    print(name)
"""


@pytest.mark.parametrize(
    ("backend", "architecture", "warp", "dtype"),
    [("cuda", "90", "32", "bf16"), ("cuda", "80", "32", "fp32"), ("hip", "gfx942", "64", "bf16")],
)
def test_kernels_compile(tmp_path: Path, backend: str, architecture: str, warp: str, dtype: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-c", COMPILE, backend, architecture, warp, dtype]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-1] == "choose"
