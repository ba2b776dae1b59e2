"""Scaled dot-product attention for few rows over a cache, without copying grouped keys and values.

transformers repeats the key and value heads for every group of query heads, unless there is a single row. A round has a
few: the rows of a group can stand below each other instead, as more rows of one head.

A compiler fuses plain matrix products and a softmax into something better than the processor's sdpa kernel, which takes
a third of a step over few rows: `fuse` is for it.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

FEW_ROWS: Final = "fastllm_few_rows"
FUSIBLE: Final = "fastllm_fusible"
"""Their names among transformers' attention implementations."""
MOST_ROWS: Final = 64
"""Above this the copies are small beside the arithmetic."""
KERNELS: Final = ("flash_attention", "flex_attention", "paged|")
"""How the names of transformers' own kernels begin: they compute what sdpa computes, but bring their own masks."""
_PLAIN: Final = {
    "position_ids",
    "is_causal",
    "use_cache",
    "output_hidden_states",
    "output_attentions",
    "output_router_logits",
    "sliding_window",
}
"""Arguments that change nothing where an explicit mask is given."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Attention by transformers' protocol.

    query: float[B, heads, R, width].  key, value: float[B, key heads, T, width].  attention_mask: float[B, 1, R, T].
    Returns float[B, R, heads, width]. Whatever is not plain attention with a mask goes the way of `sdpa`.
    """
    groups = query.shape[1] // key.shape[1]
    if groups == 1 or query.shape[2] == 1 or query.shape[2] > MOST_ROWS or _special(attention_mask, more):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more
        )
    assert attention_mask is not None
    batch, heads, rows, width = query.shape
    stacked = query.reshape(batch, key.shape[1], groups * rows, width)
    mask = attention_mask.repeat(1, 1, groups, 1)
    out = scaled_dot_product_attention(stacked, key, value, attn_mask=mask, scale=scaling)
    return out.reshape(batch, heads, rows, -1).transpose(1, 2).contiguous(), None


def fuse(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """The same attention, by the same protocol, of operations that a compiler fuses; for any number of rows.

    Scores are rounded to the model's format, the softmax is taken in float32, as in transformers' `eager`.
    """
    if _special(attention_mask, more):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more
        )
    assert attention_mask is not None
    batch, heads, rows, width = query.shape
    groups = heads // key.shape[1]
    scale = width**-0.5 if scaling is None else scaling
    stacked = (query * scale).reshape(batch, key.shape[1], groups * rows, width)
    scores = (stacked @ key.transpose(2, 3)).view(batch, key.shape[1], groups, rows, -1)
    shares = torch.softmax(scores + attention_mask[:, :, None], dim=-1, dtype=torch.float32).to(query.dtype)
    out = shares.view(batch, key.shape[1], groups * rows, -1) @ value
    return out.reshape(batch, heads, rows, -1).transpose(1, 2).contiguous(), None


def _special(attention_mask: Tensor | None, more: dict[str, Any]) -> bool:
    """Whether this is more than attention with a mask.

    A mask with heads of its own (Doge weighs keys in it) has no row for each row of a group.
    """
    asked = any(value is not None for name, value in more.items() if name not in _PLAIN)
    return asked or attention_mask is None or attention_mask.shape[1] > 1


def take_explicit_masks(model: nn.Module) -> str | None:
    """Give a model an attention that honours an explicit mask; a tree's rows are no suffix of a causal order.

    `eager` stays; `sdpa` becomes `attend`, and so does whatever else the model was loaded with. Returns the name of an
    attention that was replaced because it may ignore masks, None if there was none.
    """
    config: Any = model.config
    name = str(config._attn_implementation)
    if name == "eager":
        return None
    config._attn_implementation = "sdpa" if getattr(model, "_supports_sdpa", False) else "eager"
    # Models that look their attention up by name take ours; others (Falcon) have the choice written into their forward.
    if config._attn_implementation == "sdpa" and getattr(model, "_supports_attention_backend", False):
        config._attn_implementation = FEW_ROWS
    return None if name in ("sdpa", FEW_ROWS) else name


def take_fusible_attention(model: nn.Module) -> None:
    """Give a model that has taken `attend` the attention for compilers; one with another attention keeps it."""
    config: Any = model.config
    if config._attn_implementation == FEW_ROWS:
        config._attn_implementation = FUSIBLE


AttentionInterface.register(FEW_ROWS, attend)
AttentionInterface.register(FUSIBLE, fuse)
AttentionMaskInterface.register(FEW_ROWS, sdpa_mask)
AttentionMaskInterface.register(FUSIBLE, sdpa_mask)
