"""The heads behind the core's forward port, so that they are compiled and captured as every other network is.

To the port they are a model of one layer without attention, which one hidden state enters for each text. Its logits are
those of all heads side by side.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from fastllm_core import LoadedModel, Network

from .heads import HeadsShape, MedusaHeads


class HeadsConfig(PreTrainedConfig):
    """What the port and its programs ask of a configuration."""

    model_type = "medusa_heads"

    def __init__(self, heads: dict[str, Any] | None = None, **more: Any) -> None:
        """heads: the settings of a `HeadsShape`."""
        shape = HeadsShape(**(heads or {"heads": 1, "blocks": 1, "hidden_size": 1, "vocab_size": 1}))
        self.heads = shape.settings()
        self.hidden_size = shape.hidden_size
        self.num_hidden_layers = 1
        self.vocab_size = shape.heads * shape.vocab_size
        super().__init__(**more)


class HeadsModel(PreTrainedModel):
    """All heads as a causal language model."""

    config_class = HeadsConfig
    base_model_prefix = "model"

    def __init__(self, config: HeadsConfig, heads: MedusaHeads) -> None:
        """config: of the same shape as the heads."""
        super().__init__(config)
        self.embed_tokens = nn.Embedding(1, 1)  # nothing embeds tokens: hidden states enter
        self.layers = nn.ModuleList([heads])

    def get_input_embeddings(self) -> nn.Module:
        """One row, which says that no tokens may enter."""
        return self.embed_tokens

    def forward(
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Any = None,
        logits_to_keep: int | Tensor = 0,
        **ignored: Any,
    ) -> CausalLMOutput:
        """inputs_embeds: float[B, R, H]; masks, positions and a cache are ignored. Returns logits, float[B, R, K * V].

        logits_to_keep: int64[R'], the rows that are wanted, or the last so many, of which 0 is all.
        """
        if inputs_embeds is None:  # the port's look at what a cache would hold: nothing
            assert input_ids is not None
            inputs_embeds = input_ids[..., None].to(self.dtype).expand(-1, -1, self.config.hidden_size)
        if isinstance(logits_to_keep, Tensor):
            inputs_embeds = inputs_embeds[:, logits_to_keep]
        elif logits_to_keep:
            inputs_embeds = inputs_embeds[:, -logits_to_keep:]
        heads: Any = self.layers[0]
        return CausalLMOutput(logits=torch.cat(heads(inputs_embeds).unbind(0), dim=-1))


def as_model(heads: MedusaHeads, network: Network) -> LoadedModel:
    """The heads of a target, in its number format."""
    target = network.loaded
    config = HeadsConfig(heads=heads.shape.settings())
    config.name_or_path = f"heads of {target.name}"
    model: Any = HeadsModel(config, heads)
    model = model.to(target.device, target.dtype)
    model.requires_grad_(False)
    model.eval()
    return LoadedModel(config.name_or_path, model, None, target.device, target.dtype)
