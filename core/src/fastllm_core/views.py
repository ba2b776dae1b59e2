"""Layer views: a part of a stock model that runs on the model's own weights, without a modelling file of ours.

A view is a copy of the module tree that shares every parameter and buffer and owns its configuration. The user's model
is never touched: what transformers hangs onto a module at run time (hooks, an attention implementation) lands on the
copy.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from .errors import UnsupportedModel

LAYER_LISTS = ("layers", "h", "blocks", "block")
FINAL_NORMS = ("norm", "ln_f", "final_layernorm", "final_layer_norm", "norm_f")
POSITIONS = ("wpe", "embed_positions")
BEFORE_LAYERS = ("project_in",)
AFTER_LAYERS = ("project_out",)
EMBEDDING_FACTOR = "embedding_multiplier"
ATTENTIONS = ("self_attn", "attn", "attention", "self_attention")
MLPS = ("mlp", "feed_forward", "block_sparse_moe", "ffn")


def share(model: nn.Module) -> nn.Module:
    """Copy the module tree of `model` in evaluation mode: parameters and buffers are shared, the config is owned."""
    memo: dict[int, Any] = {}
    copy.deepcopy(getattr(model, "config", None), memo)
    return cast("nn.Module", _twin(model, memo))


def _twin(value: Any, memo: dict[int, Any]) -> Any:
    """The copy's counterpart of an attribute: modules and configurations get their own, all else stays shared."""
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, nn.Module):
        twin = memo[id(value)] = value.__class__.__new__(value.__class__)
        twin.__dict__.update({name: _twin(item, memo) for name, item in value.__dict__.items()})
        twin.__dict__["training"] = False
        return twin
    if type(value) in (dict, list, tuple) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        twins = {key: _twin(item, memo) for key, item in items}
        return twins if isinstance(value, dict) else type(value)(twins.values())
    return copy.copy(value) if isinstance(value, dict) else value


def backbone(model: nn.Module) -> nn.Module:
    """The part of a causal LM that holds the decoder layers: below the head, and below a wrapper such as OPT's."""
    base = getattr(model, getattr(model, "base_model_prefix", ""), model)
    for inner in (base, getattr(base, "decoder", None), getattr(base, "language_model", None)):
        if isinstance(inner, nn.Module) and _find(inner, LAYER_LISTS) is not None:
            return inner
    raise UnsupportedModel(
        f"{type(model).__name__}: no list of decoder layers found (looked for {', '.join(LAYER_LISTS)})"
    )


def layer_list(base: nn.Module) -> nn.ModuleList:
    """The decoder layers of a backbone."""
    name = _find(base, LAYER_LISTS)
    assert name is not None
    return cast("nn.ModuleList", getattr(base, name))


def layer_range(model: nn.Module, start: int, stop: int) -> nn.Module:
    """Layers `start..stop-1` of a causal LM, as a module of the model's own class.

    A lower part ends before the final norm. The copy's configuration is cut with its layers: with mixed attention, a
    view that kept the whole model's layer types was off by 0.91 (tests/test_views.py).
    """
    view = share(model)
    base = backbone(view)
    layers = layer_list(base)
    total = len(layers)
    setattr(base, cast("str", _find(base, LAYER_LISTS)), nn.ModuleList(list(layers)[start:stop]))
    _cut_config(base.config, start, stop, total)
    if start > 0:
        _enter_above_embedding(base)
    if stop < total:
        norm = _find(base, FINAL_NORMS)
        if norm is None:
            raise UnsupportedModel(f"{type(model).__name__}: cannot be split into layers, no final norm found")
        for name in (norm, *_present(base, AFTER_LAYERS)):
            setattr(base, name, nn.Identity())
    return view


def _enter_above_embedding(base: Any) -> None:
    """Undo what a backbone does to `inputs_embeds` before its first layer, since hidden states have been through it."""
    for name in _present(base, POSITIONS):  # GPT-2 and OPT would add learned positions again
        setattr(base, name, SilentPositions())
    for name in _present(base, BEFORE_LAYERS):  # the OPT with narrow embeddings would project again
        setattr(base, name, nn.Identity())
    if hasattr(base, EMBEDDING_FACTOR):  # Granite would scale again
        setattr(base, EMBEDDING_FACTOR, 1.0)
    if hasattr(base.config, "mup_enabled"):  # so would AFMoE
        base.config.mup_enabled = False


def skip_sublayers(model: nn.Module, attention: frozenset[int], mlp: frozenset[int]) -> nn.Module:
    """The whole model with some sub-layers adding nothing to the residual stream (arXiv:2309.08168)."""
    view = share(model)
    layers = layer_list(backbone(view))
    for index in sorted(attention | mlp):
        if not 0 <= index < len(layers):
            raise UnsupportedModel(f"skip set: layer {index} does not exist, the model has layers 0..{len(layers) - 1}")
    for skipped, names, silent in ((attention, ATTENTIONS, SilentAttention()), (mlp, MLPS, SilentMLP())):
        for index in skipped:
            name = _find(layers[index], names)
            if name is None:
                raise UnsupportedModel(f"{type(layers[index]).__name__}: no sub-layer to skip among {', '.join(names)}")
            setattr(layers[index], name, silent)
    return view


class SilentPositions(nn.Module):
    """A position embedding that adds nothing."""

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        """Returns 0, which broadcasts."""
        return torch.zeros(())


class SilentAttention(nn.Module):
    """An attention that contributes nothing and leaves no keys or values."""

    def forward(self, hidden_states: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, None]:
        """hidden_states: float[B, W, H]. Returns zeros of the same shape and no attention weights."""
        return torch.zeros_like(hidden_states), None


class SilentMLP(nn.Module):
    """An MLP that contributes nothing."""

    def forward(self, hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
        """hidden_states: float[B, W, H]. Returns zeros of the same shape."""
        return torch.zeros_like(hidden_states)


def _find(module: nn.Module, names: tuple[str, ...]) -> str | None:
    return next(iter(_present(module, names)), None)


def _present(module: nn.Module, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if isinstance(getattr(module, name, None), nn.Module)]


def _cut_config(config: Any, start: int, stop: int, total: int) -> None:
    """Cut every per-layer list of a configuration (layer_types and the like) to a range of layers."""
    for name, value in vars(config).items():
        if isinstance(value, list) and len(value) == total:
            setattr(config, name, value[start:stop])
    config.num_hidden_layers = stop - start
