"""What a benchmark ran on: hardware and versions, so that figures of two runs can be told apart."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distributions, version
from typing import TYPE_CHECKING, Any, Final

import torch

if TYPE_CHECKING:
    from fastllm_core import Pipeline

LIBRARIES: Final = ("torch", "transformers", "tokenizers", "numpy", "llama-cpp-python", "gguf")


def versions() -> dict[str, str]:
    """Of Python, of fastllm and its plugins, and of the libraries that do the work."""
    found = {"python": platform.python_version()}
    ours = {each.name: each.version for each in distributions() if each.name.startswith("fastllm-")}
    found |= dict(sorted(ours.items()))
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def hardware(pipeline: Pipeline) -> Mapping[str, Any]:
    """The device, and the processor's threads and instructions."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "device": pipeline.device.name,
        "what": pipeline.device.description,
        "dtype": str(pipeline.target.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "system": platform.platform(),
        "load_at_start": load,
    }
