"""Layer views: a part of a stock model that runs on the model's own weights, without a modelling file of ours.

A view is a copy of the module tree that shares every parameter and buffer and owns its configuration. The user's model
is never touched: what transformers hangs onto a module at run time (hooks, an attention implementation) lands on the
copy. Where a family keeps its layers, and what else it needs, says its `Adapter`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from .adapters import Adapter, Names
from .errors import UnsupportedModel
from .twin import share

DEFAULT: Final = Adapter()
WRAPPERS: Final = ("decoder", "language_model", "text_model", "model", "transformer")
"""What may stand between a causal LM and the module that holds its layers: OPT's decoder, a multimodal model's text."""


def backbone(model: nn.Module, adapter: Adapter = DEFAULT) -> nn.Module:
    """The part of a causal LM that holds the decoder layers: below the head, and below a wrapper such as OPT's."""
    base = getattr(model, getattr(model, "base_model_prefix", ""), model)
    found = _backbone(base, adapter) or _backbone(model, adapter)
    if found is None:
        names = ", ".join(adapter.layers)
        raise UnsupportedModel(f"{type(model).__name__}: no list of decoder layers found (looked for {names})")
    return found


def _backbone(module: nn.Module, adapter: Adapter) -> nn.Module | None:
    if _present(module, adapter.layers):
        return module
    inner = (getattr(module, name, None) for name in WRAPPERS)
    found = (_backbone(part, adapter) for part in inner if isinstance(part, nn.Module))
    return next((base for base in found if base is not None), None)


def layer_list(base: nn.Module, adapter: Adapter = DEFAULT) -> nn.ModuleList:
    """The decoder layers of a backbone."""
    return cast("nn.ModuleList", base.get_submodule(_present(base, adapter.layers)[0]))


def layer_range(model: nn.Module, start: int, stop: int, adapter: Adapter = DEFAULT) -> nn.Module:
    """Layers `start..stop-1` of a causal LM, as a module of the model's own class.

    A lower part ends before the final norm. The copy's configuration is cut with its layers: with mixed attention, a
    view that kept the whole model's layer types was off by 0.91 (tests/test_views.py).
    """
    if adapter.refuse_split:
        raise UnsupportedModel(f"{type(model).__name__} cannot be run in parts: {adapter.refuse_split}")
    view = share(model)
    base = backbone(view, adapter)
    layers = layer_list(base, adapter)
    total = len(layers)
    _replace(base, _present(base, adapter.layers)[0], nn.ModuleList(list(layers)[start:stop]))
    _cut_config(base.config, start, stop, total)
    if start > 0:
        _enter_above_embedding(base, adapter)
    if stop < total:
        norm = _present(base, adapter.final_norm)[:1]
        if adapter.final_norm and not norm:
            names = ", ".join(adapter.final_norm)
            raise UnsupportedModel(
                f"{type(model).__name__} cannot be run in parts: no final norm found (looked for {names})"
            )
        for name in (*norm, *_present(base, adapter.exit)):
            _replace(base, name, nn.Identity())
    if adapter.cut is not None:
        adapter.cut(base, start, stop, total)
    return view


def _enter_above_embedding(base: Any, adapter: Adapter) -> None:
    """Undo what a backbone does to `inputs_embeds` before its first layer, since hidden states have been through it."""
    for name in _present(base, adapter.silent):
        _replace(base, name, SilentPositions())
    for name in _present(base, adapter.entry):
        _replace(base, name, PassedOn())
    for name, value in adapter.attributes.items():
        if hasattr(base, name):
            setattr(base, name, value)
    for name, value in adapter.config.items():
        if hasattr(base.config, name):
            setattr(base.config, name, value)


def skip_sublayers(
    model: nn.Module,
    attention: frozenset[int],
    mlp: frozenset[int],
    trial: Callable[[nn.Module], object],
    adapter: Adapter = DEFAULT,
) -> nn.Module:
    """The whole model with some sub-layers adding nothing to the residual stream (arXiv:2309.08168).

    trial: runs the model once, over anything, to see what its sub-layers answer: a tensor, or a tuple with one.
    """
    if adapter.refuse_skip:
        raise UnsupportedModel(f"{type(model).__name__} cannot skip sub-layers: {adapter.refuse_skip}")
    view = share(model)
    layers = layer_list(backbone(view, adapter), adapter)
    for index in sorted(attention | mlp):
        if not 0 <= index < len(layers):
            raise UnsupportedModel(f"skip set: layer {index} does not exist, the model has layers 0..{len(layers) - 1}")
    parts = [(layers[index], name) for index in attention for name in sublayers(layers[index], adapter.attention)]
    parts += [(layers[index], name) for index in mlp for name in sublayers(layers[index], adapter.mlp)]
    answers: dict[nn.Module, Any] = {}
    for layer, name in parts:
        layer.get_submodule(name).register_forward_hook(lambda part, _, answer: answers.update({part: answer}))
    trial(view)
    for layer, name in parts:
        part = layer.get_submodule(name)
        answer = answers.get(part)
        _replace(layer, name, Silent(part, len(answer) if isinstance(answer, tuple) else None))
    whole = [layers[index] for index in sorted(attention & mlp)]
    if whole:
        _go_around(whole, lambda: trial(view))
    return view


