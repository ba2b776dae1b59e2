"""Does the port give what the model itself gives? Asked once, before a model is used.

A model that ignores explicit positions or masks, or keeps state outside its key/value cache, would silently write
another text. A few forwards over eight tokens tell, whatever the architecture, where a list of known models would be
out of date. They read every weight, so what they told of files that have not changed since is remembered.
"""

from __future__ import annotations

import hashlib
import json
import logging
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from . import identity, layout
from .attention import KERNELS
from .cache import SlotCache
from .errors import UnsupportedModel
from .port import Passage
from .spans import SPAN_KEYS, Span, spans_of
from .twin import share
from .views import backbone

if TYPE_CHECKING:
    from .digests import Digests
    from .network import Network
    from .port import Inputs

ROWS: Final = 8
PORT: Final = "explicit positions and masks over a preallocated cache"
SHORT: Final = 3
"""Positions of a window or chunk that the probe's tokens overrun."""
TOLERANCE: Final = {torch.float32: 1e-3, torch.float64: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}
"""Largest difference of a logit, as a share of the largest logit: rounding, and no more."""


def relative_difference(given: Tensor, wanted: Tensor) -> float:
    """The largest difference of two tensors, as a share of the largest number wanted."""
    largest = wanted.float().abs().max().item() or 1.0
    return float((given.float() - wanted.float()).abs().max().item() / largest)


def check_port(network: Network, digests: Digests | None) -> None:
    """`check_whole`, unless the same files passed it before, under the same code, versions and settings.

    digests: where that is remembered, with what each layer's cache holds; None is nowhere.  Raises UnsupportedModel.
    """
    loaded = network.loaded
    files = () if loaded.origin is None else loaded.origin.files_of(loaded.model)
    if digests is None or not files or identity.unknown_code(network):
        check_whole(network)
        return
    facts = {"model": identity.of_architecture(network), "machine": identity.of_machine()}

    def ask() -> str:
        check_whole(network)
        return json.dumps(network.kv_shapes)

    what = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    shapes = json.loads(digests.of_files(files, f"the port, {what}", ask))
    network.kv_shapes = tuple(None if shape is None else tuple(shape) for shape in shapes)


@torch.inference_mode()
def check_whole(network: Network) -> None:
    """Raise UnsupportedModel unless the port gives the model's own logits.

    The port reads the first half as a chain and the second as a tree with a decoy, a node that no other may see.
    """
    tokens = _tokens(network)
    own: Any = network.stock()(input_ids=tokens, use_cache=False)
    _check_attention(network, tokens, own.logits)
    try:
        given = _chain_and_tree(network, tokens)
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UnsupportedModel(f"{_name(network)} does not support {PORT}: {type(error).__name__}: {reason}") from error
    _compare(network, given, own.logits, PORT)
    _check_spans(network, tokens, own.logits)


def _check_spans(network: Network, tokens: Tensor, logits: Tensor) -> None:
    """The same once more with windows and chunks that eight tokens overrun, if the model has any.

    A model that takes no notice of the change in its configuration tells nothing, and is not refused for it.
    """
    if all(span == Span() for _, span in network.spans) or network.adapter.spans is not None:
        return
    stock: Any = network.stock()
    config: Any = backbone(stock, network.adapter).config
    for key in SPAN_KEYS:
        if getattr(config, key, None):
            setattr(config, key, SHORT)
    own = stock(input_ids=tokens, use_cache=False).logits
    if not torch.equal(own, logits):
        given = _chain_and_tree(network.with_spans(spans_of(config, network.layers)), tokens)
        _compare(network, given, own, "its windows of attention as masks by position")


def _check_attention(network: Network, tokens: Tensor, logits: Tensor) -> None:
    """Refuse a model whose own attention is another function than the one that took its place."""
    name = network.replaced_attention
    if name is None:
        return
    if not name.startswith(KERNELS):
        own: Any = share(network.loaded.model)(input_ids=tokens, use_cache=False)
        _compare(network, logits, own.logits, f"an explicit mask in its attention '{name}', nor sdpa in its place")
    logging.getLogger("fastllm").warning(
        "%s: its attention '%s' may ignore the masks that drafts need; sdpa runs in its place", _name(network), name
    )


