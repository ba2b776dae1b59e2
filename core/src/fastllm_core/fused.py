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

from .identity import unknown_code
from .port import Answer, Inputs, Passage
from .slot_layers import CacheLayers
from .spans import Span
from .views import backbone, layer_list

if TYPE_CHECKING:
    from .network import Network

FAMILIES: Final = ("llama", "mistral", "qwen2", "qwen3")
"""`config.model_type`s of layers that these kernels compute: norm, rotated attention, norm, gated MLP, nothing else."""
STEADY_ROPE: Final = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary embedding whose frequencies do not change with the length of a text."""
MOST_ROWS: Final = 64
"""Rows of all texts together, above which arithmetic counts beside the reading of weights."""
GROUP: Final = 16
PART: Final = 512
"""Slots that one program attends to."""


AHEAD: Final = 512
"""Numbers of each row of a matrix that are fetched before a kernel may read anything else."""


class Tiling(NamedTuple):
    """How a product over one matrix is cut."""

    columns: int
    inner: int
    warps: int
    stages: int


def tiling(rows: int, count: int, width: int) -> Tiling:
    """By what was fastest on an H100 (docs/benchmarks.md): enough programs to keep every memory channel busy.

    `inner` depends on the matrix alone, so that a row's sums are the same whatever stands beside it.
    """
    tall = _tall(rows)
    columns = 16 if count <= 2048 else 32
    inner = min(512 if count <= 2048 else 256, _power_of_two(width))
    if rows > 16:
        columns = 32
    stages = 3 if count >= 8192 else 5
    while stages > 2 and (tall + 2 * columns) * inner * stages > 100_000:
        stages -= 1
    return Tiling(columns, inner, 4, stages)


def unfit(network: Network) -> str | None:
    """Why a network's forwards cannot be fused; None if they can."""
    config = network.config
    if config.model_type not in FAMILIES:
        return f"{config.model_type} is not of the kind"
    if reason := unknown_code(network):
        return reason
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
    weights = [part.weight for part in network.model.modules() if isinstance(part, nn.Linear)]
    if any(weight.dtype != network.dtype or not weight.is_contiguous() for weight in weights):
        return "its weights lie in another way"
    return None


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
        self.early = int(_starts_early(network.device))

    def takes(self, inputs: Inputs, cache: CacheLayers) -> bool:
        """Whether these are few enough rows, over a cache that lies as the kernels read it."""
        laid = all(store.stride()[2:] == (self.width, 1) for pair in cache for store in pair)
        return inputs.positions.numel() <= MOST_ROWS and laid

    def __call__(self, passage: Passage, inputs: Inputs, cache: CacheLayers) -> Answer:
        """See `Network.compute`."""
        start, stop, spans = passage.start, passage.stop, self.network.spans
        whole = passage.stop == self.network.layers
        norms = iter([*self._norms(passage), self.norm if whole else None])
        masks = {span: _seen(inputs, span) for _, span in spans[start:stop]}
        stream = self._enter(inputs, next(norms))
        states = {}
        for index in range(start, stop):
            states[index] = stream.states
            layer = self.layers[index]
            if index not in passage.skip_attention:
                mask = masks[spans[index][1]]
                stream = self._attention(layer.self_attn, inputs, mask, cache[index], stream, next(norms))
            if index not in passage.skip_mlp:
                stream = self._mlp(layer.mlp, stream, next(norms))
        texts, rows = inputs.positions.shape
        if stop in passage.hidden_layers:
            states[stop] = self.norm(stream.states) if whole else stream.states
        hidden = tuple(states[layer].view(texts, rows, -1) for layer in passage.hidden_layers)
        return Answer(self._logits(stream, texts, rows, passage.last_logits_only) if whole else None, hidden)

    def _norms(self, passage: Passage) -> Iterator[Any]:
        """The norm of every sub-layer that runs."""
        for index in range(passage.start, passage.stop):
            if index not in passage.skip_attention:
                yield self.layers[index].input_layernorm
            if index not in passage.skip_mlp:
                yield self.layers[index].post_attention_layernorm

    def _enter(self, inputs: Inputs, norm: Any) -> Stream:
        entry = inputs.tokens if inputs.hidden is None else inputs.hidden
        assert entry is not None
        rows = inputs.positions.numel()
        stream = self._stream(rows, norm)
        size = _power_of_two(self.size)
        self.kernels.enter[(rows,)](
            entry, self.table, entry, *self._gained(norm), *stream[:3], self.size,
            TOKENS=inputs.hidden is None, SCALED=norm is not None, SIZE=size, EARLY=self.early, **self._launch(),
        )  # fmt: skip
        return stream

    def _attention(
        self, part: Any, inputs: Inputs, mask: Tensor, store: tuple[Tensor, Tensor], stream: Stream, norm: Any
    ) -> Stream:
        heads = self._project(stream, part.q_proj, part.k_proj, part.v_proj)
        return self._add(self._attend(part, heads, inputs, mask, store), part.o_proj, stream, norm)

    def _attend(self, part: Any, heads: Tensor, inputs: Inputs, mask: Tensor, store: tuple[Tensor, Tensor]) -> Tensor:
        """float[rows, queries * width]; writes the rows' keys and values."""
        (keys, values), (texts, rows) = store, inputs.positions.shape
        extent, groups = mask.shape[2], self.queries // self.keys
        out = heads.new_empty(texts * rows, self.queries * self.width)
        parts = -(-extent // PART)
        partial = out.new_empty((parts, *out.shape) if parts > 1 else (1,), dtype=torch.float32)
        extremes = out.new_empty((parts, texts * rows, self.queries, 2) if parts > 1 else (1,), dtype=torch.float32)
        normed = hasattr(part, "q_norm")
        gains = (part.q_norm.weight, part.k_norm.weight) if normed else (out, out)
        self.kernels.attend[(texts * self.keys, -(-rows * groups // self.kernels.TILE), parts)](
            heads, *gains, self.frequencies, inputs.positions, inputs.slots, mask, keys, values, out, partial, extremes,
            *keys.stride()[:2], *values.stride()[:2], rows, extent, self.keys,
            part.q_norm.variance_epsilon if normed else 0.0, self.scaling, float(part.scaling),
            GROUPS=groups, WIDTH=self.width, NORMED=normed, NEW=max(self.kernels.TILE, _power_of_two(rows)), STEP=128,
            PART=PART, PARTS=parts, EARLY=self.early, **self._launch(stages=2),
        )  # fmt: skip
        if parts > 1:
            count = texts * rows * self.queries
            self.kernels.merge[(count,)](
                partial, extremes, out, count, PARTS=parts, WIDTH=self.width, EARLY=self.early, **self._launch()
            )
        return out

    def _mlp(self, part: Any, stream: Stream, norm: Any) -> Stream:
        return self._add(self._gate(part, stream), part.down_proj, stream, norm)

    def _gate(self, part: Any, stream: Stream) -> Tensor:
        gates, ups = part.gate_proj.weight, part.up_proj.weight
        rows, (count, width) = stream.states.shape[0], gates.shape
        out = stream.states.new_empty(rows, count)
        cut = tiling(rows, count, width)
        self.kernels.gate[_grid(rows, cut, count)](
            stream.scaled, stream.squares, stream.eps, gates, ups, out, rows, width, count,
            GROUPS=_power_of_two(width // GROUP), **self._cut(rows, cut, width, count),
        )  # fmt: skip
        return out

    def _logits(self, stream: Stream, texts: int, rows: int, last: bool) -> Tensor:
        if last:
            scaled, squares = (part.view(texts, rows, -1)[:, -1] for part in (stream.scaled, stream.squares))
            stream, rows = stream._replace(scaled=scaled, squares=squares), 1
        return self._project(stream, self.head).view(texts, rows, -1)

    def _project(self, stream: Stream, *matrices: nn.Linear) -> Tensor:
        """Up to three products of the normed stream, next to each other."""
        weights = [matrix.weight for matrix in matrices]
        biases = [matrix.bias for matrix in matrices if matrix.bias is not None] or weights
        counts = [weight.shape[0] for weight in weights]
        rows, width = stream.scaled.shape
        cut = tiling(rows, sum(counts), width)
        out = stream.scaled.new_empty(rows, sum(counts))
        absent = 3 - len(matrices)
        tiles = sum(-(-count // cut.columns) for count in counts)
        self.kernels.project[(tiles, -(-rows // _tall(rows)))](
            stream.scaled, stream.scaled.stride(0), stream.squares, stream.squares.stride(0), stream.eps,
            *weights, *weights[:1] * absent, *biases, *biases[:1] * absent, out, rows, width,
            *counts, *[0] * absent,
            BIAS=biases is not weights, GROUPS=_power_of_two(width // GROUP), **self._cut(rows, cut, width, *counts),
        )  # fmt: skip
        return out

    def _add(self, x: Tensor, matrix: nn.Linear, stream: Stream, norm: Any) -> Stream:
        weight, after = matrix.weight, self._stream(x.shape[0], norm)
        rows, (count, width) = x.shape[0], weight.shape
        cut = tiling(rows, count, width)
        self.kernels.add[_grid(rows, cut, count)](
            x, weight, weight if matrix.bias is None else matrix.bias, stream.states, *self._gained(norm), *after[:3],
            rows, width, count, BIAS=matrix.bias is not None, SCALED=norm is not None,
            **self._cut(rows, cut, width, count),
        )  # fmt: skip
        return after

    def _stream(self, rows: int, norm: Any) -> Stream:
        """Memory for the residual stream of some rows, and what a norm that follows needs of it."""
        states = torch.empty(rows, self.size, dtype=self.network.dtype, device=self.network.device)
        if norm is None:
            return Stream(states, states, states, 0.0)
        squares = states.new_empty(rows, self.size // GROUP, dtype=torch.float32)
        return Stream(states, torch.empty_like(states), squares, norm.variance_epsilon)

    def _gained(self, norm: Any) -> tuple[Tensor]:
        return (self.table if norm is None else norm.weight,)

    def _cut(self, rows: int, cut: Tiling, width: int, *counts: int) -> dict[str, Any]:
        even = width % cut.inner == 0 and all(count % cut.columns == 0 for count in counts)
        tiles = {"M": _tall(rows), "N": cut.columns, "K": cut.inner, "EVEN": even}
        return {**tiles, "EARLY": self.early, "AHEAD": AHEAD, **self._launch(cut.warps, cut.stages)}

    def _launch(self, warps: int = 4, stages: int = 1) -> dict[str, Any]:
        options = {"num_warps": warps, "num_stages": stages}
        return {**options, "launch_pdl": True} if self.early else options


def _seen(inputs: Inputs, span: Span) -> Tensor:
    """bool[B, R, T]: what rows see of layers with this span."""
    if span == Span():
        return inputs.mask.contiguous()
    keys = inputs.key_positions
    if keys is None:
        keys = torch.arange(inputs.mask.shape[2], device=inputs.mask.device)[None]
    return span.narrow(inputs.mask, inputs.positions, keys).contiguous()


def _tall(rows: int) -> int:
    """Rows that one program computes."""
    return min(64, max(16, _power_of_two(rows)))


def _grid(rows: int, cut: Tiling, count: int) -> tuple[int, int]:
    return -(-count // cut.columns), -(-rows // _tall(rows))


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _starts_early(device: torch.device) -> bool:
    """Whether a kernel can be started before the last one is done: NVIDIA's, since Hopper."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)