def _go_around(layers: list[nn.Module], trial: Callable[[], object]) -> None:
    """Let layers that hand on what they are given do it at once: their norms would run for nothing.

    Eagerly these are most of what a layer without its sub-layers takes: an early exit at a third of a small model cost
    half of it. A layer that still does something, a scale of its own for example, stays as it is.
    """
    seen: dict[nn.Module, tuple[Any, Any]] = {}

    def note(layer: nn.Module, given: tuple[Any, ...], named: dict[str, Any], answer: Any) -> None:
        seen[layer] = (given[0] if given else named.get("hidden_states"), answer)

    handles = [layer.register_forward_hook(note, with_kwargs=True) for layer in layers]
    trial()
    for handle in handles:
        handle.remove()
    for layer in layers:
        before, answer = seen.get(layer, (None, None))
        after = answer[0] if isinstance(answer, tuple) else answer
        if isinstance(before, Tensor) and isinstance(after, Tensor) and torch.equal(before, after):
            layer.__class__ = _passing(type(layer), len(answer) if isinstance(answer, tuple) else None)


def _passing(kind: type[nn.Module], parts: int | None) -> type[nn.Module]:
    """A layer's class that hands on its input. Still a layer, so that transformers records what comes out of it."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return hidden if parts is None else (hidden, *[None] * (parts - 1))

    return type(f"Passing{kind.__name__}", (kind,), {"forward": forward})


def sublayers(layer: nn.Module, names: Names) -> list[str]:
    """Those of the names that a layer has. Raises UnsupportedModel if it has none."""
    found = _present(layer, names)
    if not found:
        raise UnsupportedModel(f"{type(layer).__name__}: no sub-layer to skip among {', '.join(names) or 'no names'}")
    return found


class SilentPositions(nn.Module):
    """A position embedding that adds nothing."""

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        """Returns 0, which broadcasts."""
        return torch.zeros(())


class PassedOn(nn.Module):
    """What a backbone does to its input, left out."""

    def forward(self, hidden: Tensor | None = None, *args: object, **kwargs: object) -> Tensor:
        """Returns its input, which an embedding module is given as `inputs_embeds`."""
        return cast("Tensor", kwargs["inputs_embeds"] if hidden is None else hidden)


class Silent(nn.Module):
    """A sub-layer that contributes nothing and leaves no keys or values."""

    def __init__(self, replaced: nn.Module, parts: int | None) -> None:
        """replaced: whose place it takes; a backbone may ask it for attributes, such as its attention type.

        parts: how many the sub-layer answers as a tuple, the first of which counts; None for a bare tensor.
        """
        super().__init__()
        self.__dict__["replaced"] = replaced  # no part of it
        self.parts = parts

    def __getattr__(self, name: str) -> Any:
        """What the sub-layer has."""
        return getattr(self.replaced, name)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor | None, ...]:
        """The first argument, or `hidden_states`: float[B, W, H]. Returns zeros of the same shape."""
        nothing = torch.zeros_like(args[0] if args else kwargs["hidden_states"])
        return nothing if self.parts is None else (nothing, *[None] * (self.parts - 1))


def _present(module: nn.Module, names: Names) -> list[str]:
    """Those of the names that lead to a module."""
    return [name for name in names if isinstance(_follow(module, name), nn.Module)]


def _follow(value: Any, name: str) -> Any:
    for part in name.split("."):
        value = getattr(value, part, None)
    return value


def _replace(module: nn.Module, name: str, new: nn.Module) -> None:
    above, _, last = name.rpartition(".")
    setattr(module.get_submodule(above), last, new)


def _cut_config(config: Any, start: int, stop: int, total: int) -> None:
    """Cut every per-layer list of a configuration (layer_types and the like) to a range of layers."""
    for name, value in vars(config).items():
        if isinstance(value, list) and len(value) == total:
            setattr(config, name, value[start:stop])
    config.num_hidden_layers = stop - start
