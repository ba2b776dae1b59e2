"""The acceptance role that keeps the target's text: greedily the same tokens, under sampling the same distribution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, get_args

import torch

from .acceptance import match, reject_block, reject_chain, reject_tree
from .errors import ConfigError
from .protocols import Draft, Guarantee, Proposal, Scores, Verdict
from .randomness import Purpose
from .sampling import draw, warp
from .verdicts import depths

if TYPE_CHECKING:
    from torch import Tensor

    from .batch import Batch

Rule = Literal["auto", "match", "rejection", "block"]

DRAWN_FROM_Q: Final = (Proposal.SAMPLED, Proposal.INDEPENDENT, Proposal.WITHOUT_REPLACEMENT)
"""Drafts that come with the distribution that they were drawn from."""


class ExactAcceptor:
    """Accepts by a rule that fits how the drafter makes its tokens; see `acceptance` for the rules."""

    guarantee = Guarantee.EXACT

    def __init__(self, proposal: Proposal, rule: Rule = "auto") -> None:
        """Choose the rule. "auto" is *match* for one-hot drafts and *rejection* for drawn ones.

        Raises ConfigError if the rule does not exist or would change the text with this kind of proposal.
        """
        _check(proposal, rule)
        self._proposal = proposal
        self._rule = "rejection" if rule == "auto" and proposal in DRAWN_FROM_Q else rule

    def decide(self, batch: Batch, draft: Draft, scores: Scores) -> Verdict:
        """Decide every row with its own settings and uniforms; rows that are greedy and rows that are not may mix.

        draft.probs: what the children of each row were drawn from, None where nothing was drawn.
        scores.logits: float[B, W, V].
        """
        if batch.sampling.greedy:
            return match(draft.tokens, draft.lengths, draft.parents, scores.likely)
        p = warp(scores.logits, batch.sampling)
        if draft.probs is None or self._rule not in ("rejection", "block"):
            return match(draft.tokens, draft.lengths, draft.parents, draw(p, _row_uniforms(batch, draft)))
        if self._rule == "block":
            return reject_block(draft.tokens, draft.lengths, draft.probs, p, *round_uniforms(batch, draft))
        return reject(batch, draft, draft.probs, p, self._proposal)

    def follow(self, batch: Batch, children: Draft, logits: Tensor) -> Verdict:
        """Decide about the children of one row each, with nothing but that row's logits; see `walk`.

        children: a draft of one level; `probs`, float[B, 1, V], is what they were drawn from.  logits: float[B, V].
        Block verification of one level is rejection.
        """
        rows = children.width + 1
        if batch.sampling.greedy:
            choices = logits.argmax(-1)
        else:
            p = warp(logits[:, None], batch.sampling)
            if children.probs is not None and self._rule in ("rejection", "block"):
                q = children.probs.expand(-1, rows, -1)
                # Behind a child nothing is read but the extra token, and that one the next step draws anew.
                return reject(batch, children, q, p.expand(-1, rows, -1), self._proposal)
            choices = draw(p[:, 0], batch.position_uniforms(1)[:, 0])
        return match(children.tokens, children.lengths, children.parents, choices[:, None].expand(-1, rows))


def reject(
    batch: Batch, draft: Draft, q: Tensor | None, p: Tensor, proposal: Proposal, *, lenience: float = 1.0
) -> Verdict:
    """Decide by rejection, which `lenience` below 1 makes lossy.

    q: float[B, N or W, V], None for one-hot drafts; p: float[B, W, V].  proposal: how siblings were drawn.
    """
    uniforms = round_uniforms(batch, draft)
    if draft.parents is None:
        return reject_chain(draft.tokens, draft.lengths, q, p, *uniforms, lenience=lenience)
    tree = (draft.tokens, draft.lengths, draft.parents)
    once_each = proposal is Proposal.WITHOUT_REPLACEMENT
    return reject_tree(*tree, q, p, *uniforms, without_replacement=once_each, lenience=lenience)


def round_uniforms(batch: Batch, draft: Draft) -> tuple[Tensor, Tensor]:
    """What decides about drafted tokens, float64[B, N], and what draws the extra token, float64[B].

    Both belong to this round alone. A row without a draft decodes plainly, with the number that plain decoding would
    use: nothing that was discarded can have come from it.
    """
    accept_u = batch.uniforms(Purpose.ACCEPT, draft.width)
    drafted_u, plain_u = batch.uniforms(Purpose.EXTRA, 1)[:, 0], batch.position_uniforms(1)[:, 0]
    return accept_u, torch.where(draft.lengths > 0, drafted_u, plain_u)


def _check(proposal: Proposal, rule: Rule) -> None:
    if rule not in get_args(Rule):
        raise ConfigError(
            f"acceptance.rule: there is no exact rule {rule!r}; choose one of {', '.join(get_args(Rule))}"
        )
    if rule in ("rejection", "block") and proposal not in DRAWN_FROM_Q:
        raise ConfigError(f"acceptance.rule: {rule!r} needs drafts drawn from a known distribution, and this drafter's "
                          f"are {proposal.value}; choose 'match' or 'auto'")  # fmt: skip
    if rule == "block" and proposal is not Proposal.SAMPLED:
        raise ConfigError(f"acceptance.rule: 'block' judges chains, and this drafter makes trees ({proposal.value}); "
                          "choose 'rejection', 'match' or 'auto'")  # fmt: skip


def _row_uniforms(batch: Batch, draft: Draft) -> Tensor:
    """float64[B, W]: the uniform of each row's position, which siblings share."""
    by_depth = batch.position_uniforms(draft.width + 1)
    return by_depth if draft.parents is None else by_depth.gather(1, depths(draft.parents))
