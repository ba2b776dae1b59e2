"""The text of a row as it grows: incremental decoding and stop strings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CONTEXT = 6
"""Tokens of the prompt that the first new token is decoded after: many tokenizers strip a space at the very start."""
_BROKEN = "\ufffd"
"""What a decoder shows for bytes that do not form a character yet."""


class Transcript:
    """Decodes tokens one by one, as they follow the prompt, and finds stop strings.

    The text is what decoding prompt and output together would show after the prompt. A character whose bytes are not
    all there is held back. Special tokens are not shown.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], stop: Sequence[str] = ()) -> None:
        """prompt: tokens before the text.  stop: strings at which it ends."""
        self.text = ""
        """All text so far, cut before a stop string."""
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._tail = list(prompt[-_CONTEXT:])
        self._shown = len(self._tail)
        self._released = 0

    def add(self, token: int) -> bool:
        """Append a token. Returns True if it completes a stop string: the text is then cut before the earliest one."""
        self._tail.append(token)
        before, after = self._decode(self._tail[: self._shown]), self._decode(self._tail)
        if len(after) <= len(before) or after.endswith(_BROKEN):
            return False
        # What was just shown is the context of what follows.
        self._tail = self._tail[self._shown :]
        self._shown = len(self._tail)
        return self._append(after[len(before) :])

    def _append(self, piece: str) -> bool:
        searched = max(0, len(self.text) - max((len(stop) for stop in self._stop), default=1) + 1)
        self.text += piece
        hits = [at for stop in self._stop if (at := self.text.find(stop, searched)) >= 0]
        if hits:
            self.text = self.text[: min(hits)]
        return bool(hits)

    def finish(self) -> str:
        """No token follows: show what was held back. Returns the whole text."""
        before, after = self._decode(self._tail[: self._shown]), self._decode(self._tail)
        if len(after) > len(before):
            self._append(after[len(before) :])
        return self.text

    def release(self, *, last: bool = False) -> str:
        """The text that is new since the last call and can no longer turn out to be part of a stop string."""
        end = len(self.text) if last else len(self.text) - self._pending()
        piece, self._released = self.text[self._released : end], max(self._released, end)
        return piece

    def _pending(self) -> int:
        """Length of the longest end of the text that begins a stop string."""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        sizes = range(min(longest, len(self.text)), 0, -1)
        return next((size for size in sizes if any(stop.startswith(self.text[-size:]) for stop in self._stop)), 0)

    def _decode(self, tokens: Sequence[int]) -> str:
        return cast(
            "str",
            self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False),
        )


def text_of(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], tokens: Iterable[int], stop: Sequence[str] = ()
) -> str:
    """The text of finished output, exactly as a stream of it would have shown."""
    transcript = Transcript(tokenizer, prompt, stop)
    for token in tokens:
        if transcript.add(token):
            return transcript.text
    return transcript.finish()
