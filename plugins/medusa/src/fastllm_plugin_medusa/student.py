"""A target that learns together with its heads (Medusa-2): all of its weights, or adapters in it.

The frozen target stays as it is: it is what self-distillation learns from. With adapters both share every weight.

Source: Medusa, arXiv:2401.10774, sections 2.2.2 and 2.3.2; adapters: LoRA, arXiv:2106.09685.
Shapes: B rows, S tokens of a row, H hidden size, V vocabulary.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from fastllm_core import Inputs, Lesson, Network, UserError

from .recipe import MedusaRecipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER: Final = "medusa"
"""What the only adapter is called."""


class Student:
    """A copy of the target in which gradients flow."""

    def __init__(self, options: MedusaRecipe, frozen: Network) -> None:
        """options: which weights learn.  frozen: the target as it was. Raises UserError if peft is missing."""
        self.frozen = frozen
        self.adapted = options.joint == "lora"
        loaded = frozen.loaded
        if self.adapted:
            model = _adapted(loaded.model, options)
        else:
            model = copy.deepcopy(loaded.model).float().requires_grad_(True)
        known = (frozen.adapter,) if frozen.adapter_is_foreign else ()  # what another plugin knows of the family
        own = replace(loaded, model=model, dtype=loaded.dtype if self.adapted else torch.float32)
        self.network = Network(own, adapters=known)

    def read(self, lesson: Lesson) -> tuple[Tensor, Tensor]:
        """Last hidden states float[B, S, H] and logits float[B, S, V] of a lesson, through the forward port.

        What runs here is what runs in generation, but outside of inference mode and with a cache of its own.
        """
        network = self.network
        count, length = lesson.tokens.shape
        slots = torch.arange(length, device=network.device).expand(count, -1)
        inputs = Inputs(lesson.tokens, None, lesson.positions, slots, lesson.sees, lesson.positions)
        whole = network.whole._replace(hidden_layers=(network.layers,))
        answer = network.eager(whole, inputs, [self._store(layer, count, length) for layer in range(network.stores)])
        assert answer.logits is not None
        return answer.hidden[0].float(), answer.logits

    def _store(self, layer: int, rows: int, length: int) -> tuple[Tensor, Tensor]:
        """Fresh keys and values of a layer: a forward writes them in place, and its gradient needs them as written."""
        shape = self.network.kv_shapes[layer]
        sizes = (0, 0) if shape is None else ((rows, shape[0], length, shape[1]), (rows, shape[0], length, shape[2]))
        keys, values = (torch.zeros(size, dtype=self.network.dtype, device=self.network.device) for size in sizes)
        return keys, values

    @torch.no_grad()
    def tuned(self) -> PreTrainedModel:
        """A copy of the target with what was learned, in the number format of the frozen one."""
        model = copy.deepcopy(self.frozen.loaded.model)
        if self.adapted:
            for name, delta in _deltas(self.network.model):
                weight: Any = model.get_submodule(name).weight
                weight += delta.to(weight.dtype)
        else:
            learned = dict(self.network.model.named_parameters())
            for name, part in model.named_parameters():
                part.copy_(learned[name])
        return model


def _adapted(model: PreTrainedModel, options: MedusaRecipe) -> PreTrainedModel:
    """A twin of the model, on the same weights, with adapters in all of its linear modules but the output."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("joint = lora needs the package peft: pip install 'fastllm-plugin-medusa[lora]'") from None
    shared = {id(part): part for part in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared)
    config = LoraConfig(r=options.lora_rank, lora_alpha=options.lora_alpha, target_modules="all-linear")
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        inject_adapter_in_model(config, twin, ADAPTER)
    for part in twin.parameters():
        if part.requires_grad:
            part.data = part.data.float()  # peft makes them in the number format of what they stand beside
    return twin


def _deltas(model: Any) -> list[tuple[str, Tensor]]:
    """What adapters add to the weights of modules, by their name."""
    from peft.tuners.lora import LoraLayer

    layers: list[tuple[str, Any]] = [
        (name, each) for name, each in model.named_modules() if isinstance(each, LoraLayer)
    ]
    return [(name, module.get_delta_weight(ADAPTER)) for name, module in layers]
