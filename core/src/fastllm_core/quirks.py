"""The table of adapters: every family that differs from the usual decoder, how, and why.

All that the core knows of families by name stands here. What an entry does not say is as usual (`Adapter`'s defaults).
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from .adapters import Adapter
from .spans import Span, Spans

BERT: Final = ("encoder.layer",)
ALIBI: Final = "adds ALiBi biases by cache slot, and a tree's nodes do not stand in the slots of their positions"
OWN_POSITIONS: Final = "counts positions itself, from the length of the cache, and a tree's nodes have others"
OFFSET_POSITIONS: Final = (
    "counts positions from its padding token's id on in a forward, and from 0 in generate, so that the two disagree"
)
FOREIGN_KEYS: Final = "drafts for one particular model and reads that model's keys and values"


def _encoder(config: Any) -> str:
    return "" if config.is_decoder else "is an encoder: its configuration does not say is_decoder"


def _doge_window(config: Any) -> str:
    if config.keep_window_size >= config.max_position_embeddings:
        return ""
    return "leaves out keys of long texts, of a prompt otherwise than of what it writes: the two disagree"


def _shares_keys(reason: str) -> dict[str, Any]:
    return {"reason": reason, "refuse_split": reason, "refuse_skip": reason}


def _nanochat_cut(base: Any, start: int, stop: int, total: int) -> None:
    """The one norm of a view runs where the layers do: before the model's first, after its last."""
    from torch import nn

    norm, base.norm = base.norm, nn.Identity()
    if start == 0:
        base.layers[0].register_forward_pre_hook(lambda layer, inputs: (norm(inputs[0]), *inputs[1:]))
    if stop == total:
        base.layers[-1].register_forward_hook(lambda layer, inputs, output: norm(output))


def _ctrl_cut(base: Any, start: int, stop: int, total: int) -> None:
    if start > 0:
        base.d_model_size = 1
        base.pos_encoding = base.pos_encoding.new_zeros(()).expand(base.pos_encoding.shape)


def _longcat_cut(base: Any, start: int, stop: int, total: int) -> None:
    base.config.num_layers = stop - start


def _gpt_neo_spans(config: Any) -> Spans:
    kinds = {"global": Span(), "local": Span(window=config.window_size)}
    return tuple((kind, kinds[kind]) for kind in config.attention_layers)


def _gpt_neo_masks(base: Any) -> None:
    """Let through what the port's mask lets through, and give each layer the mask of its type."""
    kinds = sorted(set(base.config.attention_layers))
    for layer, kind in zip(base.h, base.config.attention_layers, strict=True):
        attention = layer.attn.attention
        attention.bias = attention.bias.new_ones(()).expand(1, 1, 1 << 30, 1 << 30)
        layer.register_forward_pre_hook(partial(_pick_mask, kinds.index(kind)), with_kwargs=True)


