"""fastllm: lossless speculative decoding for any Hugging Face causal language model.

Everything here is public. Names are resolved when first used, so that importing this package imports no torch.
"""

from __future__ import annotations

# ruff: noqa: F401  (the table below makes __all__; ruff cannot see through it)
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .acceptance import match, reject_block, reject_chain, reject_tree, residual
    from .adapters import Adapter
    from .batch import Batch, Row
    from .cache import SlotCache
    from .confidence import Confidence
    from .config import Config, load_config
    from .config_text import to_toml
    from .context import Context
    from .controls import Controls, LogitsProcessor, StoppingCriterion
    from .device import Device
    from .discovery import InstalledPlugin, installed
    from .dropin.callee import CustomGenerate, custom_generate
    from .engine import Engine
    from .errors import (
        ConfigError,
        ContextLengthError,
        DeviceError,
        FastllmError,
        ModelError,
        PluginConflict,
        PluginContractError,
        PluginError,
        PluginLoadError,
        PluginNotFound,
        RequestError,
        UnsupportedModel,
        UserError,
    )
    from .generation import Difference, Generation, Piece
    from .heads import Head, TargetIdentity, load_head
    from .hookspecs import API_VERSION, hookimpl
    from .journal import Journal
    from .layout import Slate, ancestors, chain, tree
    from .lessons import Converter, Judgement, Lesson, Published, Trainer, converter, trainer, visible
    from .logprobs import TokenLogprob
    from .models import (
        LoadedModel,
        RegisteredModel,
        load_model,
        registered_model,
        resolve_model,
        verify_same_vocabulary,
    )
    from .network import Network
    from .options import Options
    from .pipeline import Pipeline, configuration, load
    from .port import Advance, Inputs, Outputs, advanced
    from .prefill import read
    from .prompt_file import read_prompts
    from .protocols import (
        Acceptor,
        Draft,
        Drafter,
        ExtraRows,
        Guarantee,
        KVCache,
        Observer,
        Proposal,
        Resume,
        Scores,
        Verdict,
        Verifier,
    )
    from .randomness import Purpose, sample_seed
    from .report import RunReport
    from .request import Request, SamplingParams
    from .rows import Event
    from .sampling import Sampling, draw, warp
    from .spans import Span
    from .verdicts import depths

    __version__: str

_PUBLIC = {
    "acceptance": ("match", "reject_block", "reject_chain", "reject_tree", "residual"),
    "adapters": ("Adapter",),
    "batch": ("Batch", "Row"),
    "cache": ("SlotCache",),
    "confidence": ("Confidence",),
    "config": ("Config", "load_config"),
    "config_text": ("to_toml",),
    "context": ("Context",),
    "controls": ("Controls", "LogitsProcessor", "StoppingCriterion"),
    "device": ("Device",),
    "discovery": ("InstalledPlugin", "installed"),
    "dropin.callee": ("CustomGenerate", "custom_generate"),
    "engine": ("Engine",),
    "errors": (
        "ConfigError",
        "ContextLengthError",
        "DeviceError",
        "FastllmError",
        "ModelError",
        "PluginConflict",
        "PluginContractError",
        "PluginError",
        "PluginLoadError",
        "PluginNotFound",
        "RequestError",
        "UnsupportedModel",
        "UserError",
    ),
    "generation": ("Difference", "Generation", "Piece"),
    "heads": ("Head", "TargetIdentity", "load_head"),
    "hookspecs": ("API_VERSION", "hookimpl"),
    "journal": ("Journal",),
    "layout": ("Slate", "ancestors", "chain", "tree"),
    "lessons": ("Converter", "Judgement", "Lesson", "Published", "Trainer", "converter", "trainer", "visible"),
    "logprobs": ("TokenLogprob",),
    "models": (
        "LoadedModel",
        "RegisteredModel",
        "load_model",
        "registered_model",
        "resolve_model",
        "verify_same_vocabulary",
    ),
    "network": ("Network",),
    "options": ("Options",),
    "pipeline": ("Pipeline", "configuration", "load"),
    "port": ("Advance", "Inputs", "Outputs", "advanced"),
    "prefill": ("read",),
    "protocols": (
        "Acceptor",
        "Draft",
        "Drafter",
        "ExtraRows",
        "Guarantee",
        "KVCache",
        "Observer",
        "Proposal",
        "Resume",
        "Scores",
        "Verdict",
        "Verifier",
    ),
    "randomness": ("Purpose", "sample_seed"),
    "report": ("RunReport",),
    "request": ("Request", "SamplingParams"),
    "rows": ("Event",),
    "prompt_file": ("read_prompts",),
    "sampling": ("Sampling", "draw", "warp"),
    "spans": ("Span",),
    "verdicts": ("depths",),
}
_MODULES = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name == "__version__":
        from importlib.metadata import version

        return version("fastllm-core")
    if name not in _MODULES:
        raise AttributeError(f"module 'fastllm_core' has no attribute '{name}'")
    value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """What may be used, for completion."""
    return [*__all__, "__version__"]