def _chain_and_tree(network: Network, tokens: Tensor) -> Tensor:
    """float[1, ROWS, V] by way of the port."""
    cut, cache = ROWS // 2, _cache(network)
    first = _logits(network, cache, layout.chain(tokens[:, :cut], _start(network, 0), cache.capacity))
    rest = tokens[:, cut:]
    parents = torch.tensor([[-1, -1, *range(1, ROWS - cut - 1)]], device=network.device)  # node 0 is the decoy
    sees = layout.ancestors(parents)
    nodes = torch.cat([rest[:, :1], tokens[:, :1], rest[:, 1:]], dim=1)
    inputs = layout.tree(nodes, sees, sees.sum(-1) - 1, _start(network, cut), cache.capacity)
    second = _logits(network, cache, inputs)
    return torch.cat([first, second[:, :1], second[:, 2:]], dim=1)


@torch.inference_mode()
def check_split(network: Network, layer: int, hidden_layers: tuple[int, ...] = ()) -> None:
    """Raise UnsupportedModel unless layers `0..layer-1`, then the rest, give what the whole model gives.

    hidden_layers: what rounds ask for, so that these are their forwards, and no others need be compiled.
    """
    tokens, start, cache = _tokens(network), _start(network, 0), _cache(network)
    whole = _logits(network, cache, layout.chain(tokens, start, cache.capacity), hidden_layers)
    layers = cache.layers(slice(0, 1), cache.capacity)
    lower = network.forward(layout.chain(tokens, start, cache.capacity), layers, stop=layer)
    inputs = layout.chain(tokens, start, cache.capacity, hidden=lower.hidden[layer])
    upper = network.forward(inputs, layers, start=layer, hidden_layers=hidden_layers)
    assert upper.logits is not None
    _compare(network, upper.logits, whole, f"being run in two parts, cut before layer {layer}")


@torch.inference_mode()
def check_hidden(network: Network, layers: tuple[int, ...]) -> None:
    """Raise UnsupportedModel unless a forward gives the hidden states that rounds ask for. Compiles nothing."""
    cache = _cache(network)
    inputs = layout.chain(_tokens(network), _start(network, 0), cache.capacity)
    network.eager(Passage(0, network.layers, hidden_layers=layers), inputs, cache.layers(slice(0, 1), cache.capacity))


def _tokens(network: Network) -> Tensor:
    """int64[1, ROWS]: some tokens, all different where the vocabulary allows."""
    return (torch.arange(ROWS, device=network.device) * 7 + 3)[None] % network.vocab_size


def _cache(network: Network) -> SlotCache:
    cache = SlotCache(network, block=2 * ROWS)
    cache.reserve(1, 2 * ROWS)
    return cache


def _start(network: Network, position: int) -> Tensor:
    return torch.tensor([position], device=network.device)


def _logits(network: Network, cache: SlotCache, inputs: Inputs, hidden_layers: tuple[int, ...] = ()) -> Tensor:
    logits = network.forward(inputs, cache.layers(slice(0, 1), cache.capacity), hidden_layers=hidden_layers).logits
    assert logits is not None
    return logits


def _compare(network: Network, given: Tensor, wanted: Tensor, what: str) -> None:
    difference = (given.float() - wanted.float()).abs().max().item()
    allowed = TOLERANCE.get(network.dtype, 1e-1) * wanted.float().abs().max().item()
    if not difference <= allowed:  # also if it is not a number
        raise UnsupportedModel(f"{_name(network)} does not support {what}: its logits change by {difference:.2g}")


def _name(network: Network) -> str:
    return f"model '{network.loaded.name}' ({type(network.loaded.model).__name__})"
