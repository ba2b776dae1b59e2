"""Which device runs the model, and in which number format.

CUDA and ROCm share torch's "cuda" devices; `torch.version.hip` tells them apart. ROCm is untested so far.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from .errors import DeviceError
from .suggest import did_you_mean

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
"""Number formats by name."""
MPS_REFUSED = (
    "Apple's MPS is not supported: its tensors lack float64, which keyed randomness is made of. Use device = 'cpu'"
)


@dataclass(frozen=True, slots=True)
class Device:
    """A chosen device with a chosen number format."""

    device: torch.device
    kind: str
    """cuda, rocm or cpu."""
    dtype: torch.dtype
    name: str
    """As it is written in a configuration: cpu, cuda:0, rocm:1."""
    description: str
    """What it is, for people: the processor's or card's name."""


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A device of this machine, for `fastllm device`."""

    name: str
    kind: str
    description: str
    memory_bytes: int | None
    dtypes: tuple[str, ...]
    """Number formats that it computes in natively."""
    auto_dtype: str
    """What dtype = "auto" picks."""
    chosen: bool
    """Whether device = "auto" picks it."""


def select_device(device: str = "auto", dtype: str = "auto", threads: int | None = None) -> Device:
    """The device and number format that were asked for, or the best of this machine.

    device: auto, cpu, cuda, rocm, with an index if need be ("cuda:1").
    dtype: auto (the fastest that the device really supports), float32, bfloat16, float16 or float64.
    threads: processor threads of torch, for the whole process; None leaves them as they are.
    Raises DeviceError, whose message lists what exists.
    """
    info = _pick(device)
    name = _dtype_name(dtype, info)
    if threads is not None:
        if threads < 1:
            raise DeviceError(f"threads must be at least 1, not {threads}")
        torch.set_num_threads(threads)
    return Device(_torch_device(info), info.kind, DTYPES[name], info.name, info.description)


def available_devices() -> list[DeviceInfo]:
    """Every device of this machine that fastllm can use; the first is what "auto" picks."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    accelerators = [_accelerator(index) for index in range(count)]
    return [*accelerators, _processor(chosen=not accelerators)]


def native_cpu_bfloat16() -> bool:
    """Whether the processor computes in bfloat16.

    Without it bfloat16 is merely stored: faster than float32 for one row, several times slower for six, so that
    verifying a draft would no longer be nearly free.
    """
    if platform.machine().lower() in ("arm64", "aarch64"):
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # private, hence guarded
    return any(getattr(torch.cpu, check, bool)() for check in checks)


def _pick(device: str) -> DeviceInfo:
    devices = available_devices()
    if device == "auto":
        return devices[0]
    kind = device.partition(":")[0]
    if kind == "mps":
        raise DeviceError(f"device: {MPS_REFUSED}")
    for info in devices:
        if device in (info.name, info.kind):
            return info
    names = [info.name for info in devices]
    have = f"this machine has {', '.join(names)}"
    if kind not in ("cpu", "cuda", "rocm"):
        raise DeviceError(f"device: unknown device '{device}'{did_you_mean(device, [*names, 'auto']) or ';'} {have}")
    raise DeviceError(f"device: there is no '{device}' here; {have} (torch {torch.__version__}{_why_none(kind)})")


def _why_none(kind: str) -> str:
    """What the torch build says about a kind of accelerator that was not found."""
    built_for = "rocm" if torch.version.hip else "cuda" if torch.version.cuda else "cpu"
    if kind == "cpu" or built_for == kind:
        return ""
    return f", built for {built_for} only" if built_for == "cpu" else f", built for {built_for}: write '{built_for}'"


def _dtype_name(dtype: str, info: DeviceInfo) -> str:
    if dtype == "auto":
        return info.auto_dtype
    if dtype not in DTYPES:
        guess = did_you_mean(dtype, DTYPES) or ";"
        raise DeviceError(f"dtype: unknown number format '{dtype}'{guess} there are {', '.join(DTYPES)}")
    if info.kind != "cpu" and dtype == "bfloat16" and dtype not in info.dtypes:
        raise DeviceError(f"dtype: {info.name} ({info.description}) lacks bfloat16; it has {', '.join(info.dtypes)}")
    return dtype  # a processor computes in every format, if slowly


def _torch_device(info: DeviceInfo) -> torch.device:
    return torch.device("cpu") if info.kind == "cpu" else torch.device("cuda", int(info.name.partition(":")[2]))


def _accelerator(index: int) -> DeviceInfo:
    kind = "rocm" if torch.version.hip else "cuda"
    properties = torch.cuda.get_device_properties(index)
    with torch.cuda.device(index):
        bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    dtypes = ("float32", "bfloat16", "float16", "float64") if bfloat16 else ("float32", "float16", "float64")
    description = properties.name + (" (ROCm, untested)" if kind == "rocm" else "")
    auto = "bfloat16" if bfloat16 else "float16"
    return DeviceInfo(f"{kind}:{index}", kind, description, properties.total_memory, dtypes, auto, chosen=index == 0)


def _processor(*, chosen: bool) -> DeviceInfo:
    bfloat16 = native_cpu_bfloat16()
    dtypes = ("float32", "bfloat16", "float64") if bfloat16 else ("float32", "float64")
    auto = "bfloat16" if bfloat16 else "float32"
    return DeviceInfo("cpu", "cpu", _processor_name(), _main_memory(), dtypes, auto, chosen)


def _processor_name() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _main_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
