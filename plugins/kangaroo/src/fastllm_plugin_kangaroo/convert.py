"""Adapters as Kangaroo's authors published them: `config.json` and `pytorch_model.bin` of a Llama of one layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import Tensor

from fastllm_core import Head, ModelError, Network, Options, TargetIdentity

from .adapter import METHOD, AdapterShape, Mode, build

PREFIXES = ("model.", "module.")


class Published(Options):
    """What the published files do not say."""

    exit_layer: int = Field(
        ge=1, description="The adapter reads what this many first layers give (2 for Vicuna 7B, 3 for 13B)."
    )


class KangarooConverter:
    """Implements `fastllm_core.Converter`."""

    Options = Published

    def __init__(self, options: Published, network: Network) -> None:
        """network: the target."""
        self.options, self.network = options, network

    def convert(self, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Head:
        """A head from the authors' files: names stay, rotary buffers go. Raises ModelError if something is missing.

        Sizes come from the weights, and from config.json what weights do not show: heads, epsilon, rotary base.
        """
        found = {_plain(name): tensor for name, tensor in weights.items()}
        found = {name: tensor.float() for name, tensor in found.items() if "rotary_emb" not in name}
        for name in ("embed_tokens.weight", "lm_head.weight"):  # the target's own, which some copies hold as well
            found.pop(name, None)
        mode: Mode = "layer" if any(".mlp." in name for name in found) else "attention"
        shape = self._shape(config, found, mode)
        shape.check(self.network, "the published adapter")
        wanted = {name: found[name] for name in shape.tensors() if name in found}
        build(shape, self.network, found, "the published adapter")
        identity = TargetIdentity.of(self.network)
        return Head(METHOD, identity, shape.settings(), wanted, growth=shape.growth())

    def _shape(self, config: Mapping[str, Any], weights: Mapping[str, Tensor], mode: Mode) -> AdapterShape:
        suits = AdapterShape.of(self.network, self.options.exit_layer, mode)
        try:
            queries, size = weights["layers.0.self_attn.q_proj.weight"].shape
            keys = weights["layers.0.self_attn.k_proj.weight"].shape[0]
            inner = weights["layers.0.mlp.up_proj.weight"].shape[0] if mode == "layer" else 0
        except KeyError as error:
            raise ModelError(f"the published adapter lacks {error.args[0]}: is it Kangaroo's?") from error
        heads = int(config.get("num_attention_heads", suits.heads))
        width = queries // heads
        rope = config.get("rope_parameters") or {}
        return AdapterShape(
            exit_layer=self.options.exit_layer,
            mode=mode,
            hidden_size=size,
            heads=heads,
            key_value_heads=keys // width,
            head_dim=width,
            intermediate_size=inner,
            rope_theta=float(config.get("rope_theta") or rope.get("rope_theta") or suits.rope_theta),
            norm_eps=float(config.get("rms_norm_eps", suits.norm_eps)),
        )


def _plain(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name
