"""Which model a skip set was chosen for: what it is called, its sizes, and a hash of its head."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from torch import nn

    from fastllm_core import LoadedModel

ROWS: Final = 512
"""Rows of the head that are hashed, evenly spaced: reading all of a large one takes longer than loading the model."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A model. What is None is not known, and fits everything."""

    model: str | None = None
    """Its name, for people: the same model may lie anywhere."""
    model_type: str | None = None
    layers: int | None = None
    hidden_size: int | None = None
    vocab_size: int | None = None
    head: str | None = None
    """A hash of the output matrix in bfloat16: the same for whatever number format the model was loaded in."""

    @classmethod
    def of(cls, target: LoadedModel, layers: int) -> Identity:
        """A loaded model's."""
        config = target.config
        head = _head_of(target.model)
        return cls(target.name, config.model_type, layers, int(config.hidden_size), target.vocab_size, head)

    @classmethod
    def read(cls, value: Mapping[str, Any]) -> Identity:
        """From JSON; what it does not know stays None."""
        return cls(**{field.name: value.get(field.name) for field in fields(cls)})

    def to_json(self) -> dict[str, Any]:
        """Everything."""
        return asdict(self)

    def mismatch(self, other: Identity) -> str | None:
        """What tells a model from another, in words, or None. A name proves nothing."""
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if field.name != "model" and mine is not None and theirs is not None and mine != theirs:
                return "other weights" if field.name == "head" else f"{field.name} {theirs}, not {mine}"
        return None


def _head_of(model: nn.Module) -> str | None:
    import torch

    found: Any = getattr(model, "get_output_embeddings", lambda: None)()
    weight = getattr(found, "weight", None)
    if weight is None or weight.is_meta or not weight.dtype.is_floating_point:
        return None
    step = max(1, weight.shape[0] // ROWS)
    rows = weight.detach()[::step][:ROWS].to("cpu", torch.bfloat16).contiguous().view(torch.uint8)
    return hashlib.sha256(rows.numpy().tobytes()).hexdigest()[:16]
