"""From the target's answer to a verdict: controls change the logits, then the acceptance role decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .acceptor import ExactAcceptor
from .penalties import controlled
from .processors import Memory
from .protocols import Draft, Proposal, Scores, Verdict
from .sweep import Sweep
from .ties import best_of
from .verdicts import replaced
from .walk import verdict_of, walk

if TYPE_CHECKING:
    from torch import Tensor

    from .batch import Batch
    from .protocols import Acceptor
    from .rows import LiveRow


class Decision(NamedTuple):
    """What was decided about a round."""

    scores: Scores
    """The logits as the rule saw them, wherever it looked."""
    verdict: Verdict
    ended: Mapping[int, str | None] = MappingProxyType({})
    """Rows of the batch, by index, whose tokens have been judged already, and why each one's text ends."""
    sweeps: Mapping[int, Sweep] = MappingProxyType({})
    """Rows whose processors were called for all nodes."""

    def settle(self, kept: Sequence[int]) -> None:
        """Every row keeps so many tokens: its processors shall have seen what led to these, and nothing else."""
        for index, sweep in self.sweeps.items():
            sweep.settle(self.verdict.path[index].tolist(), kept[index])


def follows(acceptor: Acceptor) -> bool:
    """Whether an acceptor can decide one level at a time, by a method `follow` as `ExactAcceptor` has it."""
    return callable(getattr(acceptor, "follow", None))


def decide(
    acceptor: Any, batch: Batch, rows: Sequence[LiveRow], draft: Draft, scores: Scores, dtype: torch.dtype
) -> Decision:
    """Decide every row, with logits that its controls have changed behind each node's own prefix.

    acceptor: one that does not follow wants all logits at once; rows whose processors have a state that cannot be put
    back are then decided by *match*.  rows: the batch's, in its order.  dtype: of the model.
    """
    edited = [index for index, row in enumerate(rows) if not row.request.controls.neutral]
    called = [index for index, row in enumerate(rows) if row.request.controls.processors]
    if not edited and not called:
        return Decision(scores, acceptor.decide(batch, draft, scores))
    logits = _edited(rows, edited, draft, scores.logits)
    follower = acceptor if follows(acceptor) else ExactAcceptor(Proposal.ONE_HOT)
    sweeps = {index: Sweep(rows[index]) for index in called if follower is not acceptor and _rewinds(rows[index])}
    for index, sweep in sweeps.items():
        sweep.run(index, draft, logits)
    walking = [index for index in called if index not in sweeps]
    walkers = walk(rows, walking, batch, draft, logits, follower)
    ended = {index: walker.reason for index, walker in zip(walking, walkers, strict=True)}
    best = best_of(logits, dtype) if batch.sampling.greedy or batch.sampling.mixed else None
    scores = scores._replace(logits=logits, best=best)
    if len(walking) == len(rows):
        return Decision(scores, verdict_of(walkers, draft.width, batch.device), ended)
    verdict = acceptor.decide(batch, draft, scores)
    if walking:
        verdict = replaced(verdict, walking, verdict_of(walkers, verdict.path.shape[1], batch.device))
    return Decision(scores, verdict, ended, sweeps)


def _edited(rows: Sequence[LiveRow], edited: Sequence[int], draft: Draft, logits: Tensor) -> Tensor:
    """float32[B, W, V], never the input itself: what the controls of some rows make of it."""
    if len(edited) == len(rows):
        return controlled(rows, draft, logits)
    made = logits.to(torch.float32, copy=True)
    if edited:
        parents = None if draft.parents is None else draft.parents[edited]
        some = Draft(draft.tokens[edited], draft.lengths[edited], parents)
        made[edited] = controlled([rows[index] for index in edited], some, made[edited])
    return made


def _rewinds(row: LiveRow) -> bool:
    return all(memory is not Memory.STATEFUL for memory in row.memories)
