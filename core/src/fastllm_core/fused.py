"""A decoder of the Llama kind in five kernels a layer, on the stock model's own weights: few rows, on a GPU.

transformers runs some fifty kernels a layer, each of which waits for the last one; with few rows that takes longer than
reading the weights. What they compute together stands in `kernels.py`. Whatever is not of this kind, or has been
changed (adapters, hooks, quantised layers), is run as transformers runs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from .adapters import like_llama
from .identity import STOCK, unknown_code
from .port import Answer, Inputs, Passage
from .slot_layers import CacheLayers
from .spans import Span
from .ties import Best, noise_of
from .views import backbone, layer_list

if TYPE_CHECKING:
    from .network import Network

STEADY_ROPE: Final = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary embedding whose frequencies do not change with the length of a text."""
MATRICES: Final = {"self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"), "mlp": ("gate_proj", "up_proj", "down_proj")}
NORMS: Final = ("input_layernorm", "post_attention_layernorm")
"""The parts of a layer that have weights."""
MOST_ROWS: Final = 32
"""Rows of all texts together: with more, programs read rows again and again for longer than weights."""
TILE: Final = 16
"""Rows of one matrix instruction: up to so many, each is computed to the same bits whatever stands beside it."""
GROUP: Final = 16
"""Numbers of the residual stream whose squares are added by who writes them."""
MOST_STAGED: Final = 200_000
"""Bytes of shared memory that a program may take, where there are so many."""
RANKED: Final = 4096
"""Logits that one program looks through."""


class Tiling(NamedTuple):
    """How a product over one matrix is cut."""

    columns: int
    inner: int
    warps: int
    stages: int


def tiling(rows: int, count: int, width: int, *, matrices: int = 1, size: int = 2, shared: int = MOST_STAGED) -> Tiling:
    """By what was fastest on an H200 (docs/benchmarks.md): enough programs to keep all of its memory busy.

    `inner` depends on the matrix alone, so that a row's sums are the same whatever stands beside it.  matrices: that
    are read side by side.  size: bytes of a number.  shared: bytes of a program.
    """
    narrow = count <= 2048
    inner = min(512 if narrow else 256, _power_of_two(width))
    columns = 16 if narrow and rows <= TILE else 32
    stages = 3 if matrices > 1 or count >= 8192 else 5
    while stages > 1 and (_tall(rows) + matrices * columns) * inner * stages * size > shared:
        stages -= 1
    return Tiling(columns, inner, 4, stages)


class AttentionTiling(NamedTuple):
    """How attention over a cache is cut."""

    part: int
    """Slots that one program attends to."""
    step: int
    """Slots that it looks at together."""
    warps: int
    stages: int


def attention_tiling(width: int) -> AttentionTiling:
    """By what was fastest on an H200, for heads of so many numbers."""
    return AttentionTiling(256, 128, 8 if width >= 128 else 4, 2)


def unfit(network: Network) -> str | None:
    """Why a network's forwards cannot be fused; None if they can."""
    config = network.config
    if not like_llama(config):
        return "it is not of the kind"
    if reason := unknown_code(network):
        return reason
    foreign = (type(part) for part in network.model.modules() if not type(part).__module__.startswith(STOCK))
    if kind := next(foreign, None):
        return f"{kind.__name__} is not transformers'"
    if network.dtype is torch.float16:
        return "float16 has no room for the stream times a norm's gains, before it is divided"
    if find_spec("triton") is None:
        return "triton is not installed"
    base: Any = backbone(network.model, network.adapter)
    shape, rope = network.kv_shapes[0], base.rotary_emb
    if shape is None or shape[1] != shape[2] or any(each != shape for each in network.kv_shapes):
        return "its layers keep different things"
    width = shape[1]
    if width < 16 or width & (width - 1) or config.hidden_size % GROUP:
        return f"heads of {width} numbers do not fit a matrix instruction"
    if config.rope_parameters.get("rope_type") not in STEADY_ROPE or 2 * rope.inv_freq.numel() != width:
        return "its rotary embedding changes with the text"
    if config.hidden_act not in ("silu", "swish") or getattr(config, "mlp_bias", False):
        return "its MLP is another"
    if not all(_plain(layer) for layer in layer_list(base, network.adapter)):
        return "its layers have other parts"
    place = (network.dtype, network.device)
    if any((each.dtype, each.device) != place or not each.is_contiguous() for each in network.model.parameters()):
        return "its weights lie in another way"
    return None


