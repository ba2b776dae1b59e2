"""transformers as a peer: `generate` of the very module that fastllm runs, plain and with every kind of assistance."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging as transformers_logging

from fastllm_core import FastllmError, LoadedModel, load

from ..arm import Arm, Job, JobRun, NotApplicable, RowRun, Step
from ..device import synchronize

if TYPE_CHECKING:
    from torch import Tensor

    from . import Pair

PLAIN: Final = "transformers"
TRIAL: Final = 8
"""Tokens of the trial by which an arm shows that it can run at all."""
NEVER: Final = 1 << 30
"""No token's id: prompt look-up of transformers before 5.15 fails where nothing ends a text."""


def arms(pair: Pair) -> Iterator[tuple[str, Callable[[], Arm]]]:
    """Plain, then assisted by a model, by look-up, by a model of another tokenizer, and by its own early exit."""
    yield PLAIN, partial(Theirs, PLAIN, pair)
    yield f"{PLAIN} assisted", partial(_assisted, pair)
    yield f"{PLAIN} lookup", partial(_lookup, pair)
    yield f"{PLAIN} cross-tokenizer", partial(_cross, pair)
    yield f"{PLAIN} early exit", partial(_early_exit, pair)


class Theirs:
    """One way of calling `generate`."""

    kind = "transformers"

    def __init__(
        self,
        label: str,
        pair: Pair,
        *,
        arguments: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        drafter: LoadedModel | None = None,
    ) -> None:
        """arguments: what `generate` is given.  settings: what the generation config says beyond the job's.

        drafter: the assistant, whose generation config is this arm's own.
        """
        self.label, self.pair, self.drafter = label, pair, drafter
        self.arguments, self.settings = dict(arguments or {}), dict(settings or {})

    def unable(self, batch: int, temperature: float) -> str | None:
        """Assistance takes one prompt."""
        assisted = bool(self.arguments or self.settings)
        return "transformers assists one prompt at a time" if assisted and batch > 1 else None

    def run(self, job: Job) -> JobRun:
        """Call `generate`, noting when each token came through its streamer."""
        target: Any = self.pair.owner.target.model
        device = self.pair.owner.device.device
        ids, mask = _padded(job.prompts, device)
        synchronize(device)
        start = time.perf_counter()
        watch = Watch(len(job.prompts), start)
        with self._configured(job), torch.random.fork_rng():
            torch.manual_seed(job.seed)
            target.generate(ids, attention_mask=mask, streamer=watch, **self.arguments)
        synchronize(device)
        return JobRun(watch.rows, time.perf_counter() - start)

    def describe(self) -> Mapping[str, Any]:
        """How `generate` is called."""
        called = {key: getattr(value, "name_or_path", value) for key, value in self.arguments.items()}
        about = {"method": "generate", "arguments": {key: str(value) for key, value in called.items()}}
        if self.drafter is not None:
            about["drafter"] = self.drafter.name
        return {**about, "settings": dict(self.settings)}

    def close(self) -> None:
        """Drop the assistant."""
        self.drafter = None
        self.arguments.clear()

    @contextmanager
    def _configured(self, job: Job) -> Iterator[None]:
        """The job's settings as the models' own, since `generate` fills what is unset from these; then put back.

        Early exit sets the number of layers and would leave it so if it failed.
        """
        target: Any = self.pair.owner.target.model
        kept, layers = target.generation_config, target.config.num_hidden_layers
        verbosity = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity_error()
        target.generation_config = _generation_config(job, self.settings)
        if self.drafter is not None:
            drafter: Any = self.drafter.model
            drafter.generation_config = _generation_config(job, _constant(self.pair))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            target.generation_config, target.config.num_hidden_layers = kept, layers
            transformers_logging.set_verbosity(verbosity)