def _pick_mask(index: int, layer: Any, arguments: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return arguments, {**named, "attention_mask": named["attention_mask"][:, index : index + 1]}


def _llama4_temperature(base: Any) -> None:
    """Sharpen the queries of layers without rotary positions by the position ids that the layer is given."""
    for layer in base.layers:
        attention = layer.self_attn
        if attention.attn_temperature_tuning and not attention.use_rope:
            attention.attn_temperature_tuning = False
            layer.register_forward_pre_hook(_note_positions, with_kwargs=True)
            attention.q_proj.register_forward_hook(partial(_sharpen, attention.floor_scale, attention.attn_scale))


def _note_positions(layer: Any, arguments: Any, named: dict[str, Any]) -> None:
    layer.self_attn.q_proj.positions = named["position_ids"]


def _sharpen(floor: int, scale: float, projection: Any, arguments: Any, queries: Any) -> Any:
    """queries: float[B, R, heads * width], with positions int64[B, R] noted (arXiv:2501.19399)."""
    positions = projection.positions.to(queries.device)
    sharpness = ((positions + 1) / floor).floor().log1p() * scale + 1
    return (queries * sharpness[..., None]).to(queries.dtype)


def _bloom_slopes(config: Any) -> list[float]:
    """A geometric sequence that ends at 2**-8; heads beyond a power of two stand between its members (ALiBi)."""
    power = 1 << (config.n_head.bit_length() - 1)
    first = 2 ** (-8 / power)
    between = 2 ** (-4 / power)
    rest = [between ** (2 * index + 1) for index in range(config.n_head - power)]
    return [first ** (index + 1) for index in range(power)] + rest


def _bloom_alibi(base: Any) -> None:
    base.build_alibi_tensor = lambda mask, heads, dtype: mask.new_zeros((1, 1, 1), dtype=dtype)


LIKE_LLAMA: Final = ("llama", "mistral", "qwen2", "qwen3")
"""Families whose layers are what the fused kernels compute: norm, rotated attention, norm, gated MLP, nothing else."""

ADAPTERS: Final[tuple[Adapter, ...]] = (
    # -- Parts with other names, and what happens before the first layer or after the last -----------------------------
    Adapter(
        model_types=("opt",),
        reason="the MLP is two matrices of the layer itself",
        mlp=("fc1", "fc2"),
    ),
    Adapter(
        model_types=("xglm", "biogpt"),
        reason="the MLP is two matrices of the layer itself, and the final norm has the name of a layer's",
        final_norm=("layer_norm",),
        mlp=("fc1", "fc2"),
    ),
    Adapter(
        model_types=("ctrl",),
        reason="other names; the backbone scales its input and adds positions from a table that is no module",
        final_norm=("layernorm",),
        attention=("multi_head_attention",),
        cut=_ctrl_cut,
    ),
    Adapter(
        model_types=("dbrx",),
        reason="attention and its norms are one module",
        attention=("norm_attn_norm.attn",),
    ),
    Adapter(
        model_types=("modernbert-decoder",),
        reason="the backbone sends its input through the embedding's norm, and the final norm has another name",
        entry=("embeddings",),
        final_norm=("final_norm",),
    ),
    Adapter(
        model_types=("gemma", "gemma2", "vaultgemma"),
        reason="in early releases of transformers 5 the backbone multiplies its input by the root of the hidden size",
        config={"hidden_size": 1},
    ),
    Adapter(
        model_types=("afmoe",),
        reason="the backbone scales its input if this is set",
        config={"mup_enabled": False},
    ),
    Adapter(
        model_types=("nanochat",),
        reason="one norm runs before the first layer and again after the last",
        final_norm=(),
        cut=_nanochat_cut,
    ),
    Adapter(
        model_types=("bert", "bert-generation", "electra", "ernie", "roc_bert", "big_bird"),
        reason="an encoder with a causal mask: each layer ends in a norm, there is none after the last",
        layers=BERT,
        final_norm=(),
        entry=("embeddings", "embeddings_project"),
        refuse=_encoder,
        refuse_skip="attention and MLP answer with the residual and its norm",
    ),
    Adapter(
        model_types=("rembert",),
        reason="as BERT, with embeddings that are widened before the first layer",
        layers=BERT,
        final_norm=(),
        entry=("embeddings", "encoder.embedding_hidden_mapping_in"),
        refuse=_encoder,
        refuse_skip="attention and MLP answer with the residual and its norm",
    ),
    Adapter(
        model_types=("megatron-bert",),
        reason="as BERT, with a final norm",
        layers=BERT,
        final_norm=("encoder.ln",),
        entry=("embeddings",),
        refuse=_encoder,
        refuse_skip="attention and MLP answer with the residual",
    ),
    # -- Positions and masks -------------------------------------------------------------------------------------------
    Adapter(
        model_types=("gpt_neo",),
        reason="every other layer has a window, which it cuts out of a triangle by slot; all layers are given one mask",
        spans=_gpt_neo_spans,
        stacked_masks=True,
        prepare=_gpt_neo_masks,
    ),
    Adapter(
        model_types=("llama4_text",),
        reason="layers without rotary positions sharpen their queries by position, counted from the cache's length",
        prepare=_llama4_temperature,
    ),
    Adapter(
        model_types=("bloom",),
        reason="ALiBi by slot, made from a mask of two dimensions; sub-layers add the residual themselves",
        slopes=_bloom_slopes,
        prepare=_bloom_alibi,
        entry=("word_embeddings_layernorm",),
        refuse_skip="attention and MLP answer with the residual",
    ),
    # -- Keys and values -----------------------------------------------------------------------------------------------
    Adapter(
        model_types=("gemma3n_text", "gemma4_text", "gemma4_unified_text"),
        **_shares_keys("layers read keys and values of layers below, and an embedding of the token besides"),
    ),
    Adapter(
        model_types=("mllama_text_model",),
        **_shares_keys("layers that attend to an image stand between the others, and are passed over in a text"),
    ),
    Adapter(
        model_types=("hrm_text",),
        layers=("H_module.layers",),
        stores=lambda config: int(config.num_hidden_layers),
        **_shares_keys("two stacks of layers run in turn, several times"),
    ),
    Adapter(
        model_types=("dory",),
        stores=lambda config: config.num_hidden_layers + config.n_recurrent_layers * (config.n_recurrent_loops - 1),
        refuse=lambda config: (
            "" if config.recurrent_kv_cache_mode == "per_loop" else "reads the keys that an earlier loop has replaced"
        ),
        **_shares_keys("the middle layers run in a loop, with keys and values of their own each time"),
    ),
    Adapter(
        model_types=("longcat_flash",),
        reason="a layer has two attentions and two MLPs beside its experts",
        stores=lambda config: 2 * config.num_layers,
        cut=_longcat_cut,
        refuse_skip="a layer has two attentions and two MLPs beside its experts",
    ),
    Adapter(
        model_types=("gpt_neox_japanese",),
        reason="attention leaves its bias to the layer",
        refuse_skip="attention leaves its bias to the layer, which would add it all the same",
    ),
    # -- What cannot be run, and which operation is missing ------------------------------------------------------------
    Adapter(model_types=("mpt",), refuse=ALIBI),
    Adapter(model_types=("falcon",), refuse=lambda config: ALIBI if config.alibi else ""),
    Adapter(
        model_types=("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "mvp", "pegasus"),
        refuse=OWN_POSITIONS,
    ),
    Adapter(model_types=("plbart", "prophetnet", "roformer", "trocr", "whisper"), refuse=OWN_POSITIONS),
    Adapter(
        model_types=(
            *("roberta", "roberta-prelayernorm", "camembert", "data2vec-text"),
            *("xlm-roberta", "xlm-roberta-xl", "xmod"),
        ),
        refuse=OFFSET_POSITIONS,
    ),
    Adapter(model_types=("gemma4_assistant", "gemma4_unified_assistant"), refuse=FOREIGN_KEYS),
    Adapter(
        model_types=("doge",),
        refuse=_doge_window,
    ),
    Adapter(
        model_types=("moshi",),
        refuse="looks at a whole prompt, and afterwards at a window: its texts depend on how they are read",
    ),
    Adapter(model_types=("openai-gpt", "xlm"), refuse="keeps no keys and values: every forward reads the whole text"),
    Adapter(model_types=("xlnet",), refuse="keeps hidden states in place of keys and values, and attends both ways"),
    Adapter(model_types=("reformer",), refuse="keeps hashed buckets of hidden states in place of keys and values"),
    Adapter(model_types=("cpmant",), refuse="builds its mask and positions from the tokens of the whole prompt"),
    Adapter(model_types=("git",), refuse="builds its mask around an image's features"),
    Adapter(model_types=("blt",), refuse="cuts bytes into patches with another model, so that rows are no tokens"),
)
