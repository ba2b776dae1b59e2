"""What `generate` gives back: sequences, scores and logits in the classes and shapes of transformers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import LogitsProcessorList
from transformers.generation import logits_process as hf
from transformers.generation.utils import GenerateDecoderOnlyOutput

from .processors import copied

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import GenerationConfig, PreTrainedModel

    from .inputs import PaddedRow


def sequences(input_ids: Tensor, texts: Sequence[Sequence[int]], pad: int | None) -> Tensor:
    """int64[B, L + T]: prompts and texts, the shorter ones padded on the right.

    input_ids: int64[B, L].
    """
    most = max(map(len, texts))
    lines = [[*text, *[pad] * (most - len(text))] for text in texts]
    return torch.cat([input_ids, torch.tensor(lines, dtype=torch.long, device=input_ids.device)], dim=1)


def with_scores(
    config: GenerationConfig, whole: Tensor, logits: Sequence[Tensor] | None, processors: LogitsProcessorList | None
) -> GenerateDecoderOnlyOutput:
    """The dictionary. No key/value cache is in it.

    whole: int64[B, L + T].  logits: T times float32[B, V], if they were asked for.
    processors: unused ones, if the scores were asked for; they are called once for every token, as in `generate`.
    """
    scores = None
    if logits is not None and processors is not None:
        start = whole.shape[1] - len(logits)
        read: Any = processors  # its annotation wants a LongTensor by that name
        scores = tuple(read(whole[:, : start + step], line.clone()) for step, line in enumerate(logits))
    kept = tuple(logits) if logits is not None and config.output_logits else None
    return GenerateDecoderOnlyOutput(sequences=whole, scores=scores, logits=kept)  # type: ignore[arg-type]


def by_step(
    model: PreTrainedModel,
    rows: Sequence[PaddedRow],
    whole: Tensor,
    texts: Sequence[Sequence[int]],
    kept: Sequence[Tensor],
) -> list[Tensor]:
    """The logits of every step: T times float32[B, V].

    whole: int64[B, L + T].  kept: float32[len(text), V] of each row. What a row lacks, because it ended earlier, is
    what the model says behind its padding: one forward more.
    """
    steps = max(map(len, texts))
    lines = []
    for row, text, logits in zip(rows, texts, kept, strict=True):
        line = logits.to(whole.device)
        if len(text) < steps:
            ids = whole[row.index : row.index + 1, len(row.padding) : -1]
            said: Any = model(input_ids=ids.to(model.device), use_cache=False)
            line = torch.cat([line, said.logits[0, len(text) - steps :].float().to(whole.device)])
        lines.append(line)
    return list(torch.stack(lines, dim=1).unbind(0))


def unused(processors: Sequence[Callable[..., Any]]) -> LogitsProcessorList:
    """Copies of processors that have not been called yet, each with a state of its own. Raises RequestError."""
    copies = LogitsProcessorList()
    for processor in processors:
        if type(processor) is hf.UnbatchedClassifierFreeGuidanceLogitsProcessor:  # which holds the model
            own: Any = copy.copy(processor)
            own.unconditional_context = dict(own.unconditional_context)
            copies.append(own)
        else:
            copies.append(copied(processor, "output_scores"))
    return copies
