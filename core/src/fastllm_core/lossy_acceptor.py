"""The acceptance role that keeps more of a draft and changes the text for it. Only if the configuration allows it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Literal

from .acceptance import match
from .acceptor import DRAWN_FROM_Q, reject
from .lossy_rules import lenient_greedy, typical
from .protocols import Draft, Guarantee, Proposal, Scores, Verdict
from .sampling import warp
from .verdicts import either

if TYPE_CHECKING:
    from .batch import Batch

LossyRule = Literal["typical", "lenient"]

EPSILON: Final = 0.09
"""The threshold of typical acceptance in the published implementation; its delta of 0.3 is the square root."""
LENIENCE: Final = 0.5


class LossyAcceptor:
    """Accepts by a lossy rule; see `lossy_rules`. A row without a draft has plain decoding's text."""

    guarantee = Guarantee.LOSSY

    def __init__(
        self,
        proposal: Proposal,
        rule: LossyRule,
        *,
        epsilon: float | None = None,
        delta: float | None = None,
        lenience: float | None = None,
    ) -> None:
        """proposal: how the drafter makes its tokens.

        epsilon, delta: of *typical*; by default 0.09 and the square root of epsilon.
        lenience: of *lenient*, 0.5 by default; 1 is exact *rejection*.
        """
        self.label = f"{rule} acceptance"
        """What messages and reports call it."""
        self._proposal = proposal
        self._rule = rule
        self._epsilon = EPSILON if epsilon is None else epsilon
        self._delta = math.sqrt(self._epsilon) if delta is None else delta
        self._lenience = LENIENCE if lenience is None else lenience

    def decide(self, batch: Batch, draft: Draft, scores: Scores) -> Verdict:
        """Decide every row with its own settings and uniforms; rows that are greedy and rows that are not may mix.

        draft.probs, scores.logits: as in `ExactAcceptor`.
        """
        return (self._typical if self._rule == "typical" else self._lenient)(batch, draft, scores)

    def _typical(self, batch: Batch, draft: Draft, scores: Scores) -> Verdict:
        """Nothing is random but the extra token, whose position keys its number."""
        if batch.sampling.greedy:
            return match(draft.tokens, draft.lengths, draft.parents, scores.likely)
        p = warp(scores.logits, batch.sampling)
        extra_u = batch.position_uniforms(draft.width + 1)
        bounds = {"epsilon": self._epsilon, "delta": self._delta}
        return typical(draft.tokens, draft.lengths, draft.parents, p, extra_u, **bounds)

    def _lenient(self, batch: Batch, draft: Draft, scores: Scores) -> Verdict:
        sampling, tree = batch.sampling, (draft.tokens, draft.lengths, draft.parents)
        if sampling.greedy:
            return lenient_greedy(*tree, scores.logits, lenience=self._lenience)
        q = draft.probs if self._proposal in DRAWN_FROM_Q else None
        drawn = reject(batch, draft, q, warp(scores.logits, sampling), self._proposal, lenience=self._lenience)
        if not sampling.mixed:
            return drawn
        return either(sampling.temperature > 0, drawn, lenient_greedy(*tree, scores.logits, lenience=self._lenience))
