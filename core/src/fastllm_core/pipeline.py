"""What a person holds: a model, a method and `generate`."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack, cast

from .asking import controls_of, made_for
from .assembly import assemble
from .backend import Backend, make_backend
from .compose import Selection, select
from .config import Config, config_from, load_config
from .device import Device, select_device
from .errors import RequestError
from .generation import Generation, Piece, Settings
from .inference import without_gradients
from .models import LoadedModel, load_model
from .processors import refuse_sharing
from .prompts import Prompt, encode, is_batch
from .request import Request, SamplingParams
from .rows import Event
from .selection import adapters
from .suggest import did_you_mean
from .transcript import Transcript, text_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .protocols import Drafter

DEFAULT_NEW_TOKENS = 256
"""Where neither the caller, the configuration nor the model says how long the text may get."""


class Pipeline:
    """A model and a method, composed; also a context manager, which closes it.

    Thread-safe: threads may generate and stream at once, and then share rounds.
    """

    def __init__(
        self,
        selection: Selection,
        target: LoadedModel,
        device: Device,
        trust_remote_code: bool = False,
        backend: Backend | None = None,
    ) -> None:
        """Compose the pipeline; `load` is the comfortable way here. backend: None is what the configuration says."""
        self.config = selection.config
        self.target = target
        """The target: `.model`, `.tokenizer`, `.name`."""
        self.device = device
        self.method = selection.method
        """The method's name; "plain" if nothing drafts."""
        self._closed = False
        self._lock = threading.RLock()
        self._inbox: dict[int, deque[Event | BaseException]] = {}
        self.backend = backend or make_backend(selection.config, device)
        """How forwards are run."""
        roles, self.engine = assemble(selection, target, device, self.backend, trust_remote_code)
        """The stepper below `generate` and `stream`, for whoever drives rounds himself."""
        self.roles = roles.names
        """Which plugin fills each role."""
        self.lossy = roles.lossy
        """What changes the text or its distribution, in words; empty if nothing does."""
        self.drafter: Drafter | None = roles.drafter
        """The drafter, with a `.model` where it has one; None if decoding is plain."""
        if target.generation.unapplied:
            logging.getLogger("fastllm").warning(
                "%s: its generation_config sets %s, which fastllm does not apply yet",
                target.name,
                ", ".join(target.generation.unapplied),
            )

    def generate(self, prompt: Prompt | Sequence[Prompt], **settings: Unpack[Settings]) -> Any:
        """Continue one prompt (a `Generation`) or a list of them (a list, decoded side by side).

        prompt: text, token ids, or chat messages (`{"role": ..., "content": ...}`), or a list of these.
        settings: see `Settings`; prompt i of a list uses seed + i. With `n`, each answer is a list of n samples.
        Raises RequestError if a prompt or a setting is impossible, before any work is done.
        """
        samples = settings.pop("n", None)
        if samples is not None and samples < 1:
            raise RequestError(f"n must be at least 1, not {samples}")
        prompts = cast("Sequence[Prompt]", prompt) if is_batch(prompt) else [cast("Prompt", prompt)]
        results = self._generate([self.request(one, index=i, **settings) for i, one in enumerate(prompts)], samples)
        return results if is_batch(prompt) else results[0]

    def stream(self, prompt: Prompt, **settings: Unpack[Settings]) -> Iterator[Piece]:
        """Continue one prompt, round by round. Closing the iterator early frees the row.

        The request is checked at once; work starts with the first piece.
        """
        request = self.request(prompt, **settings)
        self._check(request)
        return self._stream(request)

    def events(self, requests: Sequence[Request], samples: int = 1) -> Iterator[tuple[int, Event]]:
        """Decode requests side by side: what each round did, by row; so many rows for each request, one after another.

        Raises as `generate` does, before any work. Closing the iterator early frees the rows.
        """
        with self._rows(requests, samples) as ids:
            live = dict(enumerate(ids))
            while live:
                for index, row in list(live.items()):
                    event = self._next(row)
                    if event.finish_reason is not None:
                        del live[index]
                    yield index, event

    def request(self, prompt: Prompt, *, index: int = 0, **settings: Unpack[Settings]) -> Request:
        """The engine's request for a prompt: settings, then the configuration's, then the model's own defaults."""
        ids = encode(prompt, self.target)
        for name in settings:
            if name not in Settings.__annotations__:
                raise RequestError(f"there is no setting '{name}'{did_you_mean(name, Settings.__annotations__)}")
        if settings.get("n") is not None:
            raise RequestError("n: a request and a stream are one text; take generate, or Engine.add_samples")
        asked = {name: value for name, value in settings.items() if value is not None}
        dumped = self.config.sampling.model_dump()
        defaults = {name: value for name, value in dumped.items() if value is not None and value != {}}
        chosen: dict[str, Any] = {**defaults, **asked}
        stop = chosen.get("stop", ())
        seed = chosen.get("seed")
        eos_token_ids = frozenset() if chosen.get("ignore_eos") else self.target.eos_token_ids
        return Request(
            prompt=tuple(ids),
            max_new_tokens=chosen.get("max_new_tokens", self._default_new_tokens(len(ids))),
            sampling=self._sampling(chosen),
            seed=None if seed is None else seed + index,
            eos_token_ids=eos_token_ids,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            speculate=chosen.get("speculate", True),
            logprobs=chosen.get("logprobs"),
            prompt_logprobs=chosen.get("prompt_logprobs"),
            logprobs_mode=chosen.get("logprobs_mode", "raw"),
            controls=controls_of(chosen, self.target, tuple(ids)),
            stopping_criteria=made_for(chosen.get("stopping_criteria", ()), tuple(ids)),
            controller=chosen.get("controller"),
        )

    def close(self) -> None:
        """Drop every row and let the drafter give back what it holds. Whoever still waits for a row gets an error."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for row in list(self._inbox):
                self.engine.cancel(row)
            if self.drafter is not None:
                self.drafter.close()

    def __enter__(self) -> Self:
        """The pipeline itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    # -- settings --------------------------------------------------------------------------------------------------

    def _default_new_tokens(self, prompt: int) -> int:
        """As many as the model's generation_config says, or DEFAULT_NEW_TOKENS, but no more than fit."""
        wanted = self.target.generation.max_new_tokens or DEFAULT_NEW_TOKENS
        limit = self.target.context_length
        return wanted if limit is None else max(1, min(wanted, limit - prompt))

    def _sampling(self, chosen: Mapping[str, Any]) -> SamplingParams:
        """A temperature of its own turns sampling on or off; what is not said comes from the generation_config."""
        model = self.target.generation
        base = model.sampling()
        if not model.do_sample:  # truncation that the model sets counts as soon as someone asks for sampling
            base = replace(base, top_k=model.top_k or 0, top_p=model.top_p or 1.0, min_p=model.min_p or 0.0)
        fields = ("temperature", "top_k", "top_p", "min_p")
        return replace(base, **{name: chosen[name] for name in fields if name in chosen})

    # -- driving the engine ----------------------------------------------------------------------------------------

    def _check(self, request: Request) -> None:
        if self._closed:
            raise RequestError("the pipeline is closed")
        self.engine.check(request)

    @without_gradients  # once for all steps: each would enter it anew
    def _generate(self, requests: list[Request], samples: int | None = None) -> list[Any]:
        count = samples or 1
        with self._rows(requests, count) as rows:
            results = [self._finish(row, requests[i // count]) for i, row in enumerate(rows)]
        return results if samples is None else [results[i : i + count] for i in range(0, len(results), count)]

    def _finish(self, row: int, request: Request) -> Generation:
        events: list[Event] = []
        while not events or events[-1].finish_reason is None:
            events.append(self._next(row))
        return _generation(request, events, self._text(request, [token for event in events for token in event.tokens]))

    def _text(self, request: Request, tokens: Sequence[int]) -> str:
        tokenizer = self.target.tokenizer
        return "" if tokenizer is None else text_of(tokenizer, request.prompt, tokens, request.stop)

    def _stream(self, request: Request) -> Iterator[Piece]:
        tokenizer = self.target.tokenizer
        transcript = None if tokenizer is None else Transcript(tokenizer, request.prompt, request.stop)
        events: list[Event] = []
        with self._rows([request]) as (row,):
            while True:
                event = self._next(row)
                events.append(event)
                last = event.finish_reason is not None
                text = "" if transcript is None else _shown(transcript, event.tokens, last=last)
                drafted, accepted = sum(event.drafted), event.accepted
                if last:
                    whole = "" if transcript is None else transcript.text
                    result = _generation(request, events, whole)
                    yield Piece(text, event.tokens, result, drafted, accepted, event.logprobs)
                    return
                yield Piece(text, event.tokens, None, drafted, accepted, event.logprobs)

    @contextmanager
    def _rows(self, requests: Sequence[Request], samples: int = 1) -> Iterator[list[int]]:
        """Rows for some requests, so many for each, freed at the end whatever happened."""
        with self._lock:
            for request in requests:
                self._check(request)
            refuse_sharing(requests, self.target.vocab_size)
            rows = [row for request in requests for row in self.engine.add_samples(request, samples)]
            self._inbox.update((row, deque()) for row in rows)
        try:
            yield rows
        finally:
            with self._lock:
                for row in rows:
                    self.engine.cancel(row)
                    del self._inbox[row]

    def _next(self, row: int) -> Event:
        """The row's next event, stepping the engine for everyone until there is one."""
        while True:
            with self._lock:
                if not self._inbox[row]:
                    if not self.engine.holds(row):
                        raise RequestError("the request was cancelled, or its pipeline closed")
                    self._step()
                if self._inbox[row]:
                    event = self._inbox[row].popleft()
                    if isinstance(event, BaseException):
                        raise event
                    return event

    def _step(self) -> None:
        """One step; if it fails, every row that it took down learns why. An interrupt stops the caller in any case."""
        try:
            events = self.engine.step()
        except BaseException as error:
            lost = [row for row, inbox in self._inbox.items() if not self.engine.holds(row) and not _ended(inbox)]
            for row in lost:
                self._inbox[row].append(error)
            if not lost or not isinstance(error, Exception):
                raise
            return
        for event in events:
            if event.row in self._inbox:
                self._inbox[event.row].append(event)


def load(
    model: str | Path | PreTrainedModel | None = None,
    method: str | None = None,
    *,
    config: Config | str | Path | Mapping[str, Any] | None = None,
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
    device: str | None = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
    **options: Any,
) -> Pipeline:
    """Load a model and compose it with a method.

        with fastllm_core.load("demo-100m", "speculative") as pipeline:
            print(pipeline.generate("Once upon a time", max_new_tokens=100).text)

    model: a registered name, a local folder, a hub name, or a loaded causal LM (which is not changed).
    config: a `Config`, a TOML file, or settings as a mapping; by default what `load_config()` finds.
    options: options of the method, such as `draft_model="..."`.
    Raises UserError if something is asked that cannot be, PluginError if a plugin is at fault.
    """
    settings: dict[str, Any] = {"method": method, "device": device, "dtype": dtype}
    if isinstance(model, str | Path):
        settings["model"] = str(model)
    settings = {key: value for key, value in settings.items() if value is not None}
    chosen = configuration(config, settings)
    loaded_model = None if model is None or isinstance(model, str | Path) else model
    if options:
        name = select(chosen, model=loaded_model).method if chosen.method == "auto" else chosen.method
        chosen = configuration(chosen, {f"options.{name}.{key}": value for key, value in options.items()})
    selection = select(chosen, model=loaded_model)
    place = select_device(chosen.device, chosen.dtype, chosen.threads)
    source: Any = chosen.model if loaded_model is None else loaded_model
    target = load_model(
        source,
        tokenizer,
        place,
        revision=chosen.revision,
        trust_remote_code=trust_remote_code,
        adapters=adapters(selection),
    )
    if loaded_model is not None:
        place = replace(place, device=target.device, dtype=target.dtype, name=str(target.device))
    return Pipeline(selection, target, place, trust_remote_code)


def configuration(config: Config | str | Path | Mapping[str, Any] | None, overrides: Mapping[str, Any]) -> Config:
    """A configuration from whatever `load` accepts, with overrides by dotted key on top."""
    if isinstance(config, Config):
        return config_from({**dict(flatten_keys(config.model_dump(exclude_unset=True))), **overrides})
    if isinstance(config, Mapping):
        return config_from({**dict(flatten_keys(config)), **overrides})
    return load_config(config, overrides)


def flatten_keys(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a nested mapping by dotted key."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shown(transcript: Transcript, tokens: Sequence[int], *, last: bool) -> str:
    """Add a round's tokens to a stream's text; returns what may be shown of it now."""
    stopped = any(transcript.add(token) for token in tokens)
    if last and not stopped:
        transcript.finish()
    return transcript.release(last=last)


def _generation(request: Request, events: Sequence[Event], text: str) -> Generation:
    last = events[-1]
    assert last.finish_reason is not None
    assert last.report is not None
    tokens = tuple(token for event in events for token in event.tokens)
    said = tuple(token for event in events for token in event.logprobs)
    return Generation(
        text,
        tokens,
        last.finish_reason,
        request.prompt,
        last.report,
        logprobs=None if request.logprobs is None else said,
        prompt_logprobs=None if request.prompt_logprobs is None else events[0].prompt_logprobs,
    )


def _ended(inbox: deque[Event | BaseException]) -> bool:
    last = inbox[-1] if inbox else None
    return isinstance(last, BaseException) or (last is not None and last.finish_reason is not None)
