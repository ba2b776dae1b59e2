"""The adapter: one decoder layer, with or without its MLP, between an early exit and the target's own output matrix.

    u = RMSNorm(f)    h = f + Attention(u)    [h = h + MLP(RMSNorm(h))]    g = RMSNorm(h)    logits = head(g)

f is the hidden state behind the target's first layers. The module is a stock Llama of one layer, so that the core runs,
caches, compiles and captures it as it does every other network; the paper's adapter is that layer with its MLP skipped.

Source: Kangaroo, arXiv:2404.18911, section 3.1. Shapes: H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from fastllm_core import Head, LoadedModel, ModelError, Network, TargetIdentity, UnsupportedModel, load_model

METHOD: Final = "kangaroo"
Mode = Literal["attention", "layer"]
"""The paper's adapter, or a whole decoder layer."""
LAYER: Final = "layers.0."
SCALE: Final = 0.02
"""Standard deviation of new weights."""


@dataclass(frozen=True, slots=True)
class AdapterShape:
    """What a head's settings say: where the adapter reads, and how large it is."""

    exit_layer: int
    """The adapter reads what this many first layers of the target give."""
    mode: Mode
    hidden_size: int
    heads: int
    key_value_heads: int
    head_dim: int
    intermediate_size: int
    """Neurons of the MLP; 0 if there is none."""
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6

    @classmethod
    def of(cls, network: Network, exit_layer: int, mode: Mode) -> AdapterShape:
        """One that suits a target: as many heads as its layers have, each with keys of its own (section 4.1)."""
        config = network.config
        heads = next((n for n in (getattr(config, "num_attention_heads", None), 1) if isinstance(n, int)), 1)
        size = network.hidden_size
        while size % (2 * heads):  # rotary positions turn pairs
            heads -= 1
        return cls(exit_layer, mode, size, heads, heads, size // heads, 4 * size if mode == "layer" else 0)

    @classmethod
    def read(cls, settings: Mapping[str, Any], source: str) -> AdapterShape:
        """From a head's settings. Raises ModelError if one is missing or no number."""
        try:
            return cls(**{each.name: settings[each.name] for each in fields(cls)})
        except KeyError as error:
            raise ModelError(f"{source}: its settings lack {error.args[0]}") from error

    def settings(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def check(self, network: Network, source: str) -> None:
        """Raise UnsupportedModel or ModelError unless the target can be left there, and its head read from there."""
        if not 1 <= self.exit_layer < network.layers:
            raise ModelError(
                f"{source}: exit layer {self.exit_layer} is no early exit of '{network.loaded.name}', which has "
                f"{network.layers} layers: leave after 1..{network.layers - 1} of them"
            )
        width = output_matrix(network).in_features
        if not self.hidden_size == network.hidden_size == width:
            raise UnsupportedModel(
                f"{source}: the adapter has {self.hidden_size} hidden dimensions, model '{network.loaded.name}' has "
                f"{network.hidden_size}, and its output matrix reads {width}"
            )

    def tensors(self) -> list[str]:
        """Names of the weights, as the authors' checkpoints have them."""
        attention = [f"{LAYER}self_attn.{part}_proj.weight" for part in "qkvo"]
        mlp = ["post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
        more = [f"{LAYER}{part}.weight" for part in mlp] if self.mode == "layer" else []
        return ["norm.weight", f"{LAYER}input_layernorm.weight", *attention, *more]

    def growth(self) -> dict[str, Any]:
        """Which axes are the target's hidden ones: see docs/authors/heads.md."""
        layer = [f"{LAYER}self_attn.{part}_proj.weight" for part in "qkvo"]
        units = [
            {
                "readers": layer[:3],
                "writer": layer[3],
                "rows": [self.heads // self.key_value_heads * self.head_dim, self.head_dim, self.head_dim],
                "columns": self.heads // self.key_value_heads * self.head_dim,
                "counts": ["heads", "key_value_heads"],
            }
        ]
        norms = ["norm.weight", f"{LAYER}input_layernorm.weight"]
        if self.mode == "layer":
            parts = [f"{LAYER}mlp.{part}_proj.weight" for part in ("gate", "up", "down")]
            mlp = {"readers": parts[:2], "writer": parts[2], "rows": [1, 1], "columns": 1}
            units.append({**mlp, "counts": ["intermediate_size"]})
            norms.append(f"{LAYER}post_attention_layernorm.weight")
        return {
            "norms": norms,
            "units": units,
            "settings": {"hidden": "hidden_size", "layer": "exit_layer", "epsilon": "norm_eps"},
        }


def build(shape: AdapterShape, network: Network, weights: Mapping[str, Tensor], source: str) -> LoadedModel:
    """The adapter as a model that the core can run, with the target's own output matrix.

    Nothing embeds tokens: hidden states enter. Raises ModelError if the weights are not those of the shape.
    """
    target = network.loaded
    config = LlamaConfig(
        vocab_size=network.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=max(shape.intermediate_size, 1),
        num_hidden_layers=1,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=target.context_length or 1 << 20,
        rms_norm_eps=shape.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=False,
    )
    config.name_or_path = f"adapter of {target.name}"
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(config)
    given = _checked(shape, model, weights, source)
    if shape.mode == "attention":  # skipped, and never looked at but to find its place
        given |= {name: torch.zeros(part.shape) for name, part in model.model.named_parameters() if _in_mlp(name)}
    given = {name: tensor.to(target.device, target.dtype) for name, tensor in given.items()}
    # Not a state dict of the whole: there is no embedding, and the output matrix is the target's.
    model.model.embed_tokens = nn.Embedding(1, shape.hidden_size, device=target.device, dtype=target.dtype)
    model.model.load_state_dict(given, strict=False, assign=True)
    model.model.rotary_emb = LlamaRotaryEmbedding(config).to(target.device)
    model.lm_head = output_matrix(network)
    model.requires_grad_(False)
    model.eval()
    return LoadedModel(config.name_or_path, model, None, target.device, target.dtype)


def output_matrix(network: Network) -> Any:
    """The target's own head, a linear module. Raises UnsupportedModel if it has none."""
    found: Any = network.model.get_output_embeddings()  # type: ignore[operator]
    if found is None or not hasattr(found, "in_features"):
        kind = type(network.model).__name__
        raise UnsupportedModel(f"model '{network.loaded.name}' ({kind}) has no output matrix that an adapter can use")
    return found


def skipped(shape: AdapterShape) -> frozenset[int]:
    """Layers of the adapter that are run without their MLP: its only one, or none."""
    return frozenset({0}) if shape.mode == "attention" else frozenset()


def new_weights(shape: AdapterShape, seed: int = 0, scale: float = SCALE) -> dict[str, Tensor]:
    """float32 weights to start from: small random matrices, norms of ones; the layer adds little at first."""
    noise = torch.Generator().manual_seed(seed)
    size, queries = shape.hidden_size, shape.heads * shape.head_dim
    keys, inner = shape.key_value_heads * shape.head_dim, shape.intermediate_size
    sizes: dict[str, tuple[int, ...]] = {
        "q_proj": (queries, size),
        "k_proj": (keys, size),
        "v_proj": (keys, size),
        "o_proj": (size, queries),
        "gate_proj": (inner, size),
        "up_proj": (inner, size),
        "down_proj": (size, inner),
    }
    made = {}
    for name in shape.tensors():
        found = sizes.get(name.split(".")[-2])
        made[name] = torch.ones(size) if found is None else scale * torch.randn(found, generator=noise)
    return made


def random_head(model: PreTrainedModel, exit_layer: int, mode: Mode, seed: int = 0) -> Head:
    """An untrained head for a loaded model, for tests: it drafts, and is right by chance."""
    network = Network(load_model(model))
    shape = AdapterShape.of(network, exit_layer, mode)
    return Head(
        METHOD, TargetIdentity.of(network), shape.settings(), new_weights(shape, seed, 0.1), growth=shape.growth()
    )


def _checked(shape: AdapterShape, model: Any, weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The weights, if they are all there and fit."""
    wanted = {name: part.shape for name, part in model.model.named_parameters() if name in shape.tensors()}
    missing = sorted(wanted.keys() - weights.keys())
    unknown = sorted(weights.keys() - wanted.keys())
    wrong = [name for name, size in wanted.items() if name in weights and weights[name].shape != size]
    if missing or unknown or wrong:
        told = [f"lacks {missing[0]}"] if missing else []
        told += [f"has {unknown[0]}, which a head of mode '{shape.mode}' has not"] if unknown else []
        told += [f"{name} is {tuple(weights[name].shape)}, not {tuple(wanted[name])}" for name in wrong[:1]]
        raise ModelError(f"{source}: its weights do not fit its settings: {'; '.join(told)}")
    return dict(weights)


def _in_mlp(name: str) -> bool:
    return name.startswith((f"{LAYER}mlp.", f"{LAYER}post_attention_layernorm."))
