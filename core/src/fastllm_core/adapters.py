"""What the port must know of a model family that its structure does not tell.

A decoder whose parts have the usual names and that does nothing to its input before the first layer needs no adapter.
The core's own are one table, `quirks.py`; a plugin may bring more (`fastllm_adapters`), which win over these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .spans import Spans

Names = tuple[str, ...]
"""Attribute names, dotted for a part of a part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """How the port finds its way in a family. The defaults hold for a family without an entry.

    Where a field lists names, parts that a model lacks are passed over.
    """

    model_types: Names = ()
    """The `config.model_type`s that this is for."""
    reason: str = ""
    """What is different about the family, in a sentence."""

    layers: Names = ("layers", "h", "blocks", "block")
    """The list of decoder layers in the backbone: the first of these that is there."""
    final_norm: Names = ("norm", "ln_f", "final_layernorm", "final_layer_norm", "norm_f")
    """What follows the last layer in the backbone: the first of these. () for a backbone that ends with its layers."""
    attention: Names = ("self_attn", "attn", "attention", "self_attention")
    """A layer's attention: all of these. Skipping a sub-layer makes each of its parts add nothing."""
    mlp: Names = ("mlp", "feed_forward", "block_sparse_moe", "shared_mlp", "ffn")
    """A layer's MLP: all of these."""

    # A part that starts above layer 0 takes hidden states that have been through what precedes the layers.
    silent: Names = ("wpe", "embed_positions")
    """Embeddings that a backbone adds to its input: they add nothing there."""
    entry: Names = ("project_in",)
    """Modules that a backbone sends its input through: they hand it on unchanged there."""
    attributes: Mapping[str, Any] = field(default_factory=lambda: {"embedding_multiplier": 1.0})
    """Attributes of the backbone, such as a factor on its input, with the value that undoes them there."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The same, of the configuration."""
    exit: Names = ("project_out",)
    """Modules between the final norm and the head: they hand on unchanged what a part without the last layer gives."""
    cut: Callable[[Any, int, int, int], None] | None = None
    """`cut(backbone, start, stop, total)`: what else makes a range of layers out of a copy of the backbone."""

    # What makes a family follow the port's positions and masks.
    spans: Callable[[Any], Spans] | None = None
    """`spans(config)`: attention type and span of every layer, where `layer_types` and `sliding_window` do not tell."""
    stacked_masks: bool = False
    """Masks of several types reach the backbone stacked in one tensor float[B, types, R, T], in the types' alphabetical
    order, and not as a mapping: for a backbone that hands one mask to all its layers (see `prepare`)."""
    prepare: Callable[[Any], None] | None = None
    """`prepare(backbone)`: changes to a copy of the whole backbone."""
    slopes: Callable[[Any], Sequence[float]] | None = None
    """`slopes(config)`: what each head adds to its scores for each position of the key (ALiBi), where the port adds it,
    because the backbone's own counts slots (see `prepare`)."""
    stores: Callable[[Any], int] | None = None
    """`stores(config)`: how many keys and values the backbone keeps, where it is not one for each decoder layer."""

    refuse: str | Callable[[Any], str] = ""
    """Why the family cannot be run at all, or `refuse(config)` says so or "": the end of "model 'x' (type) ..."."""
    refuse_split: str = ""
    """Why it cannot be run in parts, if it can be run whole."""
    refuse_skip: str = ""
    """Why its sub-layers cannot be skipped."""


def adapter_for(config: Any, adapters: Iterable[Adapter] = ()) -> Adapter:
    """The entry for a model: of `adapters`, else of the table, else the defaults.

    config: the model's, whose own type is looked for before that of its text part.
    """
    from .quirks import ADAPTERS

    kinds = (getattr(config, "model_type", ""), config.get_text_config(decoder=True).model_type)
    for source in (tuple(adapters), ADAPTERS):
        for kind in kinds:
            for adapter in source:
                if kind in adapter.model_types:
                    return adapter
    return Adapter()


def like_llama(config: Any) -> bool:
    """Whether a model with this configuration has layers like Llama's, and nothing else."""
    from .quirks import LIKE_LLAMA

    return config.model_type in LIKE_LLAMA


def refusal(adapter: Adapter, config: Any) -> str:
    """Why a model with this configuration cannot be run, or ""."""
    return adapter.refuse(config.get_text_config(decoder=True)) if callable(adapter.refuse) else adapter.refuse