def _plain(layer: Any) -> bool:
    """Whether a layer's parts are matrices and norms."""
    matrices = [getattr(getattr(layer, part, None), name, None) for part, names in MATRICES.items() for name in names]
    norms = [getattr(layer, name, None) for name in NORMS]
    return all(type(matrix) is nn.Linear for matrix in matrices) and all(
        hasattr(norm, "variance_epsilon") for norm in norms
    )


class Stream(NamedTuple):
    """The residual stream of some rows, and what the next norm needs of it (see `kernels.py`)."""

    states: Tensor
    """float[rows, H]"""
    scaled: Tensor
    """float[rows, H]: times the next norm's gains."""
    squares: Tensor
    """float32[rows, H // GROUP]: sums of squares."""
    eps: float
    """The next norm's."""


Rotation = tuple[Tensor, Tensor]
"""Cosines and sines, float[rows, width / 2], by which queries and keys are turned."""


class FusedForward:
    """Forwards of one network: calling it is `Network.eager`, for few rows. Pure kernels: it can be captured."""

    def __init__(self, network: Network) -> None:
        """network: one for which `unfit` says nothing."""
        from . import kernels  # triton takes a second, and is there on a GPU only

        self.network, self.kernels = network, kernels
        model: Any = network.model
        base: Any = backbone(model, network.adapter)
        self.layers: list[Any] = list(layer_list(base, network.adapter))
        self.norm, self.head, self.table = base.norm, model.lm_head, model.get_input_embeddings().weight
        rope = base.rotary_emb
        self.frequencies = rope.inv_freq.to(device=network.device, dtype=torch.float32)
        self.scaling = float(rope.attention_scaling)
        shape = network.kv_shapes[0]
        assert shape is not None
        self.keys, self.width, _ = shape
        self.queries = int(network.config.num_attention_heads)
        self.size = network.hidden_size
        self.shared = _shared_memory(network.device)

    def takes(self, inputs: Inputs, cache: CacheLayers) -> bool:
        """Whether these are few enough rows, over a cache that lies as the kernels read it."""
        laid = all(store.stride()[2:] == (self.width, 1) for pair in cache for store in pair)
        return inputs.positions.numel() <= MOST_ROWS and laid

    def __call__(self, passage: Passage, inputs: Inputs, cache: CacheLayers) -> Answer:
        """See `Network.compute`."""
        start, stop, spans = passage.start, passage.stop, self.network.spans
        whole = passage.stop == self.network.layers
        inputs = Inputs(*(None if part is None else part.contiguous() for part in inputs))  # type: ignore[arg-type]
        norms = iter([*self._norms(passage), self.norm if whole else None])
        masks = {span: _seen(inputs, span) for _, span in spans[start:stop]}
        stream, rotation = self._enter(inputs, next(norms))
        states = {}
        for index in range(start, stop):
            states[index] = stream.states
            layer = self.layers[index]
            if index not in passage.skip_attention:
                part, mask = layer.self_attn, masks[spans[index][1]]
                heads = self._project(stream, part.q_proj, part.k_proj, part.v_proj)
                seen = self._attend(part, heads, rotation, inputs.slots, mask, cache[index])
                stream = self._add(seen, part.o_proj, stream, next(norms))
            if index not in passage.skip_mlp:
                stream = self._add(self._gate(layer.mlp, stream), layer.mlp.down_proj, stream, next(norms))
        texts, rows = inputs.positions.shape
        if stop in passage.hidden_layers:
            states[stop] = self.norm(stream.states) if whole else stream.states
        hidden = tuple(states[layer].view(texts, rows, -1) for layer in passage.hidden_layers)
        if not whole:
            return Answer(None, hidden)
        logits = self._logits(stream, texts, rows, passage.last_logits_only)
        return Answer(logits, hidden, self._best(logits))

    def _norms(self, passage: Passage) -> Iterator[Any]:
        """The norm of every sub-layer that runs."""
        for index in range(passage.start, passage.stop):
            if index not in passage.skip_attention:
                yield self.layers[index].input_layernorm
            if index not in passage.skip_mlp:
                yield self.layers[index].post_attention_layernorm

    def _enter(self, inputs: Inputs, norm: Any) -> tuple[Stream, Rotation]:
        entry = inputs.tokens if inputs.hidden is None else inputs.hidden
        assert entry is not None
        rows = inputs.positions.numel()
        stream = self._stream(rows, norm)
        rotation = self.table.new_empty(rows, self.width // 2), self.table.new_empty(rows, self.width // 2)
        self.kernels.enter[(rows,)](
            entry, self.table, entry, inputs.positions, self.frequencies, self.scaling, *self._gained(norm),
            *stream[:3], *rotation, self.size,
            TOKENS=inputs.hidden is None, SCALED=norm is not None, SIZE=_power_of_two(self.size), HALF=self.width // 2,
        )  # fmt: skip
        return stream, rotation

    def _attend(
        self, part: Any, heads: Tensor, rotation: Rotation, slots: Tensor, mask: Tensor, store: tuple[Tensor, Tensor]
    ) -> Tensor:
        """float[rows, queries * width] of heads not turned yet; writes the rows' keys and values."""
        (keys, values), (texts, rows) = store, slots.shape
        extent, groups = mask.shape[2], self.queries // self.keys
        out = heads.new_empty(texts * rows, self.queries * self.width)
        cut = attention_tiling(self.width)
        parts = -(-extent // cut.part)
        partial = out.new_empty((parts, *out.shape) if parts > 1 else (1,), dtype=torch.float32)
        extremes = out.new_empty((parts, texts * rows, self.queries, 2) if parts > 1 else (1,), dtype=torch.float32)
        normed = hasattr(part, "q_norm")
        gains = (part.q_norm.weight, part.k_norm.weight) if normed else (out, out)
        self.kernels.attend[(texts * self.keys, -(-rows * groups // TILE), parts)](
            heads, *gains, *rotation, slots, mask, keys, values, out, partial, extremes,
            *keys.stride()[:2], *values.stride()[:2], rows, extent, self.keys,
            part.q_norm.variance_epsilon if normed else 0.0, float(part.scaling),
            GROUPS=groups, WIDTH=self.width, NORMED=normed, NEW=max(TILE, _power_of_two(rows)),
            PART=cut.part, SPLIT=parts > 1, STEP=cut.step, num_warps=cut.warps, num_stages=cut.stages,
        )  # fmt: skip
        if parts > 1:
            count = texts * rows * self.queries
            self.kernels.merge[(count,)](partial, extremes, out, count, parts, WIDTH=self.width)
        return out

    def _gate(self, part: Any, stream: Stream) -> Tensor:
        gates, ups = part.gate_proj.weight, part.up_proj.weight
        rows, (count, width) = stream.states.shape[0], gates.shape
        out = stream.states.new_empty(rows, count)
        cut = self._tiling(rows, count, width, matrices=2)
        self.kernels.gate[(-(-count // cut.columns),)](
            stream.scaled, stream.squares, stream.eps, gates, ups, out, rows, width, count,
            GROUPS=_power_of_two(width // GROUP), **self._cut(rows, cut, width, count),
        )  # fmt: skip
        return out

    def _logits(self, stream: Stream, texts: int, rows: int, last: bool) -> Tensor:
        if last:
            scaled, squares = (part.view(texts, rows, -1)[:, -1] for part in (stream.scaled, stream.squares))
            stream, rows = stream._replace(scaled=scaled, squares=squares), 1
        return self._project(stream, self.head).view(texts, rows, -1)

    def _best(self, logits: Tensor) -> Best:
        """See `ties.best_of`."""
        texts, rows, size = logits.shape
        parts = -(-size // RANKED)
        found = logits.new_empty(texts * rows, parts, 3, dtype=torch.float32)
        firsts = logits.new_empty(texts * rows, parts, dtype=torch.long)
        best = Best(logits.new_empty(texts, rows, dtype=torch.long), logits.new_empty(texts, rows, dtype=torch.bool))
        self.kernels.rank[(texts * rows, parts)](logits, found, firsts, size, PART=RANKED)
        self.kernels.choose[(texts * rows,)](
            found, firsts, *best, parts, size, noise_of(self.network.dtype), PARTS=_power_of_two(parts)
        )
        return best

    def _project(self, stream: Stream, *matrices: nn.Linear) -> Tensor:
        """Up to three products of the normed stream, next to each other."""
        weights = [matrix.weight for matrix in matrices]
        biases = [matrix.bias for matrix in matrices if matrix.bias is not None] or weights
        counts = [weight.shape[0] for weight in weights]
        rows, width = stream.scaled.shape
        cut = self._tiling(rows, sum(counts), width)
        out = stream.scaled.new_empty(rows, sum(counts))
        absent = 3 - len(matrices)
        tiles = sum(-(-count // cut.columns) for count in counts)
        self.kernels.project[(tiles,)](
            stream.scaled, stream.scaled.stride(0), stream.squares, stream.squares.stride(0), stream.eps,
            *weights, *weights[:1] * absent, *biases, *biases[:1] * absent, out, rows, width,
            *counts, *[0] * absent,
            BIAS=biases is not weights, GROUPS=_power_of_two(width // GROUP), **self._cut(rows, cut, width, *counts),
        )  # fmt: skip
        return out

    def _add(self, x: Tensor, matrix: nn.Linear, stream: Stream, norm: Any) -> Stream:
        weight, after = matrix.weight, self._stream(x.shape[0], norm)
        rows, (count, width) = x.shape[0], weight.shape
        cut = self._tiling(rows, count, width)
        self.kernels.add[(-(-count // cut.columns),)](
            x, weight, weight if matrix.bias is None else matrix.bias, stream.states, *self._gained(norm), *after[:3],
            rows, width, count, BIAS=matrix.bias is not None, SCALED=norm is not None,
            **self._cut(rows, cut, width, count),
        )  # fmt: skip
        return after

    def _stream(self, rows: int, norm: Any) -> Stream:
        """Memory for the residual stream of some rows, and what a norm that follows needs of it."""
        states = self.table.new_empty(rows, self.size)
        if norm is None:
            return Stream(states, states, states, 0.0)
        squares = states.new_empty(rows, self.size // GROUP, dtype=torch.float32)
        return Stream(states, torch.empty_like(states), squares, norm.variance_epsilon)

    def _gained(self, norm: Any) -> tuple[Tensor]:
        return (self.table if norm is None else norm.weight,)

    def _tiling(self, rows: int, count: int, width: int, matrices: int = 1) -> Tiling:
        return tiling(rows, count, width, matrices=matrices, size=self.table.element_size(), shared=self.shared)

    def _cut(self, rows: int, cut: Tiling, width: int, *counts: int) -> dict[str, Any]:
        even = width % cut.inner == 0 and all(count % cut.columns == 0 for count in counts)
        tiles = {"M": _tall(rows), "N": cut.columns, "K": cut.inner, "EVEN": even}
        return {**tiles, "num_warps": cut.warps, "num_stages": cut.stages}


def _seen(inputs: Inputs, span: Span) -> Tensor:
    """bool[B, R, T]: what rows see of layers with this span."""
    if span == Span():
        return inputs.mask
    keys = inputs.key_positions
    if keys is None:
        keys = torch.arange(inputs.mask.shape[2], device=inputs.mask.device)[None]
    return span.narrow(inputs.mask, inputs.positions, keys).contiguous()


def _tall(rows: int) -> int:
    """Rows that one program computes."""
    return max(TILE, _power_of_two(rows))


def _shared_memory(device: torch.device) -> int:
    """Bytes that a program may take, of those that Triton allows one on this card."""
    if device.type != "cuda":
        return MOST_STAGED
    from triton.runtime import driver

    index = torch.cuda.current_device() if device.index is None else device.index
    there = int(driver.active.utils.get_device_properties(index)["max_shared_mem"])
    return min(MOST_STAGED, there - (4 << 10))  # a little is for sums and indices


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()
