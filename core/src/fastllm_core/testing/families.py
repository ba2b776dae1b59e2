"""Every decoder family of transformers, tiny and with random weights: `family("gemma3_text").model()`.

Sizes that suit most families stand in `SIZES`, by all the names that families give them; `SETTINGS` says what else a
family needs to be built so small, or to have what makes it special: windows and chunks shorter than a test's text,
layers of several kinds in an uneven order.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

WINDOW: Final = 8
"""Positions of a sliding window or a chunk."""
SIZES: Final[Mapping[str, Any]] = {
    "vocab_size": 64,
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 4),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("head_dim", "attention_head_dim", "v_head_dim", "qk_nope_head_dim"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "rotary_dim"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 256),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace", "n_shared_experts", "encoder_layers"), 1),
    "encoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "sliding_window": WINDOW,
    "is_decoder": True,
    "use_sliding_window": True,
    "tie_word_embeddings": False,  # tied, a large output matrix would make every token follow itself
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
UNEVEN: Final = ("sliding_attention", "full_attention", "sliding_attention", "sliding_attention")
"""Types of the layers where a family mixes them: whatever the cut, no two parts are alike."""
VISION: Final[Mapping[str, Any]] = {
    **dict.fromkeys(("hidden_size", "intermediate_size", "embed_dim", "image_size", "out_hidden_size"), 16),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "depth"), 1),
    **dict.fromkeys(("num_attention_heads", "num_heads"), 2),
    "patch_size": 8,
}
"""Sizes of the parts that see or hear; a text passes them by."""
TEXT_PARTS: Final = ("text_config", "language_config", "llm_config", "decoder", "decoder_config")

OMITTED: Final = ...
"""In place of a size that a family does not take."""
ROPE: Final = {"rope_type": "default", "rope_theta": 1e4}
ROPE_BY_TYPE: Final = {"full_attention": ROPE, "sliding_attention": ROPE}
QUERIES_BY_POSITION: Final = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": WINDOW,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.5,
}
LONGROPE: Final = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "original_max_position_embeddings": 64,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
}

SETTINGS: Final[Mapping[str, Mapping[str, Any]]] = {
    "bamba": {"mamba_n_heads": 4, "mamba_d_head": 16},
    "cohere_compass_text": {"rope_parameters": ROPE_BY_TYPE},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "doge": {"sliding_window": None},
    "dory": {"n_input_layers": 1, "n_recurrent_layers": 2, "n_output_layers": 1},
    "gemma3n_text": {
        "num_hidden_layers": 6,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 3,
        "vocab_size_per_layer_input": 64,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 8,
    },
    "gemma4_text": {
        "num_hidden_layers": 6,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 3,
        "head_dim": 8,
        "global_head_dim": 16,
        "vocab_size_per_layer_input": 64,
        "hidden_size_per_layer_input": 8,
    },
    "gpt_neo": {"attention_types": [[["global", "local", "local", "global"], 1]], "window_size": WINDOW},
    "granitemoeshared": {"shared_intermediate_size": 16},
    "granitemoehybrid": {"mamba_n_heads": 4, "mamba_d_head": 16},
    "inkling2_loop_text": {"unpadded_vocab_size": 60},
    "inkling2_text": {"unpadded_vocab_size": 60},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "llama4_text": {
        "attention_chunk_size": WINDOW,
        "no_rope_layers": [1, 0, 1, 1],
        "floor_scale": 4,
        "attn_scale": 0.5,
    },
    "longcat_flash": {"head_dim": 4},
    "minimax_m3_vl_text": {"layer_types": ["full_attention", "minimax_m3_sparse"] * 2},
    "ministral3": {"rope_parameters": QUERIES_BY_POSITION},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "prophetnet": {"num_hidden_layers": OMITTED, "num_decoder_layers": 2, "num_encoder_layers": 1},
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [16, 16]},
    "xlnet": {"max_position_embeddings": OMITTED},
    "xmod": {"default_language": "en_XX"},
    "zamba2": {"layer_types": ["mamba", "hybrid", "mamba", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
}
AS_THEY_ARE: Final[Mapping[str, Mapping[str, Any]]] = {
    "dots3_note": {},
    "gemma4_assistant": {
        "text_config": {
            "model_type": "gemma4_text",
            **dict.fromkeys(("hidden_size_per_layer_input", "vocab_size_per_layer_input"), 0),
        }
    },
}
"""Families whose parts must fit each other closely, and keep their sizes: they are refused before they are built."""


@dataclass(frozen=True)
class Family:
    """A family, or a variant of one, small enough for a test."""

    name: str
    model_type: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    """On top of `SIZES` and `SETTINGS`."""

    def config(self) -> PreTrainedConfig:
        """The configuration of the tiny model."""
        kind = CONFIG_MAPPING[self.model_type]
        if self.model_type in AS_THEY_ARE:
            return kind(**AS_THEY_ARE[self.model_type])
        return kind(**{**_settings(kind, self.model_type, SIZES), **self.settings})

    def model(self, seed: int = 5) -> PreTrainedModel:
        """A causal LM in float32 with random weights that depend on the seed alone.

        They are large enough for attention to matter, and the output matrix for the arg max to be clear.
        """
        with warnings.catch_warnings(), torch.random.fork_rng():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            model: PreTrainedModel = AutoModelForCausalLM.from_config(self.config(), dtype=torch.float32)
        noise = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0.0, 0.15, generator=noise)
                else:  # norms, biases, attention sinks
                    parameter.add_(torch.randn(parameter.shape, generator=noise), alpha=0.1)
            model.get_output_embeddings().weight.mul_(4.0)
        model.generation_config.eos_token_id = None
        return cast("PreTrainedModel", model.eval())


def family(name: str) -> Family:
    """A family by its `model_type`, or a named variant of one."""
    return VARIANTS.get(name) or Family(name, name)


def registered() -> list[str]:
    """The `model_type` of every causal LM that transformers has."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


