"""What a round takes with drafts of each length, as measured."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Final


class Recent:
    """The median of the latest times: a slow round does not move it, nor does it matter how many times there are.

    (Of the best, it does: what is done often looks better than what is done seldom, and so is done still more often.)
    """

    FEW: Final = 3
    """Times up to which it may still be far too long."""

    __slots__ = ("times",)

    def __init__(self) -> None:
        """No time is known yet."""
        self.times: deque[float] = deque(maxlen=9)

    def add(self, seconds: float) -> None:
        """One more, for which the oldest may go."""
        self.times.append(seconds)

    @property
    def typical(self) -> float:
        """The lower median."""
        return sorted(self.times)[(len(self.times) - 1) // 2]

    @property
    def settled(self) -> bool:
        """Whether there are enough times that an unlucky one is seen to be one."""
        return len(self.times) >= self.FEW


class Costs:
    """Seconds of a round of some number of rows, by the length of its drafts."""

    REMEASURE: Final = 128
    """Rounds after which lengths that were not drafted are no longer known: their times may be those of a cold start.
    """
    EVERY: Final = 32
    """Rounds between two looks at the times, once they are settled: medians move slowly, and looking shows in the time
    of a small model's round."""

    def __init__(self, choices: Sequence[int]) -> None:
        """choices: the lengths."""
        self.choices = choices
        self._draft: dict[int, Recent] = defaultdict(Recent)
        self._verify: dict[int, Recent] = defaultdict(Recent)
        self._rest = Recent()
        self._lately: list[int] = []
        """Lengths of the latest rounds."""
        self._found: list[float] = []
        """What was found at the last look; empty if it is time for another."""

    @property
    def drafting_known(self) -> bool:
        """Some draft was timed."""
        return bool(self._draft)

    @property
    def plain_known(self) -> bool:
        """A round without drafts was timed."""
        return 0 in self._verify

    def settled(self, length: int) -> bool:
        """Whether rounds with such drafts were timed a few times."""
        return length in self._verify and self._verify[length].settled

    def add(self, length: int, draft: float, verify: float, rest: float) -> None:
        """A round was over in so many seconds."""
        times = self._verify[length]
        times.add(verify)
        self._rest.add(rest)
        if length:
            self._draft[length].add(draft)
        self._lately.append(length)
        if len(self._lately) >= self.REMEASURE:
            self._forget()
        if len(times.times) <= Recent.FEW or len(self._lately) % self.EVERY == 0:
            self._found = []

    def seconds(self) -> Sequence[float]:
        """For each of the choices."""
        if not self._found:
            rest = self._rest.typical
            self._found = [self._drafting(n) + self._verifying(n) + rest for n in self.choices]
        return self._found

    def _drafting(self, length: int) -> float:
        """Measured (a drafter may make several tokens at once), or so much for each token as the nearest length.

        Until it was measured a few times, no more than that, or an unlucky one would never be put right.
        """
        if not length:
            return 0.0
        known = self._draft
        measured = known.get(length)
        if measured and measured.settled:
            return measured.typical
        nearest = min((n for n in known if n != length), key=lambda n: abs(n - length), default=length)
        guess = known[nearest].typical * length / nearest
        return min(measured.typical, guess) if measured else guess

    def _verifying(self, length: int) -> float:
        """Measured, or interpolated between the lengths around it: as for drafts."""
        known = self._verify
        measured = known.get(length)
        if measured and measured.settled:
            return measured.typical
        below = max((n for n in known if n < length), default=None)
        above = min((n for n in known if n > length), default=below)
        if above is None:
            return known[length].typical
        if below is None:
            below = above
        share = (length - below) / (above - below) if above > below else 0.0
        guess = known[below].typical + share * (known[above].typical - known[below].typical)
        return min(measured.typical, guess) if measured else guess

    def _forget(self) -> None:
        """Lengths that were not drafted lately are tried again where their neighbours make them look good."""
        done = {*self._lately} - {0}
        self._lately.clear()
        for times in (self._verify, self._draft) if done else ():
            for length in times.keys() - done - {0}:
                del times[length]
