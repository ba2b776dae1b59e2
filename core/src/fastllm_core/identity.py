"""What a compiled program depends on: the model with its weights, the machine, and the libraries."""

from __future__ import annotations

import hashlib
import json
import platform
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
import transformers
from torch import nn

from .discovery import SELECTABLE, installed

if TYPE_CHECKING:
    from .digests import Digests
    from .network import Network

STOCK: Final = ("torch.nn.", "transformers.")
"""Where the classes come from whose code a version number stands for."""


def of_model(network: Network, digests: Digests) -> dict[str, Any]:
    """A network's architecture, configuration and weights, as JSON values.

    Reads every weight once; those that lie unchanged in files as they did when they were last read, not again.
    """
    loaded, model = network.loaded, network.model
    files = () if loaded.origin is None else loaded.origin.files_of(loaded.model)
    what = f"{type(model).__name__} in {network.dtype}"
    weights = digests.of_files(files, what, lambda: weights_digest(model)) if files else weights_digest(model)
    return {**of_architecture(network), "weights": weights}


def of_architecture(network: Network) -> dict[str, Any]:
    """The same without the weights: known at once, however large they are."""
    foreign = {_package(module) for module in network.model.modules()} - {name.partition(".")[0] for name in STOCK}
    packages = sorted(foreign & plugin_packages()) if foreign else []  # looking for what is installed takes a while
    config: Any = network.model.config
    settings = json.loads(config.to_json_string(use_diff=False))
    for key in ("_name_or_path", "transformers_version"):
        settings.pop(key, None)
    return {
        "class": type(network.model).__name__,
        "config": settings,
        "attention": config._attn_implementation,
        "experts": str(getattr(config, "_experts_implementation", None)),
        "dtype": str(network.dtype),
        "device": network.device.type,
        "code": {package: _source(package) for package in packages},
    }


def of_machine() -> dict[str, Any]:
    """The processor, the threads and the versions, as JSON values."""
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "fastllm": _source(__package__, "*.py"),
    }


def weights_digest(model: nn.Module) -> str:
    """A hash of every parameter and buffer with its name and type."""
    digest = hashlib.sha256()
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(data.numpy().data)
    return digest.hexdigest()


def unknown_code(network: Network) -> str | None:
    """What in a network its configuration and weights do not tell, so that no key can name it; None if nothing is.

    Adapters, hooks, replaced forwards, quantised layers, code that came with the model: all may change what it computes
    without changing a weight. The modules of an installed method are known by its package's code.
    """
    if network.adapter_is_foreign:
        return "a plugin's adapter changes how it is run"
    for name, module in network.model.named_modules():
        where = f"{name or 'the model'} ({type(module).__name__})"
        if not type(module).__module__.startswith(STOCK) and _package(module) not in plugin_packages():
            return f"{where} is not a module of torch, transformers or an installed method"
        if module._forward_hooks or module._forward_pre_hooks:
            return f"{where} has hooks"
        if "forward" in module.__dict__:
            return f"the forward of {where} was replaced"
    return None


@cache
def _processor() -> str:
    """The processor's name and a hash of what it can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    known = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = known.get("flags") or known.get("Features") or ""
    name = known.get("model name") or platform.processor() or platform.machine()
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{name}, {capability}, {hashlib.sha256(flags.encode()).hexdigest()[:16]}"


def plugin_packages() -> frozenset[str]:
    """The packages that hold installed methods and parts."""
    return frozenset(plugin.entry_point.partition(":")[0].partition(".")[0] for plugin in installed(*SELECTABLE))


def _package(module: nn.Module) -> str:
    return type(module).__module__.partition(".")[0]


@cache
def _source(package: str, files: str = "**/*.py") -> str:
    """A hash of a package's own code, which a version number does not tell while it is worked on."""
    digest = hashlib.sha256()
    found = import_module(package).__file__
    assert found is not None
    for path in sorted(Path(found).parent.glob(files)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
