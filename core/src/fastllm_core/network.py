"""The forward port: how every network of a round is run, target, drafter and whatever a plugin adds.

`Network.forward` is a pure function over fixed shapes: (tokens or hidden states, positions, mask, cache) -> (logits,
chosen hidden states). The cache is an argument and is written in place. Nothing in it reads a tensor on the host, so
that a back end may run it eagerly, compile it, or capture it.

Shapes as in `protocols`; R is the number of rows of the forward.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin

from .adapters import Adapter, adapter_for, refusal
from .attention import take_explicit_masks
from .clock import Clock
from .errors import UnsupportedModel
from .spans import Span, Spans, spans_of
from .twin import share
from .views import backbone, layer_list, layer_range, skip_sublayers

if TYPE_CHECKING:
    from .models import LoadedModel

KVShape = tuple[int, int, int]
"""Heads, key width and value width of one layer's cache."""
CacheLayers = Sequence[tuple[Tensor, Tensor]]
"""Keys and values of every layer, float[B, heads, T, width], written in place by a forward. An empty pair stands for a
layer that keeps none of its own."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """The arguments of a forward, all of fixed shape."""

    tokens: Tensor | None
    """int64[B, R], or None if `hidden` is given."""
    hidden: Tensor | None
    """float[B, R, H]: hidden states that enter the first layer of the view."""
    positions: Tensor
    """int64[B, R]"""
    slots: Tensor
    """int64[B, R]: where each row's keys and values are written."""
    mask: Tensor
    """bool[B, R, T]: which slots each row sees."""
    key_positions: Tensor | None
    """int64[B, T]: position of what stands in each slot; None if slot and position agree."""

    def to(self, device: torch.device) -> Inputs:
        """The same rows on another device."""
        if self.positions.device == device:
            return self
        parts = (self.tokens, self.hidden, self.positions, self.slots, self.mask, self.key_positions)
        return Inputs(*(None if part is None else part.to(device) for part in parts))  # type: ignore[arg-type]

    def row(self, index: int, tokens: Tensor) -> Inputs:
        """One of the rows alone, with its token: int64[B, 1]. For a chain that is drafted token by token."""
        here = slice(index, index + 1)
        return Inputs(
            tokens, None, self.positions[:, here], self.slots[:, here], self.mask[:, here], self.key_positions
        )


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a forward answers."""

    logits: Tensor | None
    """float[B, R, V] (or [B, 1, V] when only the last row's were asked for)."""
    hidden: Mapping[int, Tensor]
    """float[B, R, H] by layer: i is the input of layer i, `Network.layers` the last hidden state."""


class SlotLayer(CacheLayerMixin):
    """One layer of a preallocated cache, as transformers wants to see it."""

    keys: Tensor
    values: Tensor
    is_compileable = True
    is_sliding = False

    def __init__(self, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        """keys, values: float[B, heads, T, width].  slots: int64[B, 1, R, 1], where this forward's rows go."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys, self.values, self.slots = keys, values, slots
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write this forward's rows, each into its slot, and return the whole extent."""
        self.keys.scatter_(2, self.slots.expand_as(key_states), key_states)
        self.values.scatter_(2, self.slots.expand_as(value_states), value_states)
        return self.keys, self.values

    def lazy_initialization(self, *_: Any) -> None:
        """Nothing to do: the slots exist."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The extent; only asked by a model that would build its own mask."""
        return self.keys.shape[2], 0

    def get_seq_length(self) -> int:
        """0: positions are explicit, and nothing here depends on how much is filled."""
        return 0

    def get_max_length(self) -> int:
        """The extent."""
        return int(self.keys.shape[2])

    get_max_cache_shape = get_max_length  # its name in the first releases of transformers 5


class ProbeLayer(SlotLayer):
    """A layer without a store, which notes the shapes that a model writes."""

    def __init__(self) -> None:
        """Know nothing yet: the extent of 1 is for the first releases of transformers 5, which ask before an update."""
        nothing = torch.empty(1, 1, 1, 0)
        super().__init__(nothing, nothing, nothing)
        self.shape: KVShape | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Note the shapes."""
        self.shape = (key_states.shape[1], key_states.shape[3], value_states.shape[3])
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Just the rows of this forward."""
        return query_length, 0


class Network:
    """A Hugging Face causal LM, or a view of one, behind the forward port."""

    def __init__(self, loaded: LoadedModel, clock: Clock | None = None, adapters: Sequence[Adapter] = ()) -> None:
        """loaded: the model; it is copied (weights shared) and never mutated.  clock: counts the time of forwards.

        adapters: what plugins know of model families; the core's own table comes after them.
        """
        self.loaded = loaded
        self.clock = clock or Clock()
        self.adapter = adapter_for(loaded.model.config, adapters)
        reason = refusal(self.adapter, loaded.model.config)
        if reason:
            raise UnsupportedModel(f"model '{loaded.name}' ({loaded.config.model_type}) {reason}")
        self.model = share(loaded.model)
        self.replaced_attention = take_explicit_masks(self.model)
        """The attention that the model was loaded with, if it may ignore masks and another one took its place."""
        self.device, self.dtype = loaded.device, loaded.dtype
        self._views: dict[tuple[object, ...], nn.Module] = {}
        self._seen = torch.zeros((), dtype=self.dtype, device=self.device)
        self._blocked = torch.full((), torch.finfo(self.dtype).min, dtype=self.dtype, device=self.device)
        base = backbone(self.model, self.adapter)
        if self.adapter.prepare is not None:
            self.adapter.prepare(base)
        self.layers = len(layer_list(base, self.adapter))
        self.config: Any = base.config
        self.stores = self.adapter.stores(self.config) if self.adapter.stores else self.layers
        """How many keys and values a cache holds: one for each layer, in most models."""
        self._cache_argument = _cache_argument(self.model)
        self.spans = self.adapter.spans(self.config) if self.adapter.spans else spans_of(self.config, self.layers)
        """Attention type and span of every layer."""
        slopes = self.adapter.slopes(self.config) if self.adapter.slopes else ()
        self._slopes = torch.tensor(slopes, device=self.device)[None, :, None, None]
        self._last_position = (loaded.context_length or 1 << 30) - 1

    @property
    def vocab_size(self) -> int:
        """V, the width of the logits."""
        return int(self.loaded.vocab_size)

    @cached_property
    def kv_shapes(self) -> tuple[KVShape | None, ...]:
        """What each layer's cache holds, found by one forward over one token; None for a layer that keeps nothing."""
        return tuple(probe.shape for probe in self._read_one_token(self.model))

    @torch.inference_mode()
    def _read_one_token(self, model: nn.Module) -> list[ProbeLayer]:
        """Run a whole model over one token, to see what it does."""
        probes = [ProbeLayer() for _ in range(self.stores)]
        zero = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        mask = torch.ones(1, 1, 1, dtype=torch.bool, device=self.device)
        self._call(model, Inputs(zero, None, zero, zero, mask, None), Cache(layers=[*probes]), 0, self.layers, {})
        return probes

    def with_spans(self, spans: Spans) -> Network:
        """The same network with other windows and chunks, on the same copy of the model."""
        other = copy.copy(self)
        other.spans = spans
        return other

    def stock(self) -> nn.Module:
        """A copy of the model that follows its own masks and positions: what the port must agree with."""
        model = share(self.loaded.model)
        if self.replaced_attention is not None:
            take_explicit_masks(model)
        return model

    @torch.inference_mode()
    def forward(
        self,
        inputs: Inputs,
        cache: CacheLayers,
        *,
        start: int = 0,
        stop: int | None = None,
        skip_attention: frozenset[int] = frozenset(),
        skip_mlp: frozenset[int] = frozenset(),
        hidden_layers: tuple[int, ...] = (),
        last_logits_only: bool = False,
    ) -> Outputs:
        """Run layers `start..stop-1` (all by default) over R rows, writing their keys and values into `cache`.

        Tokens enter at layer 0, hidden states at any. Logits are there if the last layer ran.
        hidden_layers: which hidden states to return.  skip_*: layers whose attention or MLP adds nothing.
        """
        end = self.layers if stop is None else stop
        model = self._view(start, end, skip_attention, skip_mlp)
        slots = inputs.slots[:, None, :, None]
        layers = Cache(layers=[SlotLayer(keys, values, slots) for keys, values in cache])
        wanted: dict[str, Any] = {}
        if any(layer != end for layer in hidden_layers) or (hidden_layers and end == self.layers):
            wanted["output_hidden_states"] = True
        if end == self.layers and last_logits_only:
            wanted["logits_to_keep"] = 1
        with self.clock.forward():
            answer = self._call(model, inputs, layers, start, end, wanted)
        if end < self.layers:
            inner = tuple(layer for layer in hidden_layers if layer != end)
            return Outputs(None, {**self._hidden(answer, inner, start, end), end: answer.last_hidden_state})
        return Outputs(answer.logits, self._hidden(answer, hidden_layers, start, end))

    def _hidden(self, answer: Any, layers: tuple[int, ...], start: int, end: int) -> dict[int, Tensor]:
        """The hidden states asked for, of a model that records one a layer, and the last."""
        if not layers:
            return {}
        states = answer.hidden_states
        found = {layer: states[-1] if layer == end else states[layer - start] for layer in layers}
        one_each = len(states) == end - start + 1 or {*layers} == {end}
        if not one_each or any(state.dim() != 3 for state in found.values()):
            raise UnsupportedModel(f"{type(self.model).__name__} does not give the hidden states between its layers")
        return found

    def _call(
        self, model: nn.Module, inputs: Inputs, cache: Cache, start: int, stop: int, wanted: dict[str, Any]
    ) -> Any:
        """Call the model's own forward with explicit positions and masks, so that it never builds its own."""
        positions = inputs.positions.clamp(max=self._last_position)  # padding may stand beyond the learned positions
        arguments = dict(wanted, **{self._cache_argument: cache}, position_ids=positions, use_cache=True)
        arguments["attention_mask"] = self._masks(inputs, start, stop)
        if inputs.hidden is None:
            arguments["input_ids"] = inputs.tokens
        else:
            arguments["inputs_embeds"] = inputs.hidden
        return (model if stop == self.layers else backbone(model, self.adapter))(**arguments)

    def _masks(self, inputs: Inputs, start: int, stop: int) -> Tensor | dict[str, Tensor]:
        """Additive masks float[B, 1, R, T]: one, or one for each attention type (see `Adapter.stacked_masks`)."""
        spans = dict(self.spans)
        if self.adapter.stacked_masks:
            return torch.cat([self._mask(inputs, spans[kind]) for kind in sorted(spans)], dim=1)
        kinds = dict(self.spans[start:stop])
        masks = {kind: self._mask(inputs, span) for kind, span in kinds.items()}
        return masks if len(spans) > 1 else next(iter(masks.values()))

    def _mask(self, inputs: Inputs, span: Span) -> Tensor:
        seen, keys = inputs.mask, inputs.key_positions
        if keys is None and (span != Span() or self.adapter.slopes):
            keys = torch.arange(seen.shape[2], device=seen.device)[None]
        if keys is not None:
            seen = span.narrow(seen, inputs.positions, keys)
        mask = torch.where(seen, self._seen, self._blocked)[:, None]
        if keys is not None and self.adapter.slopes:
            mask = mask + (self._slopes * keys[:, None, None]).to(mask.dtype)
        return mask

    def _view(self, start: int, stop: int, attention: frozenset[int], mlp: frozenset[int]) -> nn.Module:
        key = (start, stop, attention, mlp)
        if key == (0, self.layers, frozenset(), frozenset()):
            return self.model
        if key not in self._views:
            if not 0 <= start < stop <= self.layers:
                last = self.layers - 1
                raise UnsupportedModel(f"layers {start}..{stop - 1} do not exist: the model has layers 0..{last}")
            model = self.model
            if attention or mlp:
                model = skip_sublayers(model, attention, mlp, self._read_one_token, self.adapter)
            if (start, stop) != (0, self.layers):
                model = layer_range(model, start, stop, self.adapter)
            self._views[key] = model
        return self._views[key]


def _cache_argument(model: nn.Module) -> str:
    """The name of the forward's cache argument, which transformers 5.24 renamed."""
    names = inspect.signature(model.forward).parameters
    for name in ("cache", "past_key_values"):
        if name in names:
            return name
    raise UnsupportedModel(f"{type(model).__name__}: its forward takes no key/value cache")
