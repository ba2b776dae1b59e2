"""Feeding a streamer as `generate` feeds it: token by token, one of every row at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers.generation.streamers import BaseStreamer


class Feed:
    """Hands a streamer what all rows have. It has seen the prompts already."""

    def __init__(self, streamer: BaseStreamer, pad: int | None) -> None:
        """pad: what a row that has ended goes on with; None if it waits for its own next token."""
        self.streamer, self.pad = streamer, pad
        self._given = 0

    def show(self, texts: Sequence[Sequence[int]], ended: Sequence[bool]) -> None:
        """texts: of every row so far.  ended: which of them are complete."""
        while True:
            step = self._given
            ready = [len(text) > step for text in texts]
            if not any(ready) or not all(
                has or (done and self.pad is not None) for has, done in zip(ready, ended, strict=True)
            ):
                return
            tokens = [text[step] if has else self.pad for text, has in zip(texts, ready, strict=True)]
            self.streamer.put(torch.tensor(tokens))
            self._given += 1

    def end(self) -> None:
        """All rows have ended."""
        self.streamer.end()
