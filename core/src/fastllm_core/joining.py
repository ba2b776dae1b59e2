"""How a row joins: what a request may ask for, and how its prompt is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import logprobs
from .controllers import CONTROLLERS
from .deciding import follows
from .errors import ContextLengthError, RequestError
from .history import History
from .prefill import read, read_and_score
from .processors import memory_of
from .report import RunReport
from .rows import LiveRow, SharedPrompt
from .transcript import Transcript

if TYPE_CHECKING:
    from .engine import Parts
    from .protocols import Drafter
    from .request import Request


def check(request: Request, parts: Parts, context_length: int | None) -> None:
    """Raise RequestError if a request can never be served: ContextLengthError if it does not fit the context."""
    if request.stop and parts.tokenizer is None:
        raise RequestError("stop: stop strings need a tokenizer, and the model was loaded without one")
    vocab, largest = parts.network.vocab_size, request.controls.largest_token()
    if largest >= vocab:
        raise RequestError(
            f"logit_bias, bad_words: token id {largest} does not exist: the vocabulary has {vocab} entries"
        )
    _check_controller(request.controller, parts.drafter)
    prompt = len(request.prompt)
    if context_length is not None and prompt + request.max_new_tokens > context_length:
        room = context_length - prompt
        hint = f"at most {room} new tokens fit" if room > 0 else "shorten the prompt"
        raise ContextLengthError(
            f"the prompt's {prompt} tokens and max_new_tokens = {request.max_new_tokens} exceed the model's "
            f"context of {context_length}: {hint}"
        )


def _check_controller(name: str | None, drafter: Drafter | None) -> None:
    if name is not None and name not in CONTROLLERS:
        raise RequestError(f"controller: '{name}' does not exist; choose one of {', '.join(CONTROLLERS)}")
    if name == "threshold" and drafter is not None and not drafter.heeds_thresholds:
        raise RequestError(
            "controller: 'threshold' ends a draft where the drafter is unsure, and this one does not tell"
        )


def new_row(row_id: int, request: Request, seed: int, shared: SharedPrompt | None, parts: Parts) -> LiveRow:
    """A row with what its request makes it remember."""
    row = LiveRow(row_id, request, list(request.prompt), seed, report=RunReport(lossy=parts.lossy), shared=shared)
    controls, network = request.controls, parts.network
    if not controls.neutral or controls.processors or request.stopping_criteria:
        row.history, row.device = History(request.prompt, request.max_new_tokens), network.device
    if not follows(parts.acceptor):
        row.memories = tuple(memory_of(each, request.prompt, network.vocab_size) for each in controls.processors)
    if request.stop:
        assert parts.tokenizer is not None
        row.transcript = Transcript(parts.tokenizer, request.prompt, request.stop)
    return row


def read_chunk(row: LiveRow, most: int, parts: Parts) -> int:
    """The target, then the drafter, read the prompt's next tokens (all but its last one). Returns how many."""
    drafter, start = parts.drafter, row.prefilled
    stop = min(start + most, row.prompt_length - 1)
    with parts.clock.phase("prefill"):
        wanted = drafter.hidden_layers if drafter else ()
        where = (parts.network, parts.cache, row.slot, row.tokens[start:stop], start)
        if row.request.prompt_logprobs is None:
            hidden = read(*where, hidden_layers=wanted)
        else:
            hidden, logits = read_and_score(*where, hidden_layers=wanted)
            foreseen = row.tokens[start + 1 : stop + 1]
            row.prompt_logprobs += logprobs.of_prompt(logits, foreseen, row.request.prompt_logprobs)
        if drafter and row.request.speculate:
            drafter.prefill(row, start, stop, hidden)
    row.prefilled = stop
    if row.shared is not None:
        row.shared.keep(start, stop, hidden, last=row.ready)
    return stop - start


def copy_prompt(source: LiveRow, row: LiveRow, parts: Parts) -> None:
    """Begin with the rows of the target's cache, and of the drafter's, that another row of the prompt has."""
    drafter, length = parts.drafter, row.prompt_length - 1
    assert row.shared is not None
    with parts.clock.phase("prefill"):
        parts.cache.copy(source.slot, row.slot, length)
        if drafter and row.request.speculate:
            if drafter.copy(source, row):
                for cache in parts.drafter_caches:
                    cache.copy(source.slot, row.slot, min(length, cache.lengths[source.slot]))
            else:
                for start, stop, hidden in row.shared.hidden:
                    drafter.prefill(row, start, stop, hidden)
    row.prefilled, row.prompt_logprobs = length, source.prompt_logprobs
    row.shared.got()
