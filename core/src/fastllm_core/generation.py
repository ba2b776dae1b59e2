"""What is asked of a pipeline and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from .controls import LogitsProcessor, StoppingCriterion
from .logprobs import TokenLogprob
from .report import RunReport
from .request import LogprobsMode


class Settings(TypedDict, total=False):
    """How to continue a prompt; what is left out or None comes from the configuration, then from the model."""

    max_new_tokens: int | None
    """The most tokens to generate."""
    temperature: float | None
    """0 is greedy; anything above samples."""
    top_k: int | None
    top_p: float | None
    min_p: float | None
    """Truncation, as in `SamplingParams`."""
    seed: int | None
    """The same seed gives the same text."""
    stop: str | Sequence[str] | None
    """Strings at which the text ends, without them."""
    ignore_eos: bool | None
    """Go on past the tokens that end a text."""
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    no_repeat_ngram_size: int | None
    min_new_tokens: int | None
    """As in `Controls`."""
    bad_words: Sequence[str | Sequence[int]] | None
    """What is never written: tokens, or a text, whose tokens at the start of a text and behind a space are meant."""
    logit_bias: Mapping[int | str | tuple[int, ...], float] | None
    """Added to the logits of tokens, by id; by several ids, to the last one behind the others."""
    processors: Sequence[LogitsProcessor] | Callable[[tuple[int, ...]], Sequence[LogitsProcessor]] | None
    """Logits processors, or a function that makes those of a prompt (its token ids): several prompts cannot share one
    that keeps a state."""
    stopping_criteria: Sequence[StoppingCriterion] | Callable[[tuple[int, ...]], Sequence[StoppingCriterion]] | None
    """Stopping criteria, or a function that makes those of a prompt."""
    speculate: bool
    """False decodes this prompt plainly."""
    logprobs: int | None
    """How likely each generated token was, and this many of the most likely ones in its place."""
    prompt_logprobs: int | None
    """The same of the prompt's tokens."""
    logprobs_mode: LogprobsMode | None
    """"raw" (the model's own distribution, the default) or "processed" (the one that was drawn from)."""
    n: int | None
    """Samples of the prompt, which is read once; the answer is then a list. The first is the one that `seed` gives."""
    controller: str | None
    """Who chooses the draft lengths for this prompt, as `draft.controller` does for all."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Where two generations part."""

    position: int
    """The first generated token that is not the same, from 0; the shorter length if one merely ends earlier."""
    near_tie: bool
    """That token won by no more than rounding in one of the two, so that both are right (see `RunReport.near_ties`)."""


@dataclass(frozen=True, slots=True)
class Generation:
    """The continuation of one prompt."""

    text: str
    """What was generated: no prompt, no special tokens, cut before a stop string. Empty without a tokenizer."""
    token_ids: tuple[int, ...]
    """Generated tokens, up to and including the one that ended the text."""
    finish_reason: str
    """"eos", "stop" (a stop string), "criterion" (a stopping criterion) or "length"."""
    prompt_token_ids: tuple[int, ...]
    report: RunReport
    logprobs: tuple[TokenLogprob, ...] | None = None
    """How likely each of `token_ids` was, if `logprobs` was asked for."""
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    """How likely each of `prompt_token_ids` was, if `prompt_logprobs` was asked for; the first is None."""

    def difference(self, other: Generation) -> Difference | None:
        """Where this and another greedy continuation of the same prompt part; None if they are the same."""
        if self.token_ids == other.token_ids:
            return None
        pairs = enumerate(zip(self.token_ids, other.token_ids, strict=False))
        shorter = min(len(self.token_ids), len(other.token_ids))
        at = next((index for index, (mine, yours) in pairs if mine != yours), shorter)
        return Difference(at, any(at in one.report.near_ties_at for one in (self, other)))

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        answer: dict[str, Any] = {
            "text": self.text,
            "token_ids": list(self.token_ids),
            "finish_reason": self.finish_reason,
            "report": self.report.to_dict(),
        }
        if self.logprobs is not None:
            answer["logprobs"] = [token.to_dict() for token in self.logprobs]
        if self.prompt_logprobs is not None:
            answer["prompt_logprobs"] = [token and token.to_dict() for token in self.prompt_logprobs]
        return answer


@dataclass(frozen=True, slots=True)
class Piece:
    """What one round added to a stream."""

    text: str
    """New text; may be empty while a character or a stop string may still be under way."""
    token_ids: tuple[int, ...]
    result: Generation | None = None
    """The whole generation, with the last piece."""
    drafted: int = 0
    """Tokens that were drafted in this round."""
    accepted: int = 0
    """Of these, tokens that were kept: the first ones of `token_ids`."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """How likely each of `token_ids` was, if `logprobs` was asked for."""
