"""Transformers' list of logits processors as fastllm's own settings, as far as these say the same, and the rest by row.

A processor in `generate` sees a batch with its padding. The engine asks it row by row, so what it holds for a whole
batch is cut to the row, and a row's padding is put back before it looks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
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


@dataclass(frozen=True, slots=True)
class Plan:
    """What a list of processors becomes."""

    sampling: SamplingParams
    """What it ends with."""
    controls: Mapping[str, Any]
    """What it begins with, as arguments of `Controls`."""
    rest: tuple[Processor, ...]
    """What is between, in order: to be called by row."""


def plan(
    processors: Sequence[Processor], *, sample: bool, padding: Sequence[int], length: int, eos: frozenset[int]
) -> Plan:
    """Read a list as far as possible as fastllm's own settings, whose order is the list's.

    sample: whether a token is drawn; else the most likely one is taken.  padding: of each row of the batch.
    length: of the batch's prompts, padding counted.  eos: tokens that end a text.
    """
    rest = list(processors)
    settings: dict[str, Any] = {"temperature": 1.0} if sample else {}
    for kind, name in reversed(WARPERS if sample else ()):
        if rest and type(rest[-1]) is kind and _usual(rest[-1]):
            settings[name] = getattr(rest.pop(), name)
    controls: dict[str, Any] = {}
    for kind, read in CONTROLS:
        found = read(rest[0], padding, length, eos) if rest and type(rest[0]) is kind else None
        if found is not None:
            name, value = found
            controls[name] = max(controls.get(name, value), value) if name == "min_new_tokens" else value
            del rest[0]
    return Plan(SamplingParams(**settings), controls, tuple(rest))


def _sequence_bias(processor: Any, padding: Sequence[int], *_: Any) -> tuple[str, Any] | None:
    biases = processor.sequence_bias
    if any(padding) and max(map(len, biases), default=0) > 1:
        return None  # a sequence may begin in the padding
    name = "bad_words" if type(processor) is hf.NoBadWordsLogitsProcessor else "sequence_bias"
    entries = tuple((tuple(tokens), float(bias)) for tokens, bias in biases.items())
    return (name, tuple(tokens for tokens, _ in entries)) if name == "bad_words" else (name, entries)


def _repetition_penalty(processor: Any, padding: Sequence[int], *_: Any) -> tuple[str, Any] | None:
    ignored = processor.prompt_ignore_length
    told = [0] * len(padding) if ignored is None else ignored.tolist() if isinstance(ignored, torch.Tensor) else None
    return ("repetition_penalty", processor.penalty) if told == list(padding) else None


def _no_repeat(processor: Any, padding: Sequence[int], *_: Any) -> tuple[str, Any] | None:
    return None if any(padding) else ("no_repeat_ngram_size", processor.ngram_size)


def _min_length(processor: Any, _: Any, length: int, eos: frozenset[int]) -> tuple[str, Any] | None:
    if set(torch.as_tensor(processor.eos_token_id).flatten().tolist()) != eos:
        return None
    if type(processor) is hf.MinLengthLogitsProcessor:
        return "min_new_tokens", max(0, processor.min_length - length)
    return ("min_new_tokens", processor.min_new_tokens) if processor.prompt_length_to_skip == length else None


CONTROLS: Final[tuple[tuple[type, Callable[..., tuple[str, Any] | None]], ...]] = (
    (hf.SequenceBiasLogitsProcessor, _sequence_bias),
    (hf.RepetitionPenaltyLogitsProcessor, _repetition_penalty),
    (hf.NoRepeatNGramLogitsProcessor, _no_repeat),
    (hf.NoBadWordsLogitsProcessor, _sequence_bias),
    (hf.MinLengthLogitsProcessor, _min_length),
    (hf.MinNewTokensLengthLogitsProcessor, _min_length),
)
"""What `Controls` does itself, in its order, and the argument that it is; None where a processor says more."""


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
