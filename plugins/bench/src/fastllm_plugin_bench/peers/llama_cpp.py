"""llama.cpp as a peer, through llama-cpp-python: plain and draft-model decoding of the same weights."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from fastllm_core import FastllmError, LoadedModel, load

from ..arm import Arm, Job, JobRun, NotApplicable, RowRun, Step
from . import gguf

if TYPE_CHECKING:
    from . import Pair

PLAIN: Final = "llama.cpp"
CHUNK: Final = 512
"""Tokens that one call reads."""
CONTEXT: Final = 2048
"""Where a model knows no limit."""


def arms(pair: Pair) -> Iterator[tuple[str, Callable[[], Arm]]]:
    """Plain, then with the draft model."""
    yield PLAIN, partial(_plain, pair)
    yield f"{PLAIN} drafted", partial(_drafted, pair)


class Context:
    """A model in llama.cpp with one sequence of tokens in its cache."""

    def __init__(self, loaded: LoadedModel) -> None:
        """Convert a model and load it. Raises NotApplicable if that cannot be done."""
        self.library = _library()
        with TemporaryDirectory(prefix="fastllm-bench-") as folder:
            path = Path(folder) / "model.gguf"
            gguf.write(loaded, path)
            parameters = self.library.llama_model_default_params()
            parameters.n_gpu_layers = 0 if loaded.device.type == "cpu" else 999
            parameters.use_mmap = False  # the file is gone as soon as it is read
            self.model = self.library.llama_model_load_from_file(str(path).encode(), parameters)
        if not self.model:
            raise NotApplicable(f"llama.cpp cannot load '{loaded.name}' as it was converted")
        settings = self.library.llama_context_default_params()
        settings.n_ctx = loaded.context_length or CONTEXT
        settings.n_batch = settings.n_ubatch = CHUNK
        settings.n_threads = settings.n_threads_batch = torch.get_num_threads()
        self.context = self.library.llama_init_from_model(self.model, settings)
        self.memory = self.library.llama_get_memory(self.context)
        self.vocabulary = loaded.vocab_size
        self.batch = self.library.llama_batch_init(CHUNK, 0, 1)
        self.length = 0
        """Tokens in the cache."""

    def crop(self, length: int) -> None:
        """Keep the first tokens of the cache only."""
        self.library.llama_memory_seq_rm(self.memory, 0, length, -1)
        self.length = length

    def read(self, tokens: Sequence[int], wanted: int) -> list[int]:
        """Read tokens behind those in the cache; returns the likeliest next one after each of the last `wanted`."""
        best: list[int] = []
        for start in range(0, len(tokens), CHUNK):
            piece = tokens[start : start + CHUNK]
            asked = max(0, min(len(piece), start + len(piece) - (len(tokens) - wanted)))
            best += self._read_piece(piece, asked)
        return best

    def _read_piece(self, tokens: Sequence[int], wanted: int) -> list[int]:
        batch = self.batch
        batch.n_tokens = len(tokens)
        for index, token in enumerate(tokens):
            batch.token[index], batch.pos[index] = token, self.length + index
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
            batch.logits[index] = index >= len(tokens) - wanted
        if self.library.llama_decode(self.context, batch):
            raise RuntimeError("llama.cpp could not decode; the context may be too short")
        self.length += len(tokens)
        if not wanted:
            return []
        logits = np.ctypeslib.as_array(self.library.llama_get_logits(self.context), (wanted, self.vocabulary))
        return [int(token) for token in logits.argmax(-1)]

    def close(self) -> None:
        """Free everything."""
        if self.context:
            self.library.llama_batch_free(self.batch)
            self.library.llama_free(self.context)
            self.library.llama_model_free(self.model)
            self.context = None


class LlamaCpp:
    """Greedy decoding in llama.cpp, with a drafter or without."""

    kind = "llama.cpp"

    def __init__(self, label: str, target: Context, drafter: Context | None, draft_length: int) -> None:
        """drafter: with the target's vocabulary; None is plain decoding."""
        self.label, self.target, self.drafter, self.draft_length = label, target, drafter, draft_length

    def unable(self, batch: int, temperature: float) -> str | None:
        """One greedy row."""
        if batch > 1:
            return "llama.cpp is run one prompt at a time"
        return "llama.cpp is run greedily only: its sampler draws by another law" if temperature > 0 else None

    def run(self, job: Job) -> JobRun:
        """Decode the prompt."""
        (prompt,) = job.prompts
        start = time.perf_counter()
        row, rounds = RowRun(), 0
        for context in (self.target, self.drafter):
            if context is not None:
                context.crop(0)
        tokens, produced = list(prompt), 0
        self.target.read(prompt[:-1], 0)  # as fastllm does: the prompt's last token is the first root
        while produced < job.max_new_tokens:
            draft = self._draft(tokens, job.max_new_tokens - produced - 1)
            best = self.target.read([tokens[-1], *draft], len(draft) + 1)
            kept = next((at for at, token in enumerate(draft) if token != best[at]), len(draft))
            new = best[: kept + 1]
            end = next((at + 1 for at, token in enumerate(new) if token in job.eos), len(new))
            new = new[:end]
            tokens, produced, rounds = [*tokens, *new], produced + len(new), rounds + 1
            row.steps.append(Step(time.perf_counter() - start, tuple(new), (1,) * len(draft), kept))
            if new[-1] in job.eos:
                break
            self.target.crop(len(tokens) - 1)
            if self.drafter is not None:
                self.drafter.crop(min(self.drafter.length, len(tokens) - 1))
        return JobRun([row], time.perf_counter() - start, rounds)

    def _draft(self, tokens: Sequence[int], room: int) -> list[int]:
        draft: list[int] = []
        if self.drafter is None:
            return draft
        unread = list(tokens[self.drafter.length :])
        while len(draft) < min(self.draft_length, room):
            draft += self.drafter.read(unread, 1)
            unread = draft[-1:]
        return draft

    def describe(self) -> Mapping[str, Any]:
        """What drafts."""
        drafting = {} if self.drafter is None else {"draft_length": self.draft_length}
        return {"method": "draft model" if drafting else "plain", "settings": drafting}

    def close(self) -> None:
        """Free the models."""
        self.target.close()
        if self.drafter is not None:
            self.drafter.close()


