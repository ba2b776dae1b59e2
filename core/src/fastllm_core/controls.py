"""What a request asks to be done to the target's logits, before temperature and truncation.

Everything here depends on the tokens before a position and on nothing else, or is a processor of the caller's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from .errors import RequestError

if TYPE_CHECKING:
    from torch import Tensor


class LogitsProcessor(Protocol):
    """What transformers' logits processors are: any callable of this form will do."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores of the next token, changed. input_ids: int64[1, n]; scores: float32[1, V]."""
        ...


class StoppingCriterion(Protocol):
    """What transformers' stopping criteria are: asked after every token whether the text ends with it."""

    def __call__(self, input_ids: Tensor, scores: Any) -> Any:
        """Whether to stop: a bool, or a tensor of one. input_ids: int64[1, n], with the new token; scores: None."""
        ...


@dataclass(frozen=True, slots=True)
class Controls:
    """Changes to the logits, applied in this order, which is transformers'. The defaults change nothing."""

    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()
    """Added to the logit of a sequence's last token wherever the text ends with the tokens before it."""
    repetition_penalty: float = 1.0
    """Logits of tokens of the prompt and the text are divided by it, negative ones multiplied (arXiv:1909.05858)."""
    frequency_penalty: float = 0.0
    """Taken off a token's logit for every time that it was generated."""
    presence_penalty: float = 0.0
    """Taken off the logit of every token that was generated."""
    no_repeat_ngram_size: int = 0
    """No sequence of so many tokens occurs twice in prompt and text together; 0 allows all."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Sequences of tokens that are never completed."""
    min_new_tokens: int = 0
    """No token of `Request.eos_token_ids` before so many tokens were generated."""
    processors: tuple[LogitsProcessor, ...] = ()
    """The caller's own, called last, in order, once for every token of the text with the tokens before it."""
    neutral: bool = field(init=False, repr=False, compare=False)
    """Nothing is changed, but by the caller's processors: looked at once, since every round asks."""

    def __post_init__(self) -> None:
        """Refuse values that mean nothing; lists will do for tuples."""
        biases = tuple((tuple(tokens), bias) for tokens, bias in self.sequence_bias)
        object.__setattr__(self, "sequence_bias", biases)
        object.__setattr__(self, "bad_words", tuple(tuple(words) for words in self.bad_words))
        object.__setattr__(self, "processors", tuple(self.processors))
        if not 0.0 < self.repetition_penalty < math.inf:
            raise RequestError(f"repetition_penalty must be a positive number, not {self.repetition_penalty}")
        for name in ("frequency_penalty", "presence_penalty"):
            if not math.isfinite(getattr(self, name)):
                raise RequestError(f"{name} must be a finite number, not {getattr(self, name)}")
        for name in ("no_repeat_ngram_size", "min_new_tokens"):
            if getattr(self, name) < 0:
                raise RequestError(f"{name} must be 0 or positive, not {getattr(self, name)}")
        for name, sequences in (("bad_words", self.bad_words), ("logit_bias", self.biased)):
            if any(not tokens or min(tokens) < 0 for tokens in sequences):
                raise RequestError(f"{name}: every entry needs at least one token, and no id below 0")
        if any(math.isnan(bias) or bias == math.inf for _, bias in self.sequence_bias):
            raise RequestError("logit_bias: a bias is a finite number, or -inf to forbid a token")
        for processor in self.processors:
            if not callable(processor):
                raise RequestError(f"processors: a {type(processor).__name__} cannot be called")
        named = (self.sequence_bias, self.no_repeat_ngram_size, self.bad_words, self.min_new_tokens)
        object.__setattr__(self, "neutral", not self.penalises and not any(named))

    @property
    def biased(self) -> tuple[tuple[int, ...], ...]:
        """The sequences of `sequence_bias`."""
        return tuple(tokens for tokens, _ in self.sequence_bias)

    @property
    def penalises(self) -> bool:
        """Whether it matters which tokens have occurred."""
        return self.repetition_penalty != 1 or self.frequency_penalty != 0 or self.presence_penalty != 0

    def largest_token(self) -> int:
        """The largest id that is named, -1 if none is."""
        named: Sequence[tuple[int, ...]] = (*self.biased, *self.bad_words)
        return max((max(tokens) for tokens in named), default=-1)
