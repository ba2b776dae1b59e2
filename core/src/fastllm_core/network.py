"""The forward port: how every network of a round is run, target, drafter and whatever a plugin adds.

`Network.forward` is a pure function over fixed shapes: (tokens or hidden states, positions, mask, cache) -> (logits,
chosen hidden states). The cache is an argument and is written in place. Nothing in it reads a tensor on the host, so
that a back end may run it eagerly, compile it, or capture it.

Shapes as in `protocols`; R is the number of rows of the forward.
"""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, wraps
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from .adapters import Adapter, adapter_for, refusal
from .attention import take_explicit_masks, take_fusible_attention
from .clock import Clock
from .errors import UnsupportedModel
from .slot_layers import CacheLayers, KVShape, ProbeLayer, SlotLayer
from .spans import Span, Spans, spans_of
from .ties import Best, best_of
from .twin import share
from .views import backbone, layer_list, layer_range, skip_sublayers

if TYPE_CHECKING:
    from .models import LoadedModel

P = ParamSpec("P")
T = TypeVar("T")


class Inputs(NamedTuple):
    """The arguments of a forward, all of fixed shape. Rounds make several: a named tuple takes no time."""

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
        return Inputs(*(None if part is None else part.to(device) for part in self))  # type: ignore[arg-type]

    def last(self) -> Inputs:
        """The last of the rows alone, with its token."""
        tokens = None if self.tokens is None else self.tokens[:, -1:]
        hidden = None if self.hidden is None else self.hidden[:, -1:]
        rows = (self.positions[:, -1:], self.slots[:, -1:], self.mask[:, -1:])
        return Inputs(tokens, hidden, *rows, self.key_positions)

    def of_tokens(self, tokens: Tensor) -> Inputs:
        """The same rows with other tokens: int64[B, R]."""
        return Inputs(tokens, None, self.positions, self.slots, self.mask, self.key_positions)


class Outputs(NamedTuple):
    """What a forward answers."""

    logits: Tensor | None
    """float[B, R, V] (or [B, 1, V] when only the last row's were asked for)."""
    hidden: Mapping[int, Tensor]
    """float[B, R, H] by layer: i is the input of layer i, `Network.layers` the last hidden state."""
    best: Best | None = None
    """The logits read greedily, where a back end brings that along."""
    next: Inputs | None = None
    """After one row of each text, the rows of the most likely tokens behind them, where a back end brings them along:
    as in `Advance`."""


@dataclass(frozen=True, slots=True)
class Passage:
    """Which layers a forward passes through, and what it answers: what there is a program for in a back end."""

    start: int
    stop: int
    skip_attention: frozenset[int] = frozenset()
    skip_mlp: frozenset[int] = frozenset()
    hidden_layers: tuple[int, ...] = ()
    last_logits_only: bool = False


passage_of = lru_cache(maxsize=1024)(Passage)
"""A passage, made once: rounds ask for the same few."""


class Answer(NamedTuple):
    """What a runner gives back."""

    logits: Tensor | None
    """As in `Outputs`; None if the last layer did not run."""
    hidden: tuple[Tensor, ...]
    """The passage's hidden states, in its order."""
    best: Best | None = None
    """As in `Outputs`."""
    next: Inputs | None = None
    """As in `Outputs`."""


class Advance(NamedTuple):
    """S tokens further in a chain: what its rows say, and the row behind them."""

    logits: Tensor
    """float[B, V]: of the last row."""
    likely: Tensor
    """int64[B, S]: the most likely token behind each row, which is the next row's."""
    next: Inputs
    """The row of the last of `likely`, one position and one slot further."""
    hidden: tuple[Tensor, ...] = ()
    """float[B, S, H]: the passage's hidden states, in its order."""
    close: Tensor | None = None
    """bool[B, S]: whether rounding alone may have decided each of `likely`, where a back end brings it along."""


class Runner(Protocol):
    """How a back end runs the forwards of one network."""

    def forward(self, passage: Passage, inputs: Inputs, cache: CacheLayers) -> Answer:
        """Some rows through some layers; see `Network.forward`."""
        ...

    def advance(self, passage: Passage, inputs: Inputs, cache: CacheLayers, steps: int = 1) -> Advance:
        """One row of each text, to the last layer, and those behind it; see `Network.advance`."""
        ...

    def stride(self, passage: Passage, texts: int) -> int:
        """How many rows of each text `advance` runs at once, with their near-ties; see `Network.stride`."""
        ...


