"""What the four roles look like to the engine, and what they hand to each other in a round.

Shapes, here and in every role:
    B  live rows of the batch, in slot order      N  drafted nodes (tokens) of the round, padded
    W  N + 1, rows of a verification              D  tokens on the deepest path of the draft, D <= N
    T  key/value slots that a forward reads       V  vocabulary of the target
    H  hidden size                                E  extra rows that ride along in a verification

Row 0 of a verification is the root, the last committed token; row i + 1 is drafted node i. Every tensor lives on the
target's device. Nothing here inherits from anything: a role is whatever has these methods. Inheriting from `Drafter`
explicitly gives the optional methods for free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from .batch import Batch, Row
    from .slot_layers import CacheLayers
    from .ties import Best


class Proposal(StrEnum):
    """How a drafter makes its tokens. The core picks the acceptance rule from it, so that nobody pairs them wrongly."""

    ONE_HOT = "one-hot"
    """Chosen without a known distribution: arg max, look-up, top-k children of a tree. Accepted by *match*."""
    SAMPLED = "sampled"
    """A chain, each token drawn from `Draft.probs`. Accepted by *rejection* (arXiv:2211.17192)."""
    INDEPENDENT = "independent"
    """A tree, siblings drawn independently from their parent's `probs` (SpecInfer). Accepted by *rejection*."""
    WITHOUT_REPLACEMENT = "without-replacement"
    """A tree, siblings drawn in order without replacement from their parent's `probs` (Sequoia). By *rejection*."""


class Guarantee(StrEnum):
    """What a role promises about the text, compared with plain decoding."""

    EXACT = "exact"
    """Greedy: the same tokens. Sampling: the same distribution."""
    LOSSY = "lossy"
    """Another text or law. Refused unless the configuration says `lossy = true`, and named in every report: by the
    object's `label`, if it has one ("typical acceptance"), else by its role and plugin."""


@dataclass(frozen=True, slots=True)
class Resume:
    """Work of the target that the drafter has already done: layers `0..layer-1` over the root and every node.

    The drafter ran them through the target's own cache, so those layers' key/value rows stand at the round's slots.
    """

    layer: int
    hidden: Tensor
    """float[B, W, H]: the input of layer `layer` for the root and every node."""


@dataclass(frozen=True, slots=True)
class ExtraRows:
    """Rows that are scored in the same forward but never committed (a lookahead window, for example)."""

    tokens: Tensor
    """int64[B, E]"""
    depths: Tensor
    """int64[B, E]: position minus the root's position."""
    mask: Tensor
    """bool[B, E, W + E]: which rows of this round each extra row sees. All of them see the committed cache."""


class Draft(NamedTuple):
    """What a drafter proposes for one round. `N = 0` is legal: the round is then plain decoding."""

    tokens: Tensor
    """int64[B, N]; what lies beyond a row's `lengths` is padding and may hold any token."""
    lengths: Tensor
    """int64[B]: drafted nodes of each row, 0..N."""
    parents: Tensor | None = None
    """int64[B, N]: the node that each node continues, -1 for the root, always smaller than the node's own index,
    in the padding too. None is a chain: node i continues node i - 1. A tensor once handed over is not written to again:
    a drafter whose trees have one shape hands over the same one, and what rows see is worked out once."""
    probs: Tensor | None = None
    """float[B, W, V] or, for a chain, float[B, N, V]: `probs[:, r]` is the distribution that the children of
    verification row r were drawn from, after temperature and truncation. None if `Proposal.ONE_HOT` or if all rows are
    greedy."""
    resume: Resume | None = None
    extra: ExtraRows | None = None

    @property
    def width(self) -> int:
        """N, the number of (padded) drafted nodes."""
        return self.tokens.shape[1]


