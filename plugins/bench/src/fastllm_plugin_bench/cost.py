"""Why a method is as fast as it is: what its rounds cost, what the cost model makes of that, and what limits it.

A plain step is one round of plain decoding at the same batch size: the time of its verification and what surrounds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from .recount import Counts

SELDOM: Final = 0.5
"""Where fewer of the rounds draft than this, that is what limits a method."""
SMALL: Final = 1.1
"""A cause is worth naming if the method would be this much faster without it."""


@dataclass(frozen=True, slots=True)
class Rounds:
    """Seconds of an arm's rounds by phase, prompts left out."""

    count: int
    draft: float
    verify: float
    rest: float
    """Acceptance and everything else."""

    @classmethod
    def of(cls, count: int, time: Mapping[str, float]) -> Rounds | None:
        """From an arm's clock; None if it has none."""
        if not count or not time:
            return None
        return cls(count, time["draft"], time["verify"], time["accept"] + time["rest"])

    @property
    def seconds(self) -> float:
        """Of one round."""
        return (self.draft + self.verify + self.rest) / self.count


@dataclass(frozen=True, slots=True)
class Cost:
    """What a round of a method costs, in plain steps."""

    length: float
    """Mean drafted positions of a drafting round (gamma)."""
    acceptance: float
    """How often a drafted token that is looked at is kept (alpha)."""
    ratio: float
    """Drafting one position (c)."""
    draft: float
    """Drafting, per round."""
    verify: float
    """Verification: 1 if it costs what a plain step's does."""
    rest: float
    """Acceptance and everything else, beyond what a plain step spends on it."""
    drafting: float
    """Share of the rounds that drafted."""
    per_round: float
    """Tokens per round and row that were measured (MAT)."""

    @property
    def round(self) -> float:
        """A whole round in plain steps."""
        return self.draft + self.verify + self.rest

    @property
    def expected_per_round(self) -> float:
        """Tokens per round if every token were kept with the same probability."""
        alpha, gamma = min(self.acceptance, 0.9999), self.length
        when_drafting: float = (1 - alpha ** (gamma + 1)) / (1 - alpha)
        return self.drafting * when_drafting + 1 - self.drafting

    @property
    def predicted(self) -> float:
        """The speed-up that the cost model expects: verification costs one plain step, drafting c per position.

        Source: arXiv:2211.17192, theorem 3.8, with the rounds that draft nothing counted as plain steps.
        """
        return self.expected_per_round / (1 + self.drafting * self.length * self.ratio)


def cost_of(counts: Counts, rounds: Rounds | None, plain: Rounds | None) -> Cost | None:
    """The cost of a method's rounds; None where an arm has no clock or drafted nothing."""
    if rounds is None or plain is None or not counts.drafting:
        return None
    step = plain.seconds
    length = counts.positions / counts.drafting
    drafting = counts.drafting / counts.row_rounds
    draft = rounds.draft / rounds.count / step
    return Cost(
        length=length,
        acceptance=counts.kept / counts.judged if counts.judged else 0.0,
        ratio=draft / (drafting * length),
        draft=draft,
        verify=1 + (rounds.verify / rounds.count - plain.verify / plain.count) / step,
        rest=(rounds.rest / rounds.count - (plain.rest + plain.draft) / plain.count) / step,
        drafting=drafting,
        per_round=counts.per_round,
    )


def limit_of(cost: Cost | None, measured: float | None, *, controlled: bool = False) -> str:
    """One sentence that says what limits a method: the cause without which it would gain most.

    controlled: a controller may have decided against drafting.
    """
    if cost is None:
        return "It says nothing of its rounds, so what limits it cannot be told."
    if cost.drafting < SELDOM:
        why = ", or the controller found that drafting does not pay" if controlled else ""
        return f"It drafts in {cost.drafting:.0%} of its rounds only: in the others it had nothing to propose{why}."
    whole, most = cost.round, 1 + cost.length
    causes = {
        f"acceptance: {cost.acceptance:.0%} of the drafted tokens that are looked at are kept, {cost.per_round:.1f} "
        f"tokens a round of {most:.1f} possible": most / cost.per_round,
        f"drafting, which takes {cost.draft:.2f} plain steps a round": whole / max(whole - cost.draft, 0.01),
        f"verification: a round's rows cost {cost.verify:.2f} plain steps, not one": whole
        / max(whole - (cost.verify - 1), 0.01),
        f"what surrounds the forwards, {cost.rest:.2f} plain steps a round": whole / max(whole - cost.rest, 0.01),
    }
    cause, gain = max(causes.items(), key=lambda pair: pair[1])
    if gain < SMALL:
        return "Nothing limits it much: drafts are kept, and a round costs little more than a plain step."
    slower = "Slower than plain decoding, held back" if measured is not None and measured < 1 else "Held back most"
    return f"{slower} by {cause}; without that it would be {gain:.1f} times as fast."
