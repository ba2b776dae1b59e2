"""Reading weights and tokenizers through transformers: safetensors only, quietly, with one-line errors."""

from __future__ import annotations

import math
import os
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging as transformers_logging

from .adapters import Adapter, adapter_for, refusal
from .device import DTYPES, Device, select_device
from .errors import ModelError, UnsupportedModel
from .memory import shortage
from .models import LoadedModel
from .origin import Origin
from .spans import RECURRENT, REFUSED, layer_types
from .wrappers import execution_device, quantization_refusal, unwrapped

if TYPE_CHECKING:
    from .models import ModelSource

SLOW_S = 2.0
"""A load that takes longer says so."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "tokenizer.model")
LOAD_ERRORS = (OSError, ValueError, ImportError, RuntimeError, KeyError, AttributeError, TypeError, SafetensorError)
"""What transformers raises for a missing repository, no network, shapes that do not fit, a broken file."""


def placed(device: str | Device, dtype: str) -> Device:
    """The device by name, or a chosen one, perhaps with another dtype."""
    if isinstance(device, str):
        return select_device(device, dtype)
    return device if dtype == "auto" else select_device(device.name, dtype)


def load(
    source: ModelSource,
    tokenizer: str | Path | PreTrainedTokenizerBase | None,
    device: Device,
    revision: str | None,
    trust_remote_code: bool,
    adapters: Sequence[Adapter] = (),
) -> LoadedModel:
    """The model from a folder or the hub, on the device and in evaluation mode. See `models.load_model`."""
    if source.local:
        _check_files(source)
    pinned = {"revision": None if source.local else revision, "trust_remote_code": trust_remote_code}
    pinned = {key: value for key, value in pinned.items() if value is not None}
    with _quietly(source.name), _one_line(f"model '{source.name}'", source.local):
        config = AutoConfig.from_pretrained(source.location, **pinned)
        check_architecture(source.name, config, adapters)
        _check_memory(source, device)
        model = _read_weights(source, config, device, pinned)
    if tokenizer is None and _has_tokenizer(source):
        tokenizer = _tokenizer(source.location, **pinned)
    elif isinstance(tokenizer, str | Path):
        tokenizer = _tokenizer(str(tokenizer), trust_remote_code=trust_remote_code)
    return LoadedModel(source.name, model, tokenizer, device.device, device.dtype, Origin.of(source, model))


def adopt(
    model: PreTrainedModel,
    tokenizer: str | Path | PreTrainedTokenizerBase | None,
    device: str | Device,
    dtype: str,
    trust_remote_code: bool,
    adapters: Sequence[Adapter] = (),
) -> LoadedModel:
    """A module that somebody has loaded, taken as it is: neither moved, nor cast, nor set to evaluation mode.

    Adapters, hooks and their state are those of this moment: after `set_adapter` or `merge_adapter`, load it again.
    """
    model = unwrapped(model)
    name = model.name_or_path or type(model).__name__
    check_architecture(name, model.config, adapters, type(model))
    place = execution_device(name, model)
    _check_wish(name, model, place, device, dtype)
    if isinstance(tokenizer, str | Path):
        tokenizer = _tokenizer(str(tokenizer), trust_remote_code=trust_remote_code)
    return LoadedModel(name, model, tokenizer, place, model.dtype)


def _read_weights(source: ModelSource, config: Any, device: Device, pinned: Mapping[str, Any]) -> PreTrainedModel:
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source.location, config=config, dtype=device.dtype, use_safetensors=True, output_loading_info=True, **pinned
    )
    model, info = loaded
    # transformers fills missing weights with random numbers and a warning; here that is an error
    missing = sorted(info.get("missing_keys") or ())
    if missing:
        raise ModelError(f"model '{source.name}': the weight files lack {len(missing)} tensors, such as {missing[0]}")
    if model.device != device.device:  # a quantised model may refuse to be moved even where it already is
        model = model.to(device.device)
    return cast(PreTrainedModel, model.eval())


def _check_wish(name: str, model: PreTrainedModel, actual: torch.device, device: str | Device, dtype: str) -> None:
    """A loaded module cannot be moved or cast without changing it, so another wish is refused."""
    if isinstance(device, str) and device != "auto":
        wanted = select_device(device).device
        if wanted.type != actual.type or (":" in device and wanted.index != actual.index):
            raise ModelError(f"model '{name}' is on {actual}, not on {device}: move it first, or leave device out")
    if dtype != "auto" and DTYPES.get(dtype) is not model.dtype:
        have = str(model.dtype).removeprefix("torch.")
        raise ModelError(f"model '{name}' is loaded in {have}, not in {dtype}: cast it first, or leave dtype out")


def _check_files(source: ModelSource) -> None:
    folder = Path(source.location)
    if any(folder.glob("*.safetensors")):
        return
    pickled = next((path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern)), None)
    if pickled is None:
        raise ModelError(f"model '{source.name}': {folder} has no weights (*.safetensors)")
    raise ModelError(
        f"model '{source.name}': weights must be safetensors, and {folder} has only {pickled}, which can run code when "
        "it is read. If you trust it, convert it once: AutoModelForCausalLM.from_pretrained(folder, "
        "use_safetensors=False).save_pretrained(new_folder)"
    )


def check_architecture(
    name: str, config: Any, adapters: Sequence[Adapter], kind: type[PreTrainedModel] | None = None
) -> None:
    """Refuse what the port cannot run. Before any weight is read."""
    model_type = getattr(config, "model_type", type(config).__name__)
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModel(f"model '{name}' ({model_type}) is an encoder-decoder; fastllm decodes causal LMs only")
    if kind is None and type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        found = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        kind = found[0] if isinstance(found, tuple) else found
    if kind is None and "AutoModelForCausalLM" not in (getattr(config, "auto_map", None) or {}):
        raise UnsupportedModel(f"model '{name}' ({model_type}) is no causal LM that transformers knows")
    layers = layer_types(config.get_text_config(decoder=True))
    reasons = [refusal(adapter_for(config, adapters), config), quantization_refusal(config)]
    reasons += [REFUSED.get(layer, "") for layer in layers]
    if getattr(kind, "_is_stateful", False) and not layers:  # else the layers have said it themselves
        reasons.append(RECURRENT)
    for reason in filter(None, reasons):
        raise UnsupportedModel(f"model '{name}' ({model_type}) {reason}")


def _check_memory(source: ModelSource, device: Device) -> None:
    """Refuse weights that cannot fit, before any of them is read."""
    files = sorted(Path(source.location).glob("*.safetensors")) if source.local else []
    needed = 0
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                part = tensors.get_slice(name)
                cast = part.get_dtype() in ("F64", "F32", "F16", "BF16")  # to the device's format; others stay small
                needed += math.prod(part.get_shape()) * (device.dtype.itemsize if cast else 1)
    lack = shortage(needed, device.device)
    if lack:
        raise ModelError(
            f"model '{source.name}' {lack}: take a smaller one, a smaller number format (dtype = \"bfloat16\"), or "
            "another device"
        )


def _has_tokenizer(source: ModelSource) -> bool:
    return not source.local or any((Path(source.location) / name).is_file() for name in TOKENIZER_FILES)


def _tokenizer(location: str, **pinned: Any) -> PreTrainedTokenizerBase:
    with _quietly(location), _one_line(f"tokenizer of '{location}'", Path(location).is_dir()):
        return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(location, **pinned))


@contextmanager
def _one_line(what: str, local: bool) -> Iterator[None]:
    """Turn what transformers raises into one line that says what to do."""
    try:
        yield
    except ModelError:
        raise
    except LOAD_ERRORS as error:
        raise ModelError(f"{what}: {_reason(error, local)}") from error


def _reason(error: BaseException, local: bool) -> str:
    text = " ".join(str(error).split())
    first = text if len(text) <= 200 else text[:197] + "..."
    if "trust_remote_code" in text:
        return "it brings its own code, which runs only with --trust-remote-code (load(trust_remote_code=True))"
    if "safetensors" in text and "does not appear to have" in text:
        return "weights must be safetensors, and the repository has none; ask its owner or convert a copy"
    if not local and isinstance(error, OSError):
        offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
        state = "HF_HUB_OFFLINE is set and it is not in the local cache" if offline else first
        return f"cannot be read from the hub ({state}). Check the name and the network, or give a local folder"
    return f"cannot be loaded: {type(error).__name__}: {first}"


@contextmanager
def _quietly(name: str) -> Iterator[None]:
    """No bars and warnings of transformers; a load that takes long says so on a terminal."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    slow = threading.Timer(SLOW_S, lambda: sys.stderr.write(f"loading {name} ...\n"))
    slow.daemon = True
    if sys.stderr.isatty():
        slow.start()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        slow.cancel()
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