class Scores(NamedTuple):
    """The target's answer to a round."""

    logits: Tensor
    """float[B, W, V]: row r scores the token that follows row r."""
    hidden: Mapping[int, Tensor] = MappingProxyType({})
    """float[B, W, H] for each layer in `Drafter.hidden_layers`: i is the input of layer i, the number of layers is the
    last hidden state, after the final norm."""
    extra_logits: Tensor | None = None
    """float[B, E, V]"""
    best: Best | None = None
    """`logits` read greedily, if the verifier has done it."""
    resumed: bool = False
    """Whether the forward began where drafting had left the target (`Draft.resume`), for the report."""

    @property
    def likely(self) -> Tensor:
        """int64[B, W]: the most likely token behind every row, the first of equals."""
        return self.logits.max(-1).indices if self.best is None else self.best.tokens


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which path of the draft is kept and which token follows it. Every row commits `accepted + 1` tokens."""

    accepted: Tensor
    """int64[B]: drafted tokens that are kept, 0..D."""
    path: Tensor
    """int64[B, D]: nodes of the kept path from the root down, -1 beyond `accepted`."""
    tokens: Tensor
    """int64[B, D + 1]: the kept tokens, then the extra token (correction or bonus), then -1."""


class Drafter(Protocol):
    """Draft proposal: which tokens might come next?"""

    proposal: Proposal
    guarantee: Guarantee = Guarantee.EXACT
    hidden_layers: tuple[int, ...] = ()
    """Hidden states of the target that `prefill` and `observe` want to see, as in `Scores.hidden`."""
    resume_layer: int | None = None
    """The layer at which its drafts resume, if they carry `Draft.resume`."""
    heeds_thresholds: bool = False
    """Whether its drafts end by `Batch.thresholds` (see `Confidence`), as `draft.controller = "threshold"` needs."""

    def propose(self, batch: Batch) -> Draft:
        """Draft at most `batch.draft_lengths[b]` tokens for each row b (for a tree: levels).

        May look at committed tokens and at earlier rounds, never at the target's answer to this round.
        """
        ...

    def expected_acceptance(self, rows: Sequence[Row]) -> Sequence[float] | None:
        """How likely a token that each row would draft now is right, 0..1, if that can be told for next to no cost.

        For a drafter that knows what it has before it drafts, a look-up for example: 0 is a row that has nothing. A
        controller that weighs costs asks in every round, and lets those rows draft for which it pays. It must follow
        from committed tokens alone. None: go by what was accepted.
        """
        return None

    def prefill(self, row: Row, start: int, stop: int, hidden: Mapping[int, Tensor]) -> None:
        """The target has read prompt tokens `start..stop-1` of a joining row that wants to speculate.

        hidden: float[1, stop - start, H] for each of `hidden_layers`.
        """
        return

    def copy(self, source: Row, row: Row) -> bool:
        """A joining row has the prompt that `source` had: copy what is kept for it beside the rows of caches.

        Returns whether that was done; the engine then copies the prompt's rows in the drafter's caches. If not, as by
        default, `prefill` is called for the row as for any other.
        """
        return False

    def observe(self, batch: Batch, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        """The round is decided and committed: `batch.lengths` still says where it began, `row.tokens` has grown.

        scores: the target's own answer, before any control.
        """
        return

    def release(self, row: Row) -> None:
        """The row has left, finished, cancelled or failed: forget what was kept for it."""
        return

    def close(self) -> None:
        """The pipeline is closing: give back memory, files and threads."""
        return


class Verifier(Protocol):
    """Verification: what does the target say at every drafted node, in one forward?

    One that answers something else than the target would (a cheaper model, coarser numbers) says so with
    `guarantee = Guarantee.LOSSY`; so does a cache that does not give back what was stored. Without it, they are exact.
    """

    def score(self, batch: Batch, draft: Draft) -> Scores:
        """Score the root and every node, each with exactly its own prefix, and write their key/value rows.

        Node i of row b goes to slot `batch.lengths[b] - 1 + i + 1` of the cache.
        """
        ...


class Acceptor(Protocol):
    """Acceptance: which path do we keep, and what is the extra token?

    One that can decide about the children of a single row, from that row's logits alone, may also have
    `follow(batch, children, logits)`, as `ExactAcceptor` does: rows with logits processors then walk down their drafts.
    """

    guarantee: Guarantee

    def decide(self, batch: Batch, draft: Draft, scores: Scores) -> Verdict:
        """Decide every row with its own sampling settings and its own keyed uniforms.

        scores: the target's answer after the rows' controls.
        """
        ...


class KVCache(Protocol):
    """KV-cache management: which rows survive?

    Row `slot` holds the keys and values of one request; `lengths[slot]` of them are committed. What lies beyond is
    never seen, because every forward brings an explicit mask, and is simply overwritten: rolling back costs nothing.
    """

    lengths: list[int]
    capacity: int
    """Key/value slots per row that exist now."""

    def reserve(self, rows: int, slots: int) -> None:
        """Make room for `rows` rows of at least `slots` slots, keeping what is stored. Grows in blocks."""
        ...

    def layers(self, rows: slice, extent: int) -> CacheLayers:
        """The first `extent` slots of some rows, as the cache argument of a forward, which writes in place."""
        ...

    def extent(self, slots: int) -> int:
        """The smallest block-rounded number of slots that holds `slots`: what a forward should read."""
        ...

    def commit(self, starts: Sequence[int], kept: Sequence[int], path: Tensor | None) -> None:
        """Keep of each batch row b the root, at slot `starts[b]`, and the first `kept[b]` nodes of its path.

        path: int64[B, D], nodes as in `Verdict.path`, or None if the path is a chain and already lies in place.
        Sets `lengths[b] = starts[b] + 1 + kept[b]`.
        """
        ...

    def move(self, source: int, target: int) -> None:
        """Row `source` becomes row `target`, whose contents are dropped."""
        ...

    def copy(self, source: int, target: int, length: int) -> None:
        """Row `target` begins with the first `length` slots of row `source`, and has no more. Both are reserved."""
        ...

    def release(self, slot: int) -> None:
        """The row is free: its length is 0."""
        ...


class Observer(Protocol):
    """Someone who watches rounds (a tracer, a metrics exporter) and changes nothing."""

    def observe(self, batch: Batch, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        """The round is decided; see `Drafter.observe`."""
        ...


def has_own(method: str, part: object, role: type) -> bool:
    """Whether a part has a method of its own, where the role's default does nothing: else no round need call it."""
    return getattr(getattr(part, method, None), "__func__", None) is not getattr(role, method)
