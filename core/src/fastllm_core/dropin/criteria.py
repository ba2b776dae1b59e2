"""Transformers' list of stopping criteria as fastllm's own limits, where these say the same, and the rest by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

import torch
from transformers.generation import stopping_criteria as hf
from transformers.generation.stopping_criteria import StopStringCriteria

from ..errors import RequestError
from ..processors import Memory
from .processors import Padded, copied

if TYPE_CHECKING:
    from torch import Tensor

    from .inputs import PaddedRow

Criterion = Callable[..., Any]

BY_ROW: Final = (hf.MaxTimeCriteria, StopStringCriteria)
"""Those that treat each row by itself and keep no state."""


@dataclass(frozen=True, slots=True)
class Ends:
    """Where texts end."""

    max_length: int | None
    """Tokens of prompt and text together, the padding counted."""
    eos_token_ids: frozenset[int]
    pads: bool
    """Whether a text that has ended is padded; else it goes on until the last one has ended."""
    rest: tuple[Criterion, ...]


def split(criteria: Sequence[Any]) -> Ends:
    """What the list says about length and end tokens, and the other criteria."""
    lengths = [criterion.max_length for criterion in criteria if type(criterion) is hf.MaxLengthCriteria]
    eos: set[int] = set()
    rest = []
    for criterion in criteria:
        if type(criterion) is hf.EosTokenCriteria:
            eos |= set(torch.as_tensor(criterion.eos_token_id).flatten().tolist())
        elif type(criterion) is not hf.MaxLengthCriteria:
            rest.append(criterion)
    pads = any(hasattr(criterion, "eos_token_id") for criterion in criteria)
    return Ends(min(lengths, default=None), frozenset(eos), pads, tuple(rest))


def for_row(criterion: Criterion, row: PaddedRow, input_ids: Tensor, *, scores_kept: bool) -> Criterion:
    """A criterion for one row of a batch.

    input_ids: int64[B, L], the batch.  scores_kept: in `generate` it would be given the scores of all tokens so far.
    Raises RequestError if it does not treat rows by themselves, as far as one call shows.
    """
    known = type(criterion) in BY_ROW
    if len(input_ids) > 1 and not known:
        _check_rows(criterion, input_ids)
        criterion = copied(criterion, "stopping_criteria")
    if scores_kept and not known:
        criterion = WithoutScores(criterion)
    if not len(row.padding):
        return criterion
    return Padded(criterion, row.padding, Memory.PURE if known else Memory.STATEFUL)


@dataclass(frozen=True, slots=True)
class WithoutScores:
    """A criterion that may not look at the scores, which are not there yet when it is asked."""

    inner: Criterion

    def __call__(self, input_ids: Tensor, _: Any) -> Any:
        """input_ids: int64[1, n]."""
        return self.inner(input_ids, NoScores(type(self.inner).__name__))


class NoScores:
    """In place of the scores: whoever looks at them is refused."""

    def __init__(self, criterion: str) -> None:
        """criterion: its name."""
        self.criterion = criterion

    def refuse(self, *_: object) -> NoReturn:
        """Say why."""
        raise RequestError(
            f"stopping_criteria: a {self.criterion} reads the scores, which fastllm has only when a text is finished; "
            "leave the criterion out, or leave custom_generate out"
        )

    __getitem__ = __iter__ = __len__ = refuse


def _check_rows(criterion: Criterion, input_ids: Tensor) -> None:
    """Raise RequestError if one call over the batch is not a call for each of its rows."""
    whole = copied(criterion, "stopping_criteria")(input_ids.clone(), None)
    lines = [copied(criterion, "stopping_criteria")(input_ids[b : b + 1].clone(), None) for b in range(len(input_ids))]
    if (
        not isinstance(whole, torch.Tensor)
        or whole.shape != (len(input_ids),)
        or not torch.equal(whole, torch.cat([torch.as_tensor(line).reshape(1).to(whole) for line in lines]))
    ):
        raise RequestError(
            f"stopping_criteria: a {type(criterion).__name__} does not answer for each row of a batch by itself; "
            "generate one prompt at a time, or leave custom_generate out"
        )
