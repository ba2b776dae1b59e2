"""Transformers' list of logits processors as fastllm's own settings, as far as these say the same, and the rest by row.

A processor in `generate` sees a batch with its padding. The engine asks it row by row, so what it holds for a whole
batch is cut to the row, and a row's padding is put back before it looks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
from transformers.generation import logits_process as hf

from ..errors import RequestError
from ..processors import Memory, memory_of, put_back, take
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


class Padded:
    """A processor or criterion that sees a row with its padding. What it remembers is what the inner one does."""

    def __init__(self, inner: Processor, padding: Tensor, memory: Memory) -> None:
        """padding: int64[P]."""
        self.inner, self.padding = inner, padding
        self.fastllm_memory = memory

    def __call__(self, input_ids: Tensor, scores: Any) -> Any:
        """input_ids: int64[1, n], without the padding."""
        padding = self.padding.to(input_ids.device)[None]
        return self.inner(torch.cat([padding, input_ids], dim=1), scores)

    def snapshot(self) -> object:
        """The inner one's state."""
        return take(self.inner)

    def restore(self, state: object) -> None:
        """Put the inner one's state back."""
        put_back(self.inner, state)


def split(processors: Sequence[Processor], *, sample: bool) -> tuple[SamplingParams, tuple[Processor, ...]]:
    """The sampling settings that a list ends with, and the processors before them.

    sample: whether a token is drawn; else the most likely one is taken.
    """
    rest = list(processors)
    settings: dict[str, Any] = {"temperature": 1.0} if sample else {}
    for kind, name in reversed(WARPERS if sample else ()):
        if rest and type(rest[-1]) is kind and _usual(rest[-1]):
            settings[name] = getattr(rest.pop(), name)
    return SamplingParams(**settings), tuple(rest)


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
    if not len(row.padding):
        return processor
    return _unpadded(processor, row) or Padded(processor, row.padding, memory_of(processor, row.prompt, vocab_size))


def _unpadded(processor: Any, row: PaddedRow) -> Processor | None:
    """What does the same to a row without its padding, if the core does that by itself; else None."""
    if not _is_theirs(processor):
        return None
    own, count = copy.copy(processor), len(row.padding)
    match processor:
        case hf.RepetitionPenaltyLogitsProcessor() if isinstance(processor.prompt_ignore_length, torch.Tensor):
            if processor.prompt_ignore_length.tolist() == [count]:
                own.prompt_ignore_length = None
                return own  # type: ignore[no-any-return]
        case hf.MinLengthLogitsProcessor():
            own.min_length = max(0, processor.min_length - count)
            return own  # type: ignore[no-any-return]
        case hf.MinNewTokensLengthLogitsProcessor():
            own.prompt_length_to_skip = processor.prompt_length_to_skip - count
            return own  # type: ignore[no-any-return]
        case hf.SequenceBiasLogitsProcessor():  # a sequence of several tokens may begin in the padding
            return own if all(len(tokens) == 1 for tokens in processor.sequence_bias) else None
        case hf.SuppressTokensLogitsProcessor():
            return own  # type: ignore[no-any-return]
    return None


def _cut(processor: Any, index: int, samples: int, input_ids: Tensor, vocab_size: int) -> Any:
    """What a processor is for one row of a batch."""
    if not _is_theirs(processor):
        _check_rows(processor, input_ids, vocab_size)
        return copied(processor, "logits_processor")
    own = copy.copy(processor)
    match processor:
        case hf.RepetitionPenaltyLogitsProcessor():
            if isinstance(own.prompt_ignore_length, torch.Tensor):
                own.prompt_ignore_length = own.prompt_ignore_length[index : index + 1]
        case hf.EncoderRepetitionPenaltyLogitsProcessor():
            own.encoder_input_ids = _line(own.encoder_input_ids, index, samples, input_ids)
        case hf.EncoderNoRepeatNGramLogitsProcessor():
            own.generated_ngrams = [own.generated_ngrams[index // (len(input_ids) // own.batch_size)]]
            own.batch_size = 1
        case hf.PrefixConstrainedLogitsProcessor():
            allowed, prompt = own._prefix_allowed_tokens_fn, index // own._num_beams
            return hf.PrefixConstrainedLogitsProcessor(lambda _, sent: allowed(prompt, sent), 1)
        case hf.UnbatchedClassifierFreeGuidanceLogitsProcessor():
            own.unconditional_context = dict(own.unconditional_context)
            for name in ("input_ids", "attention_mask"):
                if own.unconditional_context[name] is not None:
                    own.unconditional_context[name] = _line(own.unconditional_context[name], index, samples, input_ids)
        case _ if type(processor) not in BY_ROW:
            _check_rows(processor, input_ids, vocab_size)
            return copied(processor, "logits_processor")
    return own


def _is_theirs(processor: object) -> bool:
    """Whether this is a class of transformers itself, not one derived from it."""
    return type(processor).__module__.startswith("transformers.generation.")


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
