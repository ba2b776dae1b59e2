"""What a plugin's factory hooks are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config import Config
    from .device import Device
    from .models import LoadedModel
    from .network import Network
    from .protocols import Drafter, KVCache


@dataclass(frozen=True, slots=True)
class Context:
    """The pipeline under construction: frozen, so that a new field never breaks a plugin's signature."""

    config: Config
    device: Device
    target: LoadedModel
    """The target: `.model` (never mutate it), `.tokenizer`, `.name`, `.context_length`."""
    network: Network
    """The target's forward port."""
    draft_length: int
    """The most tokens (for a tree: levels) that a round may draft."""
    cache: KVCache | None
    """The target's cache, which a drafter that runs layers of the target writes into. None only while
    `fastllm_make_kv_cache` is asked for it."""
    load_model: Callable[..., LoadedModel]
    """`load_model(name_or_folder, device="auto", dtype="auto", revision=None)`: another model, by the core's
    rules, on the target's device and in its number format if nothing else is said."""
    make_network: Callable[[LoadedModel], Network]
    """The forward port of another model."""
    make_cache: Callable[..., KVCache]
    """`make_cache(network, foreign=False)`: a cache for a network. The engine moves and releases its rows together with
    the target's and, after each round, cuts each row back to what agrees with the committed tokens, so that a chain
    drafter need not roll back. Rows of a foreign cache hold other tokens than the target's (those of another tokenizer,
    say): it is never cut, and making room and rolling back are the drafter's."""
    make_drafter: Callable[..., Drafter]
    """`make_drafter(name, loaded, make_cache, options={})`: the drafter of another installed method, by its name, with
    this model in the target's place: over its tokens, that is. Whoever asked makes up the rows and hands them to the
    drafter as the engine would, but for `observe`: nothing is scored in these tokens. `make_cache(network)` makes its
    caches. There is no cache of the model's own, and a drafter that looks at hidden states is refused."""
