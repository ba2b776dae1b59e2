"""Transformers' list of logits processors as fastllm's own settings, as far as these say the same, and the rest by row.

A processor in `generate` sees a batch with its padding. The engine asks it row by row, so what it holds for a whole
batch is cut to the row, and a row's padding is put back before it looks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from transformers import generation as hf

from ..errors import RequestError
from ..request import SamplingParams

if TYPE_CHECKING:
    from torch import Tensor

    from .inputs import PaddedRow

Processor = Callable[..., Any]

WARPERS: Final = (
    (hf.TemperatureLogitsWarper, "temperature"),
    (hf.TopKLogitsWarper, "top_k"),
    (hf.TopPLogitsWarper, "top_p"),
    (hf.MinPLogitsWarper, "min_p"),
)
"""What `SamplingParams` does itself, in its order."""

BY_ROW: Final = (
    hf.MinLengthLogitsProcessor,
    hf.MinNewTokensLengthLogitsProcessor,
    hf.TemperatureLogitsWarper,
    hf.TopPLogitsWarper,
    hf.TopKLogitsWarper,
    hf.TopHLogitsWarper,
    hf.MinPLogitsWarper,
    hf.TypicalLogitsWarper,
    hf.EpsilonLogitsWarper,
    hf.EtaLogitsWarper,
    hf.NoRepeatNGramLogitsProcessor,
    hf.SequenceBiasLogitsProcessor,
    hf.NoBadWordsLogitsProcessor,
    hf.ForcedBOSTokenLogitsProcessor,
    hf.ForcedEOSTokenLogitsProcessor,
    hf.InfNanRemoveLogitsProcessor,
    hf.ExponentialDecayLengthPenalty,
    hf.LogitNormalization,
    hf.SuppressTokensAtBeginLogitsProcessor,
    hf.SuppressTokensLogitsProcessor,
    hf.WatermarkLogitsProcessor,
    hf.SynthIDTextWatermarkLogitsProcessor,
)
"""Those that treat each row by itself; what state they have, a copy made before the first call has of its own."""


@dataclass(frozen=True, slots=True)
class Padded:
    """A processor or criterion that sees a row with its padding."""

    inner: Processor
    padding: Tensor
    """int64[P]"""

    def __call__(self, input_ids: Tensor, scores: Any) -> Any:
        """input_ids: int64[1, n], without the padding."""
        padding = self.padding.to(input_ids.device)[None].expand(len(input_ids), -1)
        return self.inner(torch.cat([padding, input_ids], dim=1), scores)


def split(processors: Sequence[Processor], *, sample: bool) -> tuple[SamplingParams, list[Processor]]:
    """The sampling settings that the list ends with, and the processors before them.

    sample: whether a token is drawn; else the most likely one is taken.
    """
    rest = list(processors)
    if not sample:
        return SamplingParams(), rest
    settings: dict[str, Any] = {"temperature": 1.0}
    for kind, name in reversed(WARPERS):
        if rest and type(rest[-1]) is kind and _usual(rest[-1]):
            settings[name] = getattr(rest.pop(), name)
    return SamplingParams(**settings), rest


def _usual(warper: Any) -> bool:
    return (
        getattr(warper, "filter_value", -float("inf")) == -float("inf")
        and getattr(warper, "min_tokens_to_keep", 1) == 1
    )


def for_row(processor: Processor, row: PaddedRow, input_ids: Tensor, samples: int, vocab_size: int) -> Processor:
    """A processor for one row of a batch, which has a state of its own.

    input_ids: int64[B, L], the batch.  samples: rows of each prompt, next to one another.
    Raises RequestError if the processor does not treat rows by themselves, as far as one call shows.
    """
    if len(input_ids) > 1:
        processor = _cut(processor, row.index, samples, input_ids, vocab_size)
    return Padded(processor, row.padding) if len(row.padding) else processor


def _cut(processor: Any, index: int, samples: int, input_ids: Tensor, vocab_size: int) -> Processor:
    kind = type(processor)
    own = copy.copy(processor)
    if kind is hf.RepetitionPenaltyLogitsProcessor:
        if isinstance(own.prompt_ignore_length, torch.Tensor):
            own.prompt_ignore_length = own.prompt_ignore_length[index : index + 1]
        return own  # type: ignore[no-any-return]
    if kind is hf.EncoderRepetitionPenaltyLogitsProcessor:
        own.encoder_input_ids = _line(own.encoder_input_ids, index, samples, input_ids)
        return own  # type: ignore[no-any-return]
    if kind is hf.EncoderNoRepeatNGramLogitsProcessor:
        own.generated_ngrams = [own.generated_ngrams[index // (len(input_ids) // own.batch_size)]]
        own.batch_size = 1
        return own  # type: ignore[no-any-return]
    if kind is hf.PrefixConstrainedLogitsProcessor:
        allowed, prompt = own._prefix_allowed_tokens_fn, index // own._num_beams
        return hf.PrefixConstrainedLogitsProcessor(lambda _, sent: allowed(prompt, sent), 1)
    if kind is hf.UnbatchedClassifierFreeGuidanceLogitsProcessor:
        context = dict(own.unconditional_context)
        for name in ("input_ids", "attention_mask"):
            if context[name] is not None:
                context[name] = _line(context[name], index, samples, input_ids)
        own.unconditional_context = context
        return own  # type: ignore[no-any-return]
    if kind in BY_ROW:
        return own  # type: ignore[no-any-return]
    _check_rows(processor, input_ids, vocab_size)
    return copied(processor, "logits_processor")


def _line(values: Tensor, index: int, samples: int, input_ids: Tensor) -> Tensor:
    """What a row of the batch has of a tensor that has a line for each row, for each prompt, or one for all."""
    if len(values) == len(input_ids):
        return values[index : index + 1]
    return values[index // samples % len(values)][None]


def copied(thing: Any, argument: str) -> Any:
    """A copy with a state of its own. Raises RequestError, naming the argument, if there can be none."""
    try:
        return copy.deepcopy(thing)
    except Exception as error:
        raise RequestError(
            f"{argument}: a {type(thing).__name__} cannot be copied ({type(error).__name__}), and each row of a batch "
            "needs one of its own; generate one prompt at a time, or leave custom_generate out"
        ) from error


def _check_rows(processor: Processor, input_ids: Tensor, vocab_size: int) -> None:
    """Raise RequestError if one call over the batch is not a call for each of its rows."""
    draw = torch.Generator().manual_seed(0)
    scores = torch.randn(len(input_ids), vocab_size, generator=draw).to(input_ids.device)
    whole = copied(processor, "logits_processor")(input_ids.clone(), scores.clone())
    lines = [
        copied(processor, "logits_processor")(input_ids[b : b + 1].clone(), scores[b : b + 1].clone())
        for b in range(len(input_ids))
    ]
    if whole.shape != scores.shape or not torch.allclose(torch.cat(lines), whole, rtol=1e-5, atol=1e-6):
        raise RequestError(
            f"logits_processor: a {type(processor).__name__} does not treat the rows of a batch by themselves; "
            "generate one prompt at a time, or leave custom_generate out"
        )