class Stepping(ABC):
    """`advance` by way of `forward`, which may bring everything along already."""

    def __init__(self, network: Network) -> None:
        """network: whose forwards these are."""
        self.network = network

    @abstractmethod
    def forward(self, passage: Passage, inputs: Inputs, cache: CacheLayers) -> Answer:
        """See `Network.forward`."""

    def advance(self, passage: Passage, inputs: Inputs, cache: CacheLayers, steps: int = 1) -> Advance:
        """See `Network.advance`."""
        if steps > 1:
            return in_turn([1] * steps, inputs, lambda _, row: self.advance(passage, row, cache))
        logits, hidden, best, behind = self.forward(passage, inputs, cache)
        assert logits is not None
        if best is None or behind is None:
            return advanced(logits, inputs, hidden)
        return Advance(logits[:, 0], best.tokens, behind, hidden, best.close)

    def stride(self, passage: Passage, texts: int) -> int:
        """One: a loop in Python gains nothing."""
        return 1


def advanced(logits: Tensor, inputs: Inputs, hidden: tuple[Tensor, ...] = ()) -> Advance:
    """What follows from the logits of a row, float[B, 1, V]."""
    likely = logits.max(-1).indices
    return Advance(logits[:, 0], likely, following(inputs, likely), hidden)


def in_turn(strides: Sequence[int], inputs: Inputs, advance: Callable[[int, Inputs], Advance]) -> Advance:
    """One advance made of several: so many steps each, from the row behind the last."""
    said = [advance(strides[0], inputs)]
    for steps in strides[1:]:
        said.append(advance(steps, said[-1].next))
    if len(said) == 1:
        return said[0]
    hidden = tuple(torch.cat(states, 1) for states in zip(*(one.hidden for one in said), strict=True))
    closes = [one.close for one in said if one.close is not None]
    close = torch.cat(closes, 1) if len(closes) == len(said) else None
    return said[-1]._replace(likely=torch.cat([one.likely for one in said], 1), hidden=hidden, close=close)


def watched(network: Network, passage: Passage, inputs: Inputs, cache: CacheLayers, steps: int) -> Advance:
    """An eager advance that also says which of its tokens were close."""

    def one(_: int, row: Inputs) -> Advance:
        answer = network.eager(passage, row, cache)
        assert answer.logits is not None
        best = best_of(answer.logits, network.dtype)
        return Advance(answer.logits[:, 0], best.tokens, following(row, best.tokens), answer.hidden, best.close)

    return in_turn([1] * steps, inputs, one)


def following(inputs: Inputs, tokens: Tensor) -> Inputs:
    """The rows of some tokens, int64[B, 1], behind one row each: pure tensor arithmetic, which a compiler takes in."""
    behind = inputs.slots + 1
    slots = torch.arange(inputs.mask.shape[2], device=behind.device)
    mask = inputs.mask | (slots == behind[:, :, None])
    return Inputs(tokens, None, inputs.positions + 1, behind, mask, None)


def without_gradients(function: Callable[P, T]) -> Callable[P, T]:
    """A function that runs in inference mode, which is entered only where it is not on yet: in rounds it is."""
    guarded = torch.inference_mode()(function)

    @wraps(function)
    def run(*arguments: P.args, **named: P.kwargs) -> T:
        return (function if torch.is_inference_mode_enabled() else guarded)(*arguments, **named)

    return run


class EagerRunner(Stepping):
    """Forwards as transformers runs them."""

    def forward(self, passage: Passage, inputs: Inputs, cache: CacheLayers) -> Answer:
        """See `Network.eager`."""
        return self.network.eager(passage, inputs, cache)


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
        return Outputs(answer.logits, dict(zip(hidden_layers, answer.hidden, strict=True)), answer.best, answer.next)

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
        `next` as it is or, for a token that was drawn, with `Inputs.of_tokens`.
        steps: rows to run, each the most likely token behind the last; where nobody looks at a token before the next
        is drafted, one call for all of them spares a back end the way through Python between them.
        skip_*, hidden_layers: as for `forward`.
        """
        passage = passage_of(0, self.layers, skip_attention, skip_mlp, hidden_layers)
        with self.clock.forward():
            return self.runner.advance(passage, inputs, cache, steps)

    def stride(self, texts: int) -> int:
        """How many rows of each text, all the way through, are one call of the back end's where nobody looks between.

        1 where that gains nothing: such a call would only be a loop.
        """
        return self.runner.stride(self.whole, texts)

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


def _cache_argument(model: nn.Module) -> str:
    """The name of the forward's cache argument, which transformers 5.24 renamed."""
    names = inspect.signature(model.forward).parameters
    for name in ("cache", "past_key_values"):
        if name in names:
            return name
    raise UnsupportedModel(f"{type(model).__name__}: its forward takes no key/value cache")
