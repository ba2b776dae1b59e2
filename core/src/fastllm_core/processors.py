"""Logits processors of the caller's own: what they remember, how they are called, and which the core does itself.

Most of transformers' processors are functions of the tokens before a position. Some keep a state (guidance keeps the
cache of a second text, a grammar where it stands), and must then be called as under plain decoding: in order, once for
each token of the text, never for one that is rejected.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor

from .errors import RequestError

if TYPE_CHECKING:
    from .controls import Controls, LogitsProcessor
    from .request import Request


class Memory(StrEnum):
    """What a processor or a stopping criterion remembers between calls. One may say so: `fastllm_memory = "..."`."""

    PURE = "prefix-pure"
    """Nothing: what it answers follows from its arguments."""
    SNAPSHOT = "snapshotable"
    """A state that can be taken and put back: by methods `snapshot()` and `restore(state)`, or plain attributes."""
    STATEFUL = "stateful"
    """A state that cannot, or nobody knows."""


TRANSFORMERS: Final = frozenset(
    {
        *("MinLengthLogitsProcessor", "MinNewTokensLengthLogitsProcessor", "TemperatureLogitsWarper"),
        *("RepetitionPenaltyLogitsProcessor", "EncoderRepetitionPenaltyLogitsProcessor", "TopPLogitsWarper"),
        *("TopKLogitsWarper", "TopHLogitsWarper", "MinPLogitsWarper", "TypicalLogitsWarper", "EpsilonLogitsWarper"),
        *("EtaLogitsWarper", "NoRepeatNGramLogitsProcessor", "EncoderNoRepeatNGramLogitsProcessor"),
        *("SequenceBiasLogitsProcessor", "NoBadWordsLogitsProcessor", "ForcedBOSTokenLogitsProcessor"),
        *("ForcedEOSTokenLogitsProcessor", "InfNanRemoveLogitsProcessor", "ExponentialDecayLengthPenalty"),
        *("LogitNormalization", "SuppressTokensAtBeginLogitsProcessor", "SuppressTokensLogitsProcessor"),
        "WatermarkLogitsProcessor",  # seeds its generator anew in every call
        *("MaxLengthCriteria", "MaxTimeCriteria", "StopStringCriteria", "EosTokenCriteria"),
    }
)
"""Classes of transformers that remember nothing, or only what they would compute again."""

_PLAIN: Final = (type(None), bool, int, float, complex, str, bytes, np.generic, torch.dtype, torch.device)
_TRIALS: Final = 3


def memory_of(processor: object, prompt: Sequence[int], vocab_size: int) -> Memory:
    """What a processor declares, what is known of its class, or else what trying a copy of it shows.

    A copy is tried only if everything that it holds is plain data: then it is pure if calls leave that unchanged, and
    snapshotable if the same state gives the same answers. Whatever holds more (a model, a generator, a function) is
    stateful. A plain function is pure if it closes over nothing that can change. Globals are not looked at.
    """
    declared = getattr(processor, "fastllm_memory", None)
    if declared is not None:
        try:
            return Memory(declared)
        except ValueError as error:
            known = ", ".join(Memory)
            name = type(processor).__name__
            raise RequestError(f"{name}.fastllm_memory is {declared!r}; it must be one of {known}") from error
    kind = type(processor)
    if kind.__module__.startswith("transformers.generation.") and kind.__name__ in TRANSFORMERS:
        return Memory.PURE
    if callable(getattr(processor, "snapshot", None)) and callable(getattr(processor, "restore", None)):
        return Memory.SNAPSHOT
    if isinstance(processor, types.FunctionType):
        return Memory.PURE if _closes_over_constants(processor) else Memory.STATEFUL
    if not _is_its_attributes(kind) or not _plain(vars(processor)):
        return Memory.STATEFUL
    try:
        return _tried(processor, prompt, vocab_size)
    except Exception:  # it did not like the arguments; nothing is known of it
        return Memory.STATEFUL


def take(processor: Any) -> object:
    """The state of a snapshotable processor."""
    return processor.snapshot() if hasattr(processor, "snapshot") else copy.deepcopy(vars(processor))


def put_back(processor: Any, state: Any) -> None:
    """Undo what it has remembered since."""
    if hasattr(processor, "restore"):
        processor.restore(state)
        return
    vars(processor).clear()
    vars(processor).update(copy.deepcopy(state))


def process(processors: Iterable[LogitsProcessor], ids: Tensor, scores: Tensor) -> Tensor:
    """float32[1, V]: what processors make of scores, float32[1, V], behind ids, int64[1, n].

    Raises RequestError if one answers something else.
    """
    for processor in processors:
        answer = processor(ids, scores)
        if not isinstance(answer, Tensor) or answer.shape != scores.shape:
            what = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            name = getattr(processor, "__name__", type(processor).__name__)
            raise RequestError(f"processors: {name} answers {what}, not scores of shape {tuple(scores.shape)}")
        scores = answer.to(torch.float32)
    return scores


def absorbed(request: Request) -> Controls:
    """A request's controls, with the first of its processors as settings where the core does the same itself.

    Only as long as the order of transformers is kept: biases, the repetition penalty, then what forbids tokens.
    """
    controls = request.controls
    for processor in controls.processors:
        change = _setting(processor, controls, request)
        if change is None:
            break
        controls = replace(controls, processors=controls.processors[1:], **change)
    return controls


def refuse_sharing(requests: Iterable[Request], vocab_size: int) -> None:
    """Raise RequestError if two requests share a processor or criterion that remembers what it has seen."""
    users: dict[int, Request] = {}
    for request in requests:
        for each in (*request.controls.processors, *request.stopping_criteria):
            first = users.setdefault(id(each), request)
            if first is not request and memory_of(each, request.prompt, vocab_size) is not Memory.PURE:
                name = getattr(each, "__name__", type(each).__name__)
                raise RequestError(
                    f"{name} may remember what it has seen and cannot serve two texts at once: give a function that "
                    'makes one for each prompt, or set its fastllm_memory = "prefix-pure"'
                )


def _setting(processor: Any, controls: Controls, request: Request) -> Mapping[str, Any] | None:
    """The fields of `Controls` that do what a processor of transformers does; None if there are none."""
    kind = type(processor)
    if not kind.__module__.startswith("transformers.generation."):
        return None
    forbids = controls.no_repeat_ngram_size or controls.bad_words or controls.min_new_tokens
    match kind.__name__:
        case "SequenceBiasLogitsProcessor" if not (controls.sequence_bias or controls.penalises or forbids):
            return {"sequence_bias": tuple((tuple(key), value) for key, value in processor.sequence_bias.items())}
        case "RepetitionPenaltyLogitsProcessor" if not (controls.penalises or forbids):
            ignored = processor.prompt_ignore_length
            nothing = ignored is None or not bool(torch.as_tensor(ignored).any())
            return {"repetition_penalty": processor.penalty} if nothing else None
        case "NoRepeatNGramLogitsProcessor" if not controls.no_repeat_ngram_size:
            return {"no_repeat_ngram_size": processor.ngram_size}
        case "NoBadWordsLogitsProcessor":
            return {"bad_words": (*controls.bad_words, *(tuple(words) for words in processor.sequence_bias))}
        case "SuppressTokensLogitsProcessor":
            return {"bad_words": (*controls.bad_words, *((int(token),) for token in processor.suppress_tokens))}
        case "MinLengthLogitsProcessor" if _ends(processor) == request.eos_token_ids:
            missing = processor.min_length - len(request.prompt)
            return {"min_new_tokens": max(controls.min_new_tokens, missing)}
        case "MinNewTokensLengthLogitsProcessor" if _ends(processor) == request.eos_token_ids:
            least = processor.min_new_tokens + processor.prompt_length_to_skip - len(request.prompt)
            return {"min_new_tokens": max(controls.min_new_tokens, least)}
    return None


def _ends(processor: Any) -> frozenset[int]:
    return frozenset(int(token) for token in processor.eos_token_id.reshape(-1))


class _Empty:
    """An object that is its attributes and nothing else."""


def _is_its_attributes(kind: type) -> bool:
    """Whether an object of this class has no slots, nothing that C keeps, and no container that its class shares."""
    shared = (
        value
        for parent in kind.__mro__
        for name, value in vars(parent).items()
        if not (name.startswith("__") and name.endswith("__"))
    )
    mutable = (list, dict, set, bytearray, np.ndarray, Tensor)
    return kind.__basicsize__ == _Empty.__basicsize__ and not any(isinstance(value, mutable) for value in shared)


def _closes_over_constants(function: types.FunctionType) -> bool:
    held = [cell.cell_contents for cell in function.__closure__ or ()]
    held += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    return not vars(function) and all(_constant(value) for value in held)


def _constant(value: object) -> bool:
    if isinstance(value, tuple | frozenset):
        return all(_constant(part) for part in value)
    return isinstance(value, (*_PLAIN, Tensor))


def _plain(value: object) -> bool:
    if isinstance(value, tuple | list | set | frozenset):
        return all(_plain(part) for part in value)
    if isinstance(value, dict):
        return all(_plain(key) and _plain(part) for key, part in value.items())
    return isinstance(value, (*_PLAIN, np.ndarray)) or type(value) is Tensor


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    return bool(one == other)


def _tried(processor: Any, prompt: Sequence[int], vocab_size: int) -> Memory:
    """Call two copies alike, with growing prefixes, and compare what they answer and what they then hold."""
    one, other = copy.deepcopy(processor), copy.deepcopy(processor)
    generator = torch.Generator().manual_seed(0)
    unchanged = True
    for length in range(_TRIALS):
        more = torch.randint(vocab_size, (length,), generator=generator)
        ids = torch.cat([torch.tensor(prompt), more])[None]
        scores = torch.randn(1, vocab_size, generator=generator)
        before = copy.deepcopy(vars(one))
        if not _same(one(ids.clone(), scores.clone()), other(ids.clone(), scores.clone())):
            return Memory.STATEFUL
        if not _same(vars(one), vars(other)):
            return Memory.STATEFUL
        unchanged &= _same(before, vars(one))
    return Memory.PURE if unchanged else Memory.SNAPSHOT
