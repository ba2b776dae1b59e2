"""How far back each layer looks: full, sliding and chunked attention, as masks over the full slot cache.

By position and not by slot, so that a tree's nodes and the rows after a rollback see what they should.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from .errors import UnsupportedModel

if TYPE_CHECKING:
    from torch import Tensor

RECURRENT: Final = "keeps a recurrent state, which a rejected draft could not be rolled back in"
INDEXED: Final = "chooses the keys that it attends to by an index of its own, kept outside the key/value cache"
REFUSED: Final[Mapping[str, str]] = {
    **dict.fromkeys(("linear_attention", "mamba", "mamba2", "conv", "short_conv", "recurrent", "rwkv"), RECURRENT),
    **dict.fromkeys(("hybrid", "hybrid_sliding", "hybrid_mamba"), RECURRENT),
    **dict.fromkeys(("indexed_attention", "deepseek_sparse_attention", "qwen_sparse_attention"), INDEXED),
    **dict.fromkeys(("compressed_sparse_attention", "heavily_compressed_attention", "minimax_m3_sparse"), INDEXED),
}
"""Layer types that have no attention over a plain key/value cache, and what they do instead."""


@dataclass(frozen=True, slots=True)
class Span:
    """Which of the rows that a mask lets through a layer looks at."""

    window: int | None = None
    """Those less than this many positions back; None for all."""
    chunk: int | None = None
    """Those in the same chunk of this many positions; None for all."""

    def narrow(self, mask: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        """mask: bool[B, R, T].  queries: int64[B, R], keys: int64[B or 1, T], positions."""
        if self.window is not None:
            mask = mask & (queries[:, :, None] - keys[:, None] < self.window)
        if self.chunk is not None:
            mask = mask & (queries[:, :, None] // self.chunk == keys[:, None] // self.chunk)
        return mask


Spans = tuple[tuple[str, Span], ...]
"""Attention type and span of every layer."""

SPAN_KEYS: Final = ("sliding_window", "attention_chunk_size")
"""Where a configuration says how many positions a window or a chunk has."""
_KNOWN: Final[Mapping[str, Callable[[Any], Span]]] = {
    "full_attention": lambda config: Span(),
    "sliding_attention": lambda config: Span(window=getattr(config, SPAN_KEYS[0], None)),
    "chunked_attention": lambda config: Span(chunk=getattr(config, SPAN_KEYS[1], None)),
}


def spans_of(config: Any, layers: int) -> Spans:
    """Read from a configuration. Raises UnsupportedModel for a type of attention that is not known."""
    uniform = "sliding_attention" if getattr(config, SPAN_KEYS[0], None) else "full_attention"
    kinds = layer_types(config) or (uniform,) * layers
    for kind in kinds:
        if kind not in _KNOWN:
            reason = REFUSED.get(kind, f"has attention of type '{kind}', which is not supported")
            raise UnsupportedModel(f"{config.model_type} {reason}")
    return tuple((kind, _KNOWN[kind](config)) for kind in kinds)


def layer_types(config: Any) -> tuple[str, ...]:
    """The attention type of every layer, as far as a configuration lists them."""
    return tuple(getattr(config, "layer_types", None) or ())
