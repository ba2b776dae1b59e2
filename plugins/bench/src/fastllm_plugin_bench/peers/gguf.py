"""Weights of a Llama-shaped model as a GGUF file, so that llama.cpp runs the very same numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from ..arm import NotApplicable

if TYPE_CHECKING:
    from torch import Tensor

    from fastllm_core import LoadedModel

NAMES: Final = {
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
"""A layer's modules as GGUF calls them, but for the queries and keys, which are also reordered."""


def write(loaded: LoadedModel, path: Path) -> None:
    """Write a model without a vocabulary: benchmarks speak in token ids.

    Raises NotApplicable if it is no plain Llama, or its number format is none of GGUF's.
    """
    _check(loaded)
    library: Any = import_module("gguf")
    writer = library.GGUFWriter(str(path), "llama")
    _describe(writer, loaded)
    store = _store(library, writer, loaded.dtype)
    for name, tensor in _tensors(loaded):
        store(name, tensor.detach().cpu())
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, step)()


def _check(loaded: LoadedModel) -> None:
    config = loaded.config
    if config.model_type != "llama":
        raise NotApplicable(f"'{loaded.name}' is a {config.model_type}; only Llama-shaped models are converted")
    if config.attention_bias or config.mlp_bias:
        raise NotApplicable(f"'{loaded.name}' has biases, which the conversion does not know")
    scaling = dict(config.rope_parameters or {})
    if scaling.get("rope_type", "default") != "default":
        raise NotApplicable(f"'{loaded.name}' scales its rotary positions, which the conversion does not know")
    if loaded.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise NotApplicable(f"'{loaded.name}' is in {loaded.dtype}, which GGUF does not have")


def _describe(writer: Any, loaded: LoadedModel) -> None:
    config = loaded.config
    head = _head_dim(config)
    writer.add_context_length(loaded.context_length or 2048)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(float((config.rope_parameters or {}).get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")


def _head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _store(library: Any, writer: Any, dtype: torch.dtype) -> Callable[[str, Tensor], None]:
    """How a tensor is written: matrices in the model's own format, vectors in float32 as llama.cpp wants them."""

    def store(name: str, tensor: Tensor) -> None:
        if tensor.dim() == 1 or dtype == torch.float32:
            writer.add_tensor(name, tensor.float().numpy())
        elif dtype == torch.float16:
            writer.add_tensor(name, tensor.numpy())
        else:  # numpy has no bfloat16
            raw = tensor.contiguous().view(torch.uint8).numpy()
            writer.add_tensor(name, raw, raw_dtype=library.GGMLQuantizationType.BF16)

    return store


def _tensors(loaded: LoadedModel) -> Iterator[tuple[str, Tensor]]:
    model: Any = loaded.model
    config, weights = loaded.config, model.state_dict()
    yield "token_embd.weight", weights["model.embed_tokens.weight"]
    yield "output_norm.weight", weights["model.norm.weight"]
    if not config.tie_word_embeddings:
        yield "output.weight", weights["lm_head.weight"]
    for layer in range(config.num_hidden_layers):
        here, there = f"model.layers.{layer}.", f"blk.{layer}."
        yield f"{there}attn_q.weight", _paired(weights[f"{here}self_attn.q_proj.weight"], config.num_attention_heads)
        yield f"{there}attn_k.weight", _paired(weights[f"{here}self_attn.k_proj.weight"], config.num_key_value_heads)
        for module, name in NAMES.items():
            yield f"{there}{name}.weight", weights[f"{here}{module}.weight"]


def _paired(matrix: Tensor, heads: int) -> Tensor:
    """Rows reordered from transformers' rotary layout (element i turns with i + d/2) to llama.cpp's (2i with 2i + 1).

    matrix: [heads * d, H].
    """
    rows, width = matrix.shape
    halves = matrix.reshape(heads, 2, rows // heads // 2, width)
    return halves.transpose(1, 2).reshape(rows, width)