class Watch(BaseStreamer):
    """Notes when tokens come; the first call brings the prompt."""

    def __init__(self, rows: int, start: float) -> None:
        """rows: prompts side by side.  start: when the job was handed over."""
        self.rows = [RowRun() for _ in range(rows)]
        self.start = start
        self._prompt_seen = False

    def put(self, value: Tensor) -> None:
        """int64[B], a token of each row, or int64[1, n], a round's tokens of the only row."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        now = time.perf_counter() - self.start
        for row, tokens in zip(self.rows, value.reshape(len(self.rows), -1).tolist(), strict=True):
            row.steps.append(Step(now, tuple(tokens), accepted=len(tokens) - 1))

    def end(self) -> None:
        """Nothing more comes."""


def _assisted(pair: Pair) -> Theirs:
    if pair.assistant is None:
        raise NotApplicable("no draft model is configured; name one with --assistant")
    drafter = _load(pair, pair.assistant)
    return Theirs(f"{PLAIN} assisted", pair, arguments={"assistant_model": drafter.model}, drafter=drafter)


def _lookup(pair: Pair) -> Theirs:
    return Theirs(f"{PLAIN} lookup", pair, settings={"prompt_lookup_num_tokens": pair.draft_length})


def _cross(pair: Pair) -> Theirs:
    if pair.cross_assistant is None:
        raise NotApplicable("no draft model with another tokenizer is configured; name one with --cross-assistant")
    drafter = _load(pair, pair.cross_assistant)
    tokenizers = {"tokenizer": pair.owner.target.tokenizer, "assistant_tokenizer": drafter.tokenizer}
    arm = Theirs(
        f"{PLAIN} cross-tokenizer", pair, arguments={"assistant_model": drafter.model, **tokenizers}, drafter=drafter
    )
    _try(arm, pair)
    return arm


def _early_exit(pair: Pair) -> Theirs:
    layers = int(pair.owner.target.config.num_hidden_layers)
    layer = pair.early_exit or max(1, layers // 3)
    if layer >= layers:
        raise NotApplicable(f"the model has {layers} layers, so it cannot leave at layer {layer}")
    if not _leaves_early(pair, layer):
        raise NotApplicable("the model runs all its layers whatever its config says, so it cannot leave early")
    arm = Theirs(f"{PLAIN} early exit", pair, settings={"assistant_early_exit": layer, **_constant(pair)})
    _try(arm, pair)
    return arm


@torch.inference_mode()
def _leaves_early(pair: Pair, layer: int) -> bool:
    """Whether fewer layers in the config change what a forward answers: that is how early exit is done."""
    model: Any = pair.owner.target.model
    body = getattr(model, model.base_model_prefix, None)
    if body is None:
        return False
    ids = torch.tensor([[1, 2, 3]], device=pair.owner.device.device)
    kept = body.config.num_hidden_layers
    whole = model(ids, use_cache=False).logits
    try:
        body.config.num_hidden_layers = layer
        return not torch.equal(model(ids, use_cache=False).logits, whole)
    finally:
        body.config.num_hidden_layers = kept


def _try(arm: Theirs, pair: Pair) -> None:
    """A few tokens, so that what transformers refuses is known before anything is measured."""
    prompt = pair.owner.request([1, 2, 3]).prompt
    try:
        arm.run(Job((prompt,), TRIAL, pair.owner.request(prompt, temperature=0.0).sampling, 0, frozenset()))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise NotApplicable(f"transformers cannot: {type(error).__name__}: {reason}") from error


def _load(pair: Pair, name: str) -> LoadedModel:
    """A copy of a draft model for this arm alone: assisted generation changes the assistant."""
    owner = pair.owner
    dtype = str(owner.target.dtype).removeprefix("torch.")
    try:
        with load(config={"model": name, "method": "plain", "device": owner.device.name, "dtype": dtype}) as pipeline:
            return pipeline.target
    except FastllmError as error:
        raise NotApplicable(" ".join(str(error).split())) from error


def _constant(pair: Pair) -> dict[str, Any]:
    """Drafts of one length, fastllm's longest."""
    return {
        "num_assistant_tokens": pair.draft_length,
        "num_assistant_tokens_schedule": "constant",
        "assistant_confidence_threshold": 0.0,
    }


def _generation_config(job: Job, settings: Mapping[str, Any]) -> GenerationConfig:
    sampling = job.sampling
    drawn = {
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p or None,
    }
    return GenerationConfig(
        max_new_tokens=job.max_new_tokens,
        eos_token_id=sorted(job.eos) or [NEVER],
        pad_token_id=min(job.eos, default=0),
        **(drawn if sampling.temperature > 0 else {"do_sample": False}),
        **settings,
    )


def _padded(prompts: Sequence[tuple[int, ...]], device: torch.device) -> tuple[Tensor, Tensor]:
    """int64[B, T] padded at the left, and its mask."""
    longest = max(map(len, prompts))
    ids = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
