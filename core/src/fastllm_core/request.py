"""What is asked of the engine for one prompt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from .controls import Controls, StoppingCriterion
from .errors import RequestError

LogprobsMode = Literal["raw", "processed"]
"""Of which distribution log-probabilities are: the model's own, or the one that a token was chosen from."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn from the target's distribution, applied in this order (as transformers does)."""

    temperature: float = 0.0
    """0 is greedy: the most likely token, and nothing below matters."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of most likely tokens whose probability reaches p."""
    min_p: float = 0.0
    """Drop tokens less likely than this share of the most likely one."""

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        if not 0.0 <= self.temperature < float("inf"):
            raise RequestError(f"temperature must be 0 (greedy) or a positive number, not {self.temperature}")
        if self.top_k < 0:
            raise RequestError(f"top_k must be 0 (all tokens) or positive, not {self.top_k}")
        if not 0.0 < self.top_p <= 1.0:
            raise RequestError(f"top_p must lie in (0, 1], not {self.top_p}")
        if not 0.0 <= self.min_p <= 1.0:
            raise RequestError(f"min_p must lie in [0, 1], not {self.min_p}")


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt and how to continue it."""

    prompt: tuple[int, ...]
    max_new_tokens: int
    sampling: SamplingParams = field(default_factory=SamplingParams)
    seed: int | None = None
    """The same seed gives the same text; None takes one from the operating system."""
    eos_token_ids: frozenset[int] = frozenset()
    """Tokens that end the text; the one that did is kept."""
    stop: tuple[str, ...] = ()
    """Strings that end the text, which is cut before them."""
    speculate: bool = True
    """False: this row decodes plainly, even beside rows that speculate."""
    logprobs: int | None = None
    """How likely each generated token was, and this many of the most likely ones in its place; None: not computed."""
    prompt_logprobs: int | None = None
    """The same of the prompt's tokens; always of the model's own distribution."""
    logprobs_mode: LogprobsMode = "raw"
    """"raw": of the model's own distribution; "processed": of the one that the token was chosen from, after every
    control (a greedy row: after all but the choice itself)."""
    keep_logits: bool = False
    """Hand out the model's logits behind every generated token (`Event.logits`)."""
    controls: Controls = field(default_factory=Controls)
    """What is done to the logits before temperature and truncation."""
    stopping_criteria: tuple[StoppingCriterion, ...] = ()
    """Asked after every token of the text, in order; the token at which one says yes is kept."""
    controller: str | None = None
    """Who chooses this row's draft lengths, if not the engine's own controller: a name as for `draft.controller`."""

    def __post_init__(self) -> None:
        """Refuse what cannot be decoded."""
        if not self.prompt:
            raise RequestError("the prompt has no tokens: give at least one")
        if self.max_new_tokens < 1:
            raise RequestError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")
        if any(not text for text in self.stop):
            raise RequestError("stop: an empty string would stop everywhere; leave it out")
        for name in ("logprobs", "prompt_logprobs"):
            wanted = getattr(self, name)
            if wanted is not None and wanted < 0:
                raise RequestError(f"{name} must be 0 (the token alone) or a number of alternatives, not {wanted}")
        if self.logprobs_mode not in get_args(LogprobsMode):
            raise RequestError(f'logprobs_mode must be "raw" or "processed", not {self.logprobs_mode!r}')
        for criterion in self.stopping_criteria:
            if not callable(criterion):
                raise RequestError(f"stopping_criteria: a {type(criterion).__name__} cannot be called")