VARIANTS: Final[Mapping[str, Family]] = {
    variant.name: variant
    for variant in (
        Family("mistral, full attention", "mistral", {"sliding_window": None}),
        Family("granitemoehybrid, attention only", "granitemoehybrid", {"layer_types": ["full_attention"] * 4}),
        Family("phi3, LongRoPE", "phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 64}),
    )
}


def _settings(kind: Any, model_type: str, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the sizes that a configuration knows, its parts' included, and what the family needs besides."""
    default = kind()
    known = {name for name in sizes if name.endswith("_token_id") or _takes(kind, default, name)}
    settings = {name: sizes[name] for name in known}
    if "kv_lora_rank" in known:  # latent attention: every head has keys of its own, of two parts
        settings["num_key_value_heads"] = settings["num_attention_heads"]
        settings.pop("head_dim", None)
    kinds = {*(getattr(default, "layer_types", None) or ())}
    if "sliding_window" in settings and kinds and kinds <= {*UNEVEN}:
        settings["layer_types"] = [*UNEVEN]
    for name in getattr(kind, "sub_configs", {}):
        part = getattr(default, name, None)
        if part is not None:
            inner = SIZES if name in TEXT_PARTS else VISION
            settings[name] = {**_settings(type(part), part.model_type, inner), "model_type": part.model_type}
    settings |= SETTINGS.get(model_type, {})
    return {name: value for name, value in settings.items() if value is not OMITTED}


def _takes(kind: Any, default: Any, name: str) -> bool:
    try:
        known = hasattr(default, name)
    except Exception:  # a value that differs from layer to layer
        known = True
    computed = getattr(kind, name, None)
    return (known or name in getattr(kind, "attribute_map", {})) and not (
        isinstance(computed, property) and computed.fset is None
    )
