"""The object that `model.generate(custom_generate=...)` calls."""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import torch

from ..config import Config
from ..controls import Controls
from ..errors import RequestError
from ..pipeline import Pipeline, load
from ..randomness import sample_seed
from ..report import RunReport
from ..request import Request
from . import answer, criteria, processors
from .feed import Feed
from .fields import check, refusal
from .handover import Handover
from .inputs import PaddedRow, rows_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

    from ..rows import Event

UNKNOWN_TO_US: Final = ("assistant_model", "assistant_tokenizer", "synced_gpus")
"""Arguments of `generate` that are for its own loops."""


class CustomGenerate:
    """Decodes what `generate` has prepared, with a pipeline that is built around the model at its first call.

    Thread-safe, as the pipeline is. Also a context manager, which closes it.
    """

    def __init__(
        self,
        method: str | None = None,
        *,
        config: Config | str | Path | Mapping[str, Any] | None = None,
        tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> None:
        """See `custom_generate`."""
        self._settings: dict[str, Any] = {"config": config, "trust_remote_code": trust_remote_code, **options}
        self._method, self._tokenizer = method, tokenizer
        self._pipelines: dict[int, tuple[object, Pipeline]] = {}
        self._lock = threading.Lock()
        self.reports: tuple[RunReport, ...] = ()
        """Why the rows of the last call were fast or slow."""

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: Sequence[Any],
        stopping_criteria: Sequence[Any],
        generation_config: GenerationConfig,
        tokenizer: PreTrainedTokenizerBase | None = None,
        seed: int | None = None,
        handed_over: Mapping[str, Any] | None = None,
        **arguments: Any,
    ) -> Any:
        """What `generate` would return.

        input_ids: int64[B, L], padded on the left.  seed: of the sampled texts; by default drawn from torch's
        generator, so that `torch.manual_seed` counts.  handed_over: see `handover`.  arguments: of the model's forward.
        Raises RequestError if something is asked that cannot be honoured.
        """
        handed = dict(handed_over or {})
        for name in ("streamer", *UNKNOWN_TO_US):
            handed.setdefault(name, arguments.pop(name, None))
        check(generation_config, model.generation_config)
        for name in UNKNOWN_TO_US:
            if handed[name] is not None and handed[name] is not False:
                raise refusal(name, handed[name], "it drafts and runs forwards by its own method")
        if model.config.is_encoder_decoder:
            raise RequestError(f"{type(model).__name__} is an encoder-decoder; fastllm decodes causal LMs only")
        if model.training:
            raise RequestError(
                "the model is in training mode, in which its dropout is at work: call model.eval() first"
            )
        for name, cache in handed.get("caches", {}).items():
            raise refusal(name, cache, "its cache is its own; give the whole prompt instead")
        rows = rows_of(input_ids, arguments)
        call = Call(model, rows, input_ids, logits_processor, stopping_criteria, generation_config, seed)
        return call.run(self, self.pipeline(model, tokenizer), handed["streamer"])

    __signature__ = Handover(__call__)

    def pipeline(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> Pipeline:
        """The pipeline around a model, which is built once; and again if the model was changed."""
        state = _state(model)
        with self._lock:
            held = self._pipelines.get(id(model))
            if held is not None and held[0] == state:
                return held[1]
            if held is not None:
                held[1].close()
            own = self._tokenizer if self._tokenizer is not None else tokenizer
            pipeline = load(model, self._method, tokenizer=own, **self._settings)
            self._pipelines[id(model)] = state, pipeline
            return pipeline

    def close(self) -> None:
        """Close the pipelines, and let go of the models."""
        while self._pipelines:
            self._pipelines.popitem()[1][1].close()

    def __enter__(self) -> Self:
        """The object itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()


class Call:
    """One call of `generate`."""

    def __init__(
        self,
        model: PreTrainedModel,
        rows: list[PaddedRow],
        input_ids: Tensor,
        logits_processor: Sequence[Any],
        stopping_criteria: Sequence[Any],
        config: GenerationConfig,
        seed: int | None,
    ) -> None:
        """As in `CustomGenerate.__call__`; rows: the prompts of input_ids."""
        self.model, self.rows, self.input_ids, self.config = model, rows, input_ids, config
        self.samples = config.num_return_sequences or 1
        self.ends = criteria.split(stopping_criteria)
        self.sampling, self.processors = processors.split(logits_processor, sample=bool(config.do_sample))
        self.seed = seed
        if seed is None and config.do_sample:
            self.seed = int(torch.randint(2**63 - 1, ()).item())
        self.dictionary = bool(config.return_dict_in_generate)
        self.scores = self.dictionary and bool(config.output_scores)
        self.keep_logits = self.scores or (self.dictionary and bool(config.output_logits))
        self.unused = answer.unused(logits_processor) if self.scores else None
        self.pad = self._pad()

    def _pad(self) -> int | None:
        """What a text that has ended is padded with; None if it goes on until the last has ended."""
        if not self.ends.pads:
            return None
        pad = self.config._pad_token_tensor
        if pad is None:
            raise RequestError("pad_token_id: texts that end are padded; give it, or set eos_token_id")
        return int(pad)

    def run(self, owner: CustomGenerate, pipeline: Pipeline, streamer: Any) -> Any:
        """Decode, feed the streamer, and answer."""
        feed = None if streamer is None else Feed(streamer, self.pad)
        texts: list[list[int]] = [[] for _ in self.rows]
        kept: list[list[Tensor]] = [[] for _ in self.rows]
        ended = [False] * len(self.rows)
        reports: dict[int, RunReport] = {}
        with closing(self._events(pipeline, texts)) as events:  # a streamer that raises frees the rows
            for index, event in events:
                texts[index] += event.tokens
                if event.logits is not None:
                    kept[index].append(event.logits)
                if event.report is not None:
                    ended[index] = True
                    reports.setdefault(index, event.report)
                if feed is not None:
                    feed.show(texts, ended)
        owner.reports = tuple(reports[index] for index in range(len(self.rows)))
        if feed is not None:
            feed.end()
        whole = answer.sequences(self.input_ids, texts, self.pad)
        if not self.dictionary:
            return whole
        logits = None
        if self.keep_logits:
            logits = answer.by_step(self.model, self.rows, whole, texts, [torch.cat(parts) for parts in kept])
        return answer.with_scores(self.config, whole, logits, self.unused)

    def _events(self, pipeline: Pipeline, texts: Sequence[Sequence[int]]) -> Generator[tuple[int, Event], None, None]:
        """What happens to every row of the batch. texts: what they have so far."""
        requests, samples = self._requests(pipeline)
        yield from pipeline.events(requests, samples)
        short, resumed = self._tails(requests, samples, texts)
        for index, event in pipeline.events(resumed) if resumed else ():
            yield short[index], event

    def _requests(self, pipeline: Pipeline) -> tuple[list[Request], int]:
        """The engine's requests, and how many rows each stands for."""
        made = [self._request(row, pipeline) for row in self.rows]
        if self.processors or self.ends.rest:  # which have a state of their own in every row
            return made, 1
        return made[:: self.samples], self.samples

    def _request(self, row: PaddedRow, pipeline: Pipeline) -> Request:
        vocab_size = pipeline.target.vocab_size
        largest = max(row.prompt)
        if largest >= vocab_size or min(row.prompt) < 0:
            raise RequestError(f"input_ids: token id {largest} does not exist: the vocabulary has {vocab_size} entries")
        rest = [processors.for_row(one, row, self.input_ids, self.samples, vocab_size) for one in self.processors]
        ends = [criteria.for_row(one, row, self.input_ids, scores_kept=self.scores) for one in self.ends.rest]
        prompt, sample = divmod(row.index, self.samples)
        return Request(
            prompt=row.prompt,
            max_new_tokens=self._room(row, pipeline),
            sampling=self.sampling,
            seed=None if self.seed is None else sample_seed(self.seed + prompt, sample),
            eos_token_ids=self.ends.eos_token_ids,
            controls=Controls(processors=tuple(rest)),
            stopping_criteria=tuple(ends),
            keep_logits=self.keep_logits,
        )

    def _room(self, row: PaddedRow, pipeline: Pipeline) -> int:
        """New tokens that a row may have."""
        if self.ends.max_length is not None:
            return max(1, self.ends.max_length - self.input_ids.shape[1])
        limit = pipeline.target.context_length
        if limit is None:
            raise RequestError("max_length: nothing limits the text; give max_new_tokens")
        return limit - len(row.prompt)

    def _tails(
        self, requests: Sequence[Request], samples: int, texts: Sequence[Sequence[int]]
    ) -> tuple[list[int], list[Request]]:
        """Where nothing pads, texts that have ended go on until the last one has: which, and their requests."""
        most = max(map(len, texts))
        short = [index for index, text in enumerate(texts) if len(text) < most and not self.ends.pads]
        resumed = []
        for index in short:
            request = requests[index // samples]
            seed = request.seed if request.seed is None else sample_seed(request.seed, index % samples)
            text = texts[index]
            resumed.append(
                replace(
                    request,
                    prompt=(*request.prompt, *text),
                    max_new_tokens=most - len(text),
                    seed=seed,
                    stopping_criteria=(),
                )
            )
        return short, resumed


def custom_generate(
    method: str | None = None,
    *,
    config: Config | str | Path | Mapping[str, Any] | None = None,
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
    trust_remote_code: bool = False,
    **options: Any,
) -> CustomGenerate:
    """What makes `model.generate` of transformers faster: an object for its argument `custom_generate`.

        fast = custom_generate("speculative", draft_model="small-model")
        model.generate(**inputs, max_new_tokens=100, custom_generate=fast)

    The text is what `generate` would write: its settings, processors, criteria and streamers are honoured, or refused
    by name. The pipeline is built at the first call and kept for the next, so make one object and use it again.

    method, config, options: as in `load`.  tokenizer: for methods that need the model's; else what `generate` is given.
    """
    return CustomGenerate(method, config=config, tokenizer=tokenizer, trust_remote_code=trust_remote_code, **options)


def _state(model: PreTrainedModel) -> tuple[object, ...]:
    """What tells a model that was changed since: moved, cast, trained, its modules replaced, its adapters switched."""
    parameters = tuple(
        (id(parameter), _address(parameter), 0 if parameter.is_inference() else parameter._version)
        for parameter in model.parameters()
    )
    modules = tuple((id(module), *_flags(module)) for module in model.modules())
    return model.device, model.dtype, parameters, modules


def _address(parameter: Tensor) -> int:
    try:
        return parameter.data_ptr()
    except RuntimeError:  # a quantised weight may have none of its own
        return 0


def _flags(module: torch.nn.Module) -> tuple[object, ...]:
    """The plain attributes of a module, such as which adapters are active, and how many hooks it has."""
    plain = tuple(
        (name, repr(value) if isinstance(value, list) else value)
        for name, value in vars(module).items()
        if isinstance(value, bool | int | str | list)
    )
    return (*plain, len(module._forward_hooks), len(module._forward_pre_hooks))
