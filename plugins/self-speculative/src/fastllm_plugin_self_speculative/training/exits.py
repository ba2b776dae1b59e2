"""A model with an exit behind every layer: layers that are dropped, and the loss of what each exit says.

Shapes: B rows, S tokens of a row, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fastllm_core import Adapter, UnsupportedModel

from .recipe import Recipe


class Exits:
    """A causal LM whose backbone ends in a norm that its head reads, as Llama's and its kin's do."""

    def __init__(self, model: Any) -> None:
        """model: is trained in place. Raises UnsupportedModel if its parts are not found."""
        base, names = model.base_model, Adapter()
        layers = next((getattr(base, name) for name in names.layers if hasattr(base, name)), None)
        norm = next((getattr(base, name) for name in names.final_norm if hasattr(base, name)), None)
        head = model.get_output_embeddings()
        if layers is None or norm is None or head is None:
            raise UnsupportedModel(f"{type(model).__name__}: its layers, final norm or head were not found")
        self.model, self.layers, self.norm, self.head = model, layers, norm, head

    def loss(self, tokens: Tensor, weights: Sequence[float]) -> Tensor:
        """The weighted sum of each exit's cross-entropy.

        tokens: int64[B, S].  weights: one for each layer; where it is 0 nothing is computed.
        Source: arXiv:2404.16710, section 4.1.2.
        """
        parts = [
            weight * cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())
            for weight, logits in self.said(tokens, weights)
        ]
        return torch.stack(parts).sum()

    @torch.no_grad()
    def accuracy(self, tokens: Tensor) -> list[float]:
        """How often each exit's most likely token is the last exit's: about the acceptance of a greedy draft."""
        said = [logits.argmax(-1) for _, logits in self.said(tokens, [1.0] * len(self.layers))]
        return [float((each == said[-1]).float().mean()) for each in said]

    def said(self, tokens: Tensor, weights: Sequence[float]) -> Iterator[tuple[float, Tensor]]:
        """The weight and the logits, float[B, S, V], of each exit that counts, from the first on."""
        answer = self.model(input_ids=tokens, output_hidden_states=True, use_cache=False)
        for layer, weight in enumerate(weights):
            if layer == len(weights) - 1:
                yield weight, answer.logits
            elif weight:
                yield weight, self.head(self.norm(answer.hidden_states[layer + 1]))

    @contextmanager
    def dropping(self, recipe: Recipe, step: int, generator: torch.Generator) -> Iterator[None]:
        """Within, each row of a batch goes around each layer with the recipe's chance (section 4.1.1).

        Before other hooks, so that the hidden states that transformers records are those behind the detour.
        """
        handles = [
            layer.register_forward_hook(
                _around(recipe.drop_chance(index, len(self.layers), step), generator), prepend=True, with_kwargs=True
            )
            for index, layer in enumerate(self.layers)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _around(chance: float, generator: torch.Generator) -> Any:
    def hook(layer: nn.Module, given: tuple[Any, ...], named: dict[str, Any], answer: Any) -> Any:
        before = given[0] if given else named["hidden_states"]
        dropped = torch.rand(before.shape[0], generator=generator).to(before.device) < chance
        after = answer[0] if isinstance(answer, tuple) else answer
        kept = torch.where(dropped[:, None, None], before, after)
        return (kept, *answer[1:]) if isinstance(answer, tuple) else kept

    return hook
