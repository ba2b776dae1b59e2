"""How likely the target finds tokens: those that were generated, their alternatives, and those of the prompt.

Nothing here takes part in deciding a text, and nothing is computed for a row that did not ask.
Shapes as in `protocols`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.nn.functional import pad

from .sampling import truncated

if TYPE_CHECKING:
    from torch import Tensor

    from .batch import Batch
    from .deciding import Decision
    from .protocols import Scores, Verdict
    from .rows import Event, LiveRow


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How likely a token was after everything before it."""

    token_id: int
    logprob: float
    """The natural logarithm of its probability."""
    top: tuple[tuple[int, float], ...] = ()
    """The most likely tokens there and their logarithms, the most likely first; as many as were asked for."""

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; the logarithm of 0 is None."""
        return {
            "token_id": self.token_id,
            "logprob": _finite(self.logprob),
            "top": [{"token_id": token, "logprob": _finite(value)} for token, value in self.top],
        }


def behind(logits: Tensor, verdict: Verdict) -> Tensor:
    """The logits that each committed token was chosen by: float[B, D + 1, V]; beyond `accepted` they mean nothing.

    logits: float[B, W, V].
    """
    rows = pad(verdict.path.clamp(min=-1) + 1, (1, 0))
    return logits.gather(1, rows[:, :, None].expand(-1, -1, logits.shape[-1]))


def of_tokens(logprobs: Tensor, tokens: Tensor, top: Sequence[int]) -> list[list[TokenLogprob]]:
    """What a distribution says about tokens, read on the host in one go.

    logprobs: float[B, K, V].  tokens: int64[B, K], negative where there is none.
    top: how many alternatives each row wants.
    """
    ids = tokens.clamp(min=0)
    chosen = logprobs.gather(-1, ids[:, :, None])[:, :, 0].tolist()
    most = min(max(top), logprobs.shape[-1])
    values, places = logprobs.topk(most, dim=-1)
    lines = zip(ids.tolist(), chosen, places.tolist(), values.tolist(), top, strict=True)
    return [
        [
            TokenLogprob(token, value, tuple(zip(where[:wanted], best[:wanted], strict=True)))
            for token, value, where, best in zip(line, said, others, likely, strict=True)
        ]
        for line, said, others, likely, wanted in lines
    ]


def told(events: Sequence[Event], batch: Batch, scores: Scores, decision: Decision) -> list[Event]:
    """A round's events, and in those of rows that asked how likely their tokens were, or their logits.

    scores: the target's own answer, before any control.
    """
    verdict = decision.verdict
    requests = [row.request for row in batch.rows]
    asked = [b for b, request in enumerate(requests) if request.logprobs is not None]
    kept = [b for b, request in enumerate(requests) if request.keep_logits]
    said = list(events)
    if asked or kept:
        logits = behind(scores.logits, verdict).float()
        for b in kept:
            said[b] = said[b]._replace(logits=logits[b, : len(said[b].tokens)].clone())
    if asked:
        raw = torch.tensor([request.logprobs_mode == "raw" for request in requests], device=logits.device)
        if any(requests[b].logprobs_mode == "processed" for b in asked):
            edited = behind(decision.scores.logits, verdict)
            logits = torch.where(raw[:, None, None], logits, truncated(edited, batch.sampling))
        top = [requests[b].logprobs or 0 for b in asked]
        lines = of_tokens(logits[asked].log_softmax(-1), verdict.tokens[asked], top)
        for b, line in zip(asked, lines, strict=True):
            said[b] = said[b]._replace(logprobs=tuple(line[: len(said[b].tokens)]))
    for b, row in enumerate(batch.rows):
        if requests[b].prompt_logprobs is not None and batch.lengths[b] == row.prompt_length:
            said[b] = said[b]._replace(prompt_logprobs=tuple(cast("LiveRow", row).prompt_logprobs))
    return said


def of_prompt(logits: Tensor, tokens: Sequence[int], top: int) -> list[TokenLogprob]:
    """What the model said about the tokens of a prompt that it was reading.

    logits: float[K, V].  tokens: the K tokens that each of these rows should have foreseen.
    """
    foreseen = torch.tensor([list(tokens)], device=logits.device)
    return of_tokens(logits.float().log_softmax(-1)[None], foreseen, [top])[0]


def _finite(value: float) -> float | None:
    return None if value == float("-inf") else value
