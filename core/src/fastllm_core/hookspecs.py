"""The hooks that a plugin may implement. They are asked once, when a pipeline is composed, never inside the loop.

A plugin is a class:

    class Kangaroo:
        api_version = 1
        Options = KangarooOptions                  # a subclass of fastllm_core.Options

        def __init__(self, options): self.options = options

        @fastllm_core.hookimpl
        def fastllm_make_drafter(self, context):
            from .drafter import KangarooDrafter   # torch enters here, not at import
            return KangarooDrafter(self.options, context)

A role's hook may answer None ("not mine"). The core's defaults stand behind every role but the drafter; without one,
decoding is plain. `@hookimpl(wrapper=True)` decorates what another made: `inner = yield; return Quantized(inner)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from .adapters import Adapter
    from .config import Config
    from .context import Context
    from .network import Network
    from .protocols import Acceptor, Drafter, KVCache, Observer, Verifier

API_VERSION = 1
"""Raised only when a hook or a protocol breaks. A plugin class states the one it was written for as `api_version`."""

PROJECT = "fastllm"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def fastllm_check(config: Config) -> Sequence[str] | None:
    """Problems that can be seen before any weight is loaded, a sentence each."""


@hookspec
def fastllm_adapters() -> Sequence[Adapter] | None:
    """What the port must know of model families; an entry wins over the core's own for the same `model_type`."""


@hookspec(firstresult=True)
def fastllm_make_drafter(context: Context) -> Drafter | None:
    """The drafter of the pipeline."""


@hookspec(firstresult=True)
def fastllm_make_verifier(context: Context, drafter: Drafter | None) -> Verifier | None:
    """The verifier, which returns `drafter.hidden_layers`. Default: one forward of the target over root and nodes."""


@hookspec(firstresult=True)
def fastllm_make_kv_cache(context: Context, network: Network) -> KVCache | None:
    """A cache for `network`, which is the target or a network of a drafter. Default: the slot cache."""


@hookspec(firstresult=True)
def fastllm_make_acceptor(context: Context, drafter: Drafter | None) -> Acceptor | None:
    """The acceptor. Default: the exact rule that fits the drafter's declared proposal."""


@hookspec
def fastllm_observers(context: Context) -> Sequence[Observer] | None:
    """Observers of every round."""
