"""What generation will accept, foretold from judgements: rounds walked over a text that is known.

Where the text is the target's own greedy one, this is what generation does, token by token; where it is somebody else's
it is an estimate. Shapes: B rows, S tokens of a row, D drafted tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from fastllm_core import Judgement, Lesson


@dataclass(slots=True)
class Foretold:
    """Counts of rounds, as a `RunReport` has them."""

    rounds: int = 0
    tokens: int = 0
    drafted_at: list[int] = field(default_factory=list)
    accepted_at: list[int] = field(default_factory=list)

    @property
    def tokens_per_round(self) -> float:
        """Mean tokens committed per target forward."""
        return self.tokens / self.rounds if self.rounds else 0.0

    @property
    def by_position(self) -> list[float]:
        """Share of the drafts at each position that was accepted."""
        return [kept / made if made else 0.0 for kept, made in zip(self.accepted_at, self.drafted_at, strict=True)]

    def count(self, drafted: int, accepted: int) -> None:
        """Add a round."""
        self.rounds += 1
        self.tokens += accepted + 1
        missing = drafted - len(self.drafted_at)
        self.drafted_at += [0] * missing
        self.accepted_at += [0] * missing
        for position in range(drafted):
            self.drafted_at[position] += 1
            self.accepted_at[position] += position < accepted

    def add(self, other: Foretold) -> None:
        """Add the counts of other texts."""
        self.rounds += other.rounds
        self.tokens += other.tokens
        for mine, theirs in ((self.drafted_at, other.drafted_at), (self.accepted_at, other.accepted_at)):
            mine += [0] * (len(theirs) - len(mine))
            for position, count in enumerate(theirs):
                mine[position] += count

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "rounds": self.rounds,
            "tokens": self.tokens,
            "tokens_per_round": self.tokens_per_round,
            "by_position": self.by_position,
        }


def foretell(lesson: Lesson, judgement: Judgement, length: int, threshold: float = 0.0) -> Foretold:
    """Walk over every document: draft, keep what is right, commit one token more, and go on from there.

    length: the most tokens of a draft, which the judgement must have.  threshold: as in `Batch.thresholds`.
    """
    found = Foretold()
    right, chance = judgement.right.tolist(), judgement.chance.tolist()
    for row, start, stop in _answers(lesson):
        root = start
        while root < stop:
            most = min(length, stop - root - 1)  # the extra token needs room as well
            unsure = (d + 1 for d in range(most) if chance[row][root][d] < threshold)
            drafted = next(unsure, most)
            wrong = (d for d in range(drafted) if not right[row][root][d])
            accepted = next(wrong, drafted)
            found.count(drafted, accepted)
            root += accepted + 1
    return found


def _answers(lesson: Lesson) -> Iterator[tuple[int, int, int]]:
    """(row, first, last + 1) of every run of counted places: the roots of its rounds."""
    for row, line in enumerate(lesson.counted().tolist()):
        start = None
        for place, counted in enumerate([*line, False]):
            if counted and start is None:
                start = place
            elif not counted and start is not None:
                yield row, start, place
                start = None