def _plain(pair: Pair) -> LlamaCpp:
    return LlamaCpp(PLAIN, Context(pair.owner.target), None, pair.draft_length)


def _drafted(pair: Pair) -> LlamaCpp:
    if pair.assistant is None:
        raise NotApplicable("no draft model is configured; name one with --assistant")
    dtype = str(pair.owner.target.dtype).removeprefix("torch.")
    config = {"model": pair.assistant, "method": "plain", "device": pair.owner.device.name, "dtype": dtype}
    try:
        with load(config=config) as drafter:
            small = Context(drafter.target)
    except FastllmError as error:
        raise NotApplicable(" ".join(str(error).split())) from error
    return LlamaCpp(f"{PLAIN} drafted", Context(pair.owner.target), small, pair.draft_length)


def _library() -> Any:
    """llama-cpp-python, silenced. Raises NotApplicable if it is not installed."""
    try:
        import_module("gguf")
        library: Any = import_module("llama_cpp")
    except ImportError as error:
        raise NotApplicable(
            f"{error.name} is not installed; try: pip install 'fastllm-plugin-bench[llama-cpp]'"
        ) from error
    library.llama_backend_init()
    if not _SILENCE:  # kept, since llama.cpp goes on calling it
        _SILENCE.append(library.llama_log_callback(lambda *_: None))
    library.llama_log_set(_SILENCE[0], ctypes.c_void_p(0))
    return library


_SILENCE: list[Any] = []
