"""The prompts of a call to `generate`: rows of a padded batch, and what else its arguments say about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from ..errors import RequestError
from .fields import refusal
from .handover import CACHES

if TYPE_CHECKING:
    from torch import Tensor

FORWARD: Final = ("attention_mask", "position_ids", "use_cache", "logits_to_keep", *CACHES)
"""Arguments of the model's forward that `generate` prepares by itself."""


@dataclass(frozen=True, slots=True)
class PaddedRow:
    """One row of the batch."""

    index: int
    """Its place in the batch."""
    padding: Tensor
    """int64[P]: the padding on its left."""
    prompt: tuple[int, ...]


def rows_of(input_ids: Tensor, arguments: Mapping[str, Any]) -> list[PaddedRow]:
    """The prompts without their padding.

    input_ids: int64[B, L].  arguments: of the model's forward, as `generate` has prepared them.
    Raises RequestError if they say something that a prompt alone does not.
    """
    _check_arguments(arguments)
    if input_ids.shape[1] == 0:
        raise RequestError("input_ids: the prompt has no tokens: give at least one")
    mask = arguments.get("attention_mask")
    starts = [0] * len(input_ids) if mask is None else _starts(mask)
    _check_positions(arguments.get("position_ids"), starts, input_ids.shape[1])
    ids = input_ids.tolist()
    return [
        PaddedRow(index, input_ids[index, :start], tuple(line[start:]))
        for index, (line, start) in enumerate(zip(ids, starts, strict=True))
    ]


def _check_arguments(arguments: Mapping[str, Any]) -> None:
    for name, value in arguments.items():
        if name not in FORWARD and value is not None and value is not False:
            raise refusal(name, value, "of a prompt it reads the tokens and attention_mask only")


def _starts(mask: Tensor) -> list[int]:
    """Where each row's prompt begins. mask: [B, L], not 0 where there is a token."""
    seen = mask != 0
    starts = seen.int().argmax(1)
    places = torch.arange(mask.shape[1], device=mask.device)
    if not bool((seen == (places >= starts[:, None])).all()) or not bool(seen[:, -1].all()):
        raise RequestError(
            "attention_mask: it hides tokens within or behind a prompt, and fastllm honours padding on the left only; "
            "set tokenizer.padding_side = 'left'"
        )
    return [int(start) for start in starts.tolist()]


def _check_positions(positions: Tensor | None, starts: list[int], length: int) -> None:
    """The prompt's tokens count from 0. positions: int64[..., B, L]."""
    if positions is None:
        return
    for index, start in enumerate(starts):
        wanted = torch.arange(length - start, device=positions.device)
        given = positions[..., min(index, positions.shape[-2] - 1), start:]
        if given.shape[-1] != len(wanted) or not bool((given == wanted).all()):
            raise refusal("position_ids", positions, "it counts a prompt's positions from 0")
