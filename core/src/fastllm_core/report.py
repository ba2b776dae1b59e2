"""Why a run was fast or slow: tokens, rounds, acceptance and where the time went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .clock import PHASES

if TYPE_CHECKING:
    from .protocols import Draft


Levels = tuple[int, ...]
"""How many tokens a row drafted at each position of a chain, or each level of a tree."""


@dataclass(slots=True)
class RunReport:
    """Figures of one row, or of a whole batch.

    A row's times are those of the rounds it took part in, which it shares with its neighbours.
    """

    tokens: int = 0
    """Tokens generated, up to and including the one that ended the text."""
    prompt_tokens: int = 0
    seconds: float = 0.0
    """From joining the engine to the last token."""
    rounds: int = 0
    """Target forwards after the prompt."""
    drafted_at: list[int] = field(default_factory=list)
    """Tokens drafted at each position of a draft (for a tree: at each level)."""
    accepted_at: list[int] = field(default_factory=list)
    """Of these, tokens that were accepted."""
    verified_rows: int = 0
    """Rows that verification needed: a root for every round, and every drafted token."""
    resumed_rows: int = 0
    """Of these, rows whose first layers drafting had run already: verification went on behind them."""
    near_ties: int = 0
    """Greedy tokens that won by no more than rounding: where another method, or another machine, may rightly differ."""
    near_ties_at: list[int] = field(default_factory=list)
    """Which tokens these were, from 0; in the report of a row only."""
    time: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    """Seconds in prefill, draft, verify, accept and rest."""
    forward_time: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    """Of these, seconds inside model forwards."""
    controller: dict[str, float] = field(default_factory=dict)
    """What the controller adapted to the row, as it was at the end: its threshold, for example."""
    lossy: tuple[str, ...] = ()
    """What changed the text or its distribution: "typical acceptance". Empty if nothing did."""

    @property
    def drafted(self) -> int:
        """Tokens drafted."""
        return sum(self.drafted_at)

    @property
    def accepted(self) -> int:
        """Drafted tokens that were kept."""
        return sum(self.accepted_at)

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens per second, the prompt's prefill included."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_round(self) -> float:
        """Mean tokens committed per target forward (MAT); 1 is plain decoding."""
        return self.tokens / self.rounds if self.rounds else 0.0

    @property
    def resumed_share(self) -> float:
        """How many of the rows that verification needed had been read by the first layers in drafting, 0..1."""
        return self.resumed_rows / self.verified_rows if self.verified_rows else 0.0

    @property
    def outside_forwards(self) -> float:
        """Share of the rounds' time that was spent outside model forwards, 0..1; the prefill is not counted."""
        rounds = sum(seconds for phase, seconds in self.time.items() if phase != "prefill")
        inside = sum(seconds for phase, seconds in self.forward_time.items() if phase != "prefill")
        return 1.0 - inside / rounds if rounds else 0.0

    def count(
        self, drafted_at: Sequence[int], accepted: int, committed: int, *, near_ties: int = 0, resumed: bool = False
    ) -> None:
        """Add a row's share of a round.

        drafted_at: tokens drafted at each position.  accepted: tokens that the rule kept, one to a position.
        committed: tokens that were added to the text, fewer where it ends.  near_ties: of these.
        resumed: whether verification went on where drafting had left the target.
        """
        rows = 1 + sum(drafted_at)
        self.verified_rows += rows
        if resumed:
            self.resumed_rows += rows
        self.tokens += committed
        self.near_ties += near_ties
        missing = len(drafted_at) - len(self.drafted_at)
        if missing > 0:
            self.drafted_at += [0] * missing
            self.accepted_at += [0] * missing
        for position, drafted in enumerate(drafted_at):
            self.drafted_at[position] += drafted
            self.accepted_at[position] += position < accepted

    def count_plain(self, tokens: int, near_ties: int) -> None:
        """Add a row's share of some rounds without drafts, each of one token.  near_ties: of these."""
        self.verified_rows += tokens
        self.tokens += tokens
        self.near_ties += near_ties

    def to_dict(self) -> dict[str, Any]:
        """Everything, the derived figures included, ready for JSON."""
        return {
            "tokens": self.tokens,
            "prompt_tokens": self.prompt_tokens,
            "seconds": self.seconds,
            "tokens_per_s": self.tokens_per_s,
            "rounds": self.rounds,
            "tokens_per_round": self.tokens_per_round,
            "drafted": self.drafted,
            "accepted": self.accepted,
            "drafted_at": list(self.drafted_at),
            "accepted_at": list(self.accepted_at),
            "verified_rows": self.verified_rows,
            "resumed_rows": self.resumed_rows,
            "resumed_share": self.resumed_share,
            "near_ties": self.near_ties,
            "near_ties_at": list(self.near_ties_at),
            "time": dict(self.time),
            "forward_time": dict(self.forward_time),
            "outside_forwards": self.outside_forwards,
            "controller": dict(self.controller),
            "lossy": list(self.lossy),
        }

    def summary(self) -> str:
        """One line for a person."""
        parts = [f"{self.tokens} tokens in {self.seconds:.2f} s ({self.tokens_per_s:.0f} tokens/s)"]
        if self.drafted:
            parts.append(f"{self.tokens_per_round:.2f} tokens/round")
            parts.append(f"{self.accepted} of {self.drafted} drafted tokens accepted")
        if self.resumed_rows:
            parts.append(f"{self.resumed_share:.0%} of verified rows resumed behind the first layers")
        if self.controller:
            parts.append("controller: " + ", ".join(f"{name} {value:.2f}" for name, value in self.controller.items()))
        if self.near_ties:
            parts.append(f"{self.near_ties} near-ties, where rounding decides")
        if self.lossy:
            parts.append("lossy: " + ", ".join(self.lossy))
        spent = [f"{phase} {seconds:.2f}" for phase, seconds in self.time.items() if seconds >= 0.005]
        return "; ".join([*parts, "seconds: " + ", ".join(spent)] if spent else parts)


def nodes_by_level(draft: Draft, lengths: Sequence[int]) -> list[Levels]:
    """How many tokens each row's draft has at each level: one at each position of a chain."""
    if draft.parents is None:
        return [(1,) * length for length in lengths]
    return [_levels(parents[:length]) for parents, length in zip(draft.parents.tolist(), lengths, strict=True)]


def _levels(parents: Sequence[int]) -> Levels:
    depths: list[int] = []
    for parent in parents:
        depths.append(0 if parent < 0 else depths[parent] + 1)
    counts = Counter(depths)
    return tuple([counts[depth] for depth in range(len(counts))])
