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
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from .adapters import Adapter, adapter_for, refusal
from .attention import take_explicit_masks, take_fusible_attention
from .clock import Clock
from .errors import UnsupportedModel
from .inference import without_gradients
from .port import Advance, Answer, EagerRunner, Inputs, Outputs, Passage, Runner, passage_of
from .slot_layers import CacheLayers, KVShape, ProbeLayer, SlotLayer
from .spans import Span, Spans, spans_of
from .twin import share
from .views import backbone, layer_list, layer_range, skip_sublayers

if TYPE_CHECKING:
    from .models import LoadedModel


class Network:
    """A Hugging Face causal LM, or a view of one, behind the forward port."""

    def __init__(self, loaded: LoadedModel, clock: Clock | None = None, adapters: Sequence[Adapter] = ()) -> None:
        """loaded: the model; it is copied (weights shared) and never mutated.  clock: counts the time of forwards.

        adapters: what plugins know of model families; the core's own table comes after them.
        """
        self.loaded = loaded
        self.clock = clock or Clock()
        self.adapter = adapter_for(loaded.model.config, adapters)
        self.adapter_is_foreign = any(self.adapter is adapter for adapter in adapters)
        """Whether a plugin, not the core's own table, says how the family is run."""
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
        self.whole = Passage(0, self.layers)
        """All layers."""
        self._runner: Runner | None = None

    @property
    def runner(self) -> Runner:
        """How forwards are run: eagerly, until a back end puts its own here."""
        return self._runner or EagerRunner(self)

    @runner.setter
    def runner(self, runner: Runner) -> None:
        self._runner = runner

    @cached_property
    def vocab_size(self) -> int:
        """V, the width of the logits."""
        return int(self.loaded.vocab_size)

    @property
    def hidden_size(self) -> int:
        """H, the width of hidden states."""
        return int(self.config.hidden_size)

    @cached_property
    def weight_bytes(self) -> int:
        """What its weights take, each counted once."""
        return sum(weight.numel() * weight.element_size() for weight in self.model.parameters())

    @cached_property
    def reads_tokens(self) -> bool:
        """Whether tokens may enter. A head that starts from the target's hidden states embeds none of its own."""
        table = getattr(self.model.get_input_embeddings(), "weight", None)  # type: ignore[operator]
        return table is None or table.shape[0] > 1

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
        other._runner = None
        return other

    def stock(self) -> nn.Module:
        """A copy of the model that follows its own masks and positions: what the port must agree with."""
        model = share(self.loaded.model)
        if self.replaced_attention is not None:
            take_explicit_masks(model)
        return model

    @without_gradients
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
        hidden_layers: which hidden states to return; those behind a lower part are always there.
        skip_*: layers whose attention or MLP adds nothing.
        """
        end = self.layers if stop is None else stop
        if end < self.layers and end not in hidden_layers:
            hidden_layers = (*hidden_layers, end)
        passage = passage_of(start, end, skip_attention, skip_mlp, hidden_layers, last_logits_only)
        with self.clock.forward():
            answer = self.runner.forward(passage, inputs, cache)
        logits, states, best, behind = answer
        hidden = dict(zip(hidden_layers, states, strict=True)) if states else _NONE
        return Outputs(logits, hidden, best, behind)

    @without_gradients
    def advance(
        self,
        inputs: Inputs,
        cache: CacheLayers,
        *,
        steps: int = 1,
        skip_attention: frozenset[int] = frozenset(),
        skip_mlp: frozenset[int] = frozenset(),
        hidden_layers: tuple[int, ...] = (),
    ) -> Advance:
        """One row of a chain of each text: its logits, and the row of the most likely token behind it.

        inputs: tokens int64[B, 1], without key positions. A chain is drafted by calling this again and again, with
        `next` as it is or, for a token that was drawn, with `Inputs.of_tokens`. Or int64[B, R], rows of a chain: what
        is missing in the cache before its last row enters with it, and only the last is answered.
        steps: tokens to go on for, each the most likely one behind the last; where nobody looks at a token before the
        next is drafted, one call for all of them spares a back end the way through Python between them.
        skip_*, hidden_layers: as for `forward`.
        """
        passage = passage_of(0, self.layers, skip_attention, skip_mlp, hidden_layers)
        with self.clock.forward():
            return self.runner.advance(passage, inputs, cache, steps)

    def at_once(self, texts: int, steps: int, rows: int = 1) -> bool:
        """Whether `advance` by so many steps is one call of the back end's, through all layers, and says what is close.

        If not, it is a loop, in which one may as well look at each token.  rows: of each text, that enter.
        """
        return self.runner.at_once(self.whole, texts, rows, steps)

    def eager(self, passage: Passage, inputs: Inputs, cache: CacheLayers) -> Answer:
        """Run a forward as transformers does, kernel by kernel: what every other back end must agree with."""
        slots = inputs.slots[:, None, :, None]
        return self.compute(passage, inputs, [SlotLayer(keys, values, slots) for keys, values in cache])

    def compute(
        self,
        passage: Passage,
        inputs: Inputs,
        layers: Sequence[SlotLayer],
        logits_to_keep: Tensor | None = None,
    ) -> Answer:
        """The forward itself, a pure function of tensors (the cache is written in place).

        logits_to_keep: int64[K], the rows whose logits are wanted; None is all of them, or what the passage says.
        """
        whole = passage.stop == self.layers
        inner = tuple(layer for layer in passage.hidden_layers if whole or layer != passage.stop)
        wanted: dict[str, Any] = {}
        if inner:
            wanted["output_hidden_states"] = True
        if whole and (passage.last_logits_only or logits_to_keep is not None):
            wanted["logits_to_keep"] = 1 if logits_to_keep is None else logits_to_keep
        answer = self._call(self.view(passage), inputs, Cache(layers=[*layers]), passage.start, passage.stop, wanted)
        hidden = self._hidden(answer, inner, passage.start, passage.stop)
        if not whole:
            hidden[passage.stop] = answer.last_hidden_state
        return Answer(answer.logits if whole else None, tuple(hidden[layer] for layer in passage.hidden_layers))

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

    def view(self, passage: Passage) -> nn.Module:
        """The layers of a passage as a module on the model's own weights."""
        start, stop = passage.start, passage.stop
        attention, mlp = passage.skip_attention, passage.skip_mlp
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

    def for_export(self) -> Network:
        """The same network on a copy of the model whose attention a compiler can fuse."""
        other = copy.copy(self)
        other.model, other._views = share(self.model), {}
        take_fusible_attention(other.model)
        other._runner = None
        return other


_NONE: Final[Mapping[int, Tensor]] = MappingProxyType({})


def _cache_argument(model: nn.Module) -> str:
    """The name of the forward's cache argument, which transformers 5.24 renamed."""
    names = inspect.signature(model.forward).parameters
    for name in ("cache", "past_key_values"):
        if name in names:
            return name
    raise UnsupportedModel(f"{type(model).__name__}: its forward takes no key/value cache")
