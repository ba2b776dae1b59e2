"""Heads in the formats of their authors, read with care, and in those of other programs, written."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastllm_core import Config, ConfigError, Head, ModelError, Published, TargetIdentity, converter, load_head

from .options import options_of
from .target import plain

SUFFIXES: Final = (".safetensors", ".bin", ".pt", ".pth")


def converted(
    method: str, source: Path, config: Config, given: Mapping[str, str], *, trust_remote_code: bool = False
) -> Head:
    """The head of a folder or file, for the configured model. Raises ModelError or ConfigError."""
    made = converter(method)
    options = options_of(made.Options, given)
    settings, weights = read(source)
    with plain(config, trust_remote_code) as pipeline:
        maker: Any = made(options, pipeline.engine.parts.network)
        head: Head = maker.convert(settings, weights)
    return head


def exported(
    method: str, source: str, config: Config, layout: str, folder: Path, *, trust_remote_code: bool = False
) -> int:
    """Write a head of ours in another program's layout; returns how many tensors. Raises ModelError or ConfigError."""
    made: Any = converter(method)
    layouts = getattr(made, "layouts", ())
    if layout not in layouts:
        known = ", ".join(layouts) or "none"
        raise ConfigError(f"--to {layout}: '{method}' does not write it; layouts: {known}")
    head = load_head(source)
    with plain(config, trust_remote_code) as pipeline:
        network = pipeline.engine.parts.network
        head.check(method, TargetIdentity.of(network))
        published: Published = made(made.Options(), network).export(head, layout)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in published.weights.items()}
    save_file(weights, folder / published.file, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(dict(published.config), indent=1) + "\n", encoding="utf-8")
    return len(weights)


def read(source: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config.json beside the weights, {} without one, and the weights of every file. Raises ModelError."""
    if not source.exists():
        raise ModelError(f"{source}: there is no such file or folder; download what the authors published first")
    folder = source if source.is_dir() else source.parent
    files = [source] if source.is_file() else _files(folder)
    if not files:
        raise ModelError(f"{source}: holds no weights ({', '.join(SUFFIXES)})")
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read: {error}") from error
    weights: dict[str, Tensor] = {}
    for file in files:
        weights |= _tensors(file)
    return config, weights


def _files(folder: Path) -> list[Path]:
    """Those of the first kind that is there: a folder may hold the same weights twice."""
    kinds = (sorted(folder.glob(f"*{suffix}")) for suffix in SUFFIXES)
    return next((files for files in kinds if files), [])


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        loaded: Any = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{file}: holds more than tensors, which could run code, and is not read: ask its author for safetensors"
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, SafetensorError) as error:
        raise ModelError(f"{file}: cannot be read: {(str(error).splitlines() or ['?'])[0]}") from error
    if not isinstance(loaded, Mapping):
        raise ModelError(f"{file}: holds a {type(loaded).__name__}, not tensors by name")
    found = {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}
    if not found:
        raise ModelError(f"{file}: holds no tensors by name")
    return found
