"""How often a skipped model says what the whole model wrote, in one forward and without a decode loop.

Shapes: B texts, C tokens of the longest continuation, T key/value slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastllm_core import Inputs, Network, SlotCache, read

if TYPE_CHECKING:
    from fastllm_core import LoadedModel

    from ..skipset import SkipSet


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt and what the whole model greedily wrote after it, as token ids."""

    prompt: tuple[int, ...]
    continuation: tuple[int, ...]


class Agreement:
    """Acceptance of a skip set under greedy decoding, teacher-forced: deterministic, and as wide as the texts are long.

    Each text is cut into drafts of a few tokens. A row sees what a row of a real draft would see: the whole model's
    keys and values up to the draft's start, and behind it the skipped model's own. The whole model's are stored once.
    """

    def __init__(self, target: LoadedModel, network: Network, texts: Sequence[Text], length: int) -> None:
        """target, network: the model and its forward port, which is only asked how the family is run.

        texts: what to compare with.  length: tokens of a draft.
        """
        # A new port for every set, on the same weights: the views of hundreds of sets would pile up in one.
        self._port = partial(Network, target, adapters=(network.adapter,))
        port = self._port()
        self.device = port.device
        longest = max(len(text.prompt) + len(text.continuation) for text in texts)
        count = max(len(text.continuation) for text in texts)
        self.cache = SlotCache(port)
        behind = self.cache.extent(longest)  # where the skipped model's rows begin
        self.extent = self.cache.extent(behind + count)
        self.cache.reserve(len(texts), self.extent)
        for slot, text in enumerate(texts):
            read(port, self.cache, slot, [*text.prompt, *text.continuation[:-1]], 0)
        self.wanted = self._padded([text.continuation for text in texts], -1)
        self.inputs = self._rows(texts, behind, count, length)

    def of(self, skipped: SkipSet) -> float:
        """Share of the continuations' tokens that the skipped model would have drafted, 0..1."""
        port = self._port()
        passage = port.whole._replace(skip_attention=skipped.attention, skip_mlp=skipped.mlp)
        with torch.inference_mode():
            layers = self.cache.layers(slice(0, len(self.wanted)), self.extent)
            logits = port.eager(passage, self.inputs, layers).logits
        assert logits is not None
        drafted = logits.argmax(-1)
        counted = self.wanted >= 0
        return float((drafted == self.wanted)[counted].float().mean())

    def _rows(self, texts: Sequence[Text], behind: int, count: int, length: int) -> Inputs:
        """Row i of a text reads the token before token i of its continuation, in draft i // length."""
        at = torch.arange(count, device=self.device)
        slots = torch.arange(self.extent, device=self.device)
        starts = torch.tensor([len(text.prompt) - 1 for text in texts], device=self.device)[:, None]
        draft = at // length * length  # the row at which each row's draft begins
        positions = starts + at
        stored = slots < (starts + draft)[:, :, None]
        own = slots - behind
        drafted = (own >= draft[:, None]) & (own <= at[:, None])
        keys = torch.where(own < 0, slots, starts + own)
        tokens = self._padded([(text.prompt[-1], *text.continuation[:-1]) for text in texts], 0)
        return Inputs(
            tokens=tokens,
            hidden=None,
            positions=positions,
            slots=(behind + at).expand(len(texts), -1),
            mask=stored & (slots < behind) | drafted,
            key_positions=keys.expand(len(texts), -1),
        )

    def _padded(self, lines: Sequence[Sequence[int]], filler: int) -> Tensor:
        """int64[B, C]."""
        count = max(map(len, lines))
        rows = [[*line, *[filler] * (count - len(line))] for line in lines]
        return torch.tensor(rows, device=self.device)


def written(pipeline: Any, prompts: Sequence[str], new_tokens: int) -> list[Text]:
    """What a pipeline greedily writes after each prompt, up to where a text ends."""
    texts = pipeline.generate(list(prompts), max_new_tokens=new_tokens, temperature=0.0)
    return [Text(tuple(text.prompt_token_ids), tuple(text.token_ids)) for text in texts]
