"""How many tokens to draft: fixed, heuristic, until the drafter is unsure, or what the measured cost model says.

A controller may look at past rounds, never at the tokens that this round will draw, so that no choice of its own biases
the output: a token at which a draft ends stays in the draft. Its state for a row starts afresh with each request, but
in one that looks at time, with which a seed promises no text anyway.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple, Protocol

from .costs import Costs
from .errors import ConfigError
from .verifier import round_widths


class Round(NamedTuple):
    """What a round cost and gave."""

    rows: tuple[int, ...]
    """Ids of the rows that took part."""
    drafted: tuple[int, ...]
    """Tokens (for a tree: levels) that each row drafted."""
    accepted: tuple[int, ...]
    draft_seconds: float
    verify_seconds: float
    rest_seconds: float


class Controller(Protocol):
    """Chooses the draft length of each row."""

    weighs: bool = False
    """Whether it wants to know what the drafter expects; see `Drafter.expected_acceptance`."""

    def lengths(self, rows: Sequence[int], expected: Sequence[float] | None = None) -> list[int]:
        """The most tokens that each row (by id) should draft in the coming round.

        expected: what the drafter expects of each row; only for one that weighs, and if the drafter can tell.
        """
        ...

    def thresholds(self, rows: Sequence[int], sampled: Sequence[bool]) -> list[float]:
        """A row's draft ends behind a token that its drafter finds less likely than this; see `Batch.thresholds`.

        sampled: whether each row samples.
        """
        return [0.0] * len(rows)

    def observe(self, round_: Round) -> None:
        """A round is over."""
        return

    def release(self, row: int) -> None:
        """A row has left."""
        return

    def state(self, row: int) -> dict[str, float]:
        """What has been adapted to a row, by name, for its report."""
        return {}


class Fixed(Controller):
    """The same length in every round."""

    def __init__(self, longest: int) -> None:
        """longest: tokens to draft."""
        self.longest = longest

    def lengths(self, rows: Sequence[int], expected: Sequence[float] | None = None) -> list[int]:
        """The one length."""
        return [self.longest] * len(rows)


class Heuristic(Controller):
    """Two more after a draft that was accepted whole, one less after any other; at least one (transformers' rule)."""

    def __init__(self, longest: int) -> None:
        """longest: where a row starts and what it never exceeds."""
        self.longest = longest
        self._lengths: dict[int, int] = {}

    def lengths(self, rows: Sequence[int], expected: Sequence[float] | None = None) -> list[int]:
        """Each row's own length."""
        return [self._lengths.get(row, self.longest) for row in rows]

    def observe(self, round_: Round) -> None:
        """Move each row's length."""
        for row, drafted, accepted in zip(round_.rows, round_.drafted, round_.accepted, strict=True):
            if drafted:
                step = 2 if accepted == drafted else -1
                self._lengths[row] = min(max(self._lengths.get(row, self.longest) + step, 1), self.longest)

    def release(self, row: int) -> None:
        """Forget the row."""
        self._lengths.pop(row, None)


class Threshold(Controller):
    """Each draft ends behind the first token that the drafter is unsure of, and what counts as unsure is tuned.

    Each row has its own threshold, which goes up while its smoothed acceptance is below the target and down while it is
    not, unless drafts are as long as they may get. It starts afresh with each request, where the authors carry it over
    to the next: so a text does not depend on those before it.
    Source: Draft & Verify, arXiv:2309.08168, section 3.3, with the constants of the authors' code.
    """

    GREEDY, SAMPLED = 0.8, 0.5
    """Where a row's threshold starts."""
    TARGET: Final = 0.9
    """Share of the drafted tokens that should be accepted."""
    STEP: Final = 0.01
    """By how much the threshold is corrected, before smoothing (the paper's epsilon)."""
    ACCEPTANCE_MEMORY, THRESHOLD_MEMORY = 0.5, 0.9
    """How much of the old value survives a round (the paper's beta 1 and beta 2)."""

    def __init__(self, longest: int, threshold: float | None = None, target: float | None = None) -> None:
        """longest: the most tokens to draft.  threshold: where rows start; None is `GREEDY` or `SAMPLED`.

        target: None is `TARGET`.
        """
        self.longest = longest
        self.start = threshold
        self.target = self.TARGET if target is None else target
        self._thresholds: dict[int, float] = {}
        self._acceptance: dict[int, float] = {}

    def lengths(self, rows: Sequence[int], expected: Sequence[float] | None = None) -> list[int]:
        """As many as may be: the threshold ends drafts."""
        return [self.longest] * len(rows)

    def thresholds(self, rows: Sequence[int], sampled: Sequence[bool]) -> list[float]:
        """Each row's own."""
        for row, draws in zip(rows, sampled, strict=True):
            if row not in self._thresholds:
                self._thresholds[row] = (self.SAMPLED if draws else self.GREEDY) if self.start is None else self.start
        return [self._thresholds[row] for row in rows]

    def observe(self, round_: Round) -> None:
        """Move each row's threshold. A row that drafted nothing has shown nothing."""
        for row, drafted, accepted in zip(round_.rows, round_.drafted, round_.accepted, strict=True):
            if not drafted or row not in self._thresholds:
                continue
            mean = self._smoothed(self._acceptance.get(row, 0.0), accepted / drafted, self.ACCEPTANCE_MEMORY)
            old = self._thresholds[row]
            if mean < self.target:
                wanted = old + self.STEP
            elif drafted == self.longest:
                wanted = old
            else:
                wanted = old - self.STEP
            self._acceptance[row] = mean
            self._thresholds[row] = self._smoothed(old, wanted, self.THRESHOLD_MEMORY)

    @staticmethod
    def _smoothed(old: float, new: float, memory: float) -> float:
        return memory * old + (1.0 - memory) * new

    def release(self, row: int) -> None:
        """Forget the row."""
        self._thresholds.pop(row, None)
        self._acceptance.pop(row, None)

    def state(self, row: int) -> dict[str, float]:
        """The threshold, and the smoothed acceptance that moves it."""
        if row not in self._thresholds:
            return {}
        return {"threshold": self._thresholds[row], "acceptance": self._acceptance.get(row, 0.0)}


class CostModel(Controller):
    """The length that maximises expected tokens per second, from measured times and measured acceptance.

    With acceptance rate a (independent draws, arXiv:2211.17192 section 3) a draft of g tokens commits
    (1 - a^(g+1)) / (1 - a) tokens on average and costs draft(g) + verify(g + 1) + rest seconds. Where plain decoding
    wins, nothing is drafted, but for a short probe now and then, at ever longer intervals.

    A row's acceptance begins with what others showed. What the drafter expects takes its place where it can tell: so a
    row drafts as soon as it has something good, however long it had not.
    """

    weighs = True

    MEMORY: Final = 0.95
    """How much of the acceptance counts survives a round."""
    PRIOR: Final = 0.75
    """Rate of acceptance before any is known: optimistic, so that drafting is tried."""
    WEIGHT: Final = 8.0
    """Tested tokens that what other rows showed is worth to a new one. With few, an early rejection would end the
    drafts of a text for many rounds."""
    POOL: Final = 0.98
    """How much of the pooled counts survives a round."""
    FIRST_PROBE, LAST_PROBE = 8, 256
    """Rounds between probes: doubled after each that did not pay."""
    REMEASURE: Final = 128
    """Rounds after which plain decoding is timed again while drafting pays."""
    HOLD: Final = 8
    """Rounds for which a length that pays is drafted before it is looked at again: neither times nor acceptance change
    fast, and looking shows in the time of a small model's round."""
    MARGIN: Final = 1.02
    """How much better drafting must look before it is chosen over plain decoding: times are noisy."""

    def __init__(self, longest: int) -> None:
        """longest: the most tokens to draft."""
        self.longest = longest
        self._choices = [width - 1 for width in round_widths(longest)]
        self._acceptance: dict[int, tuple[float, float]] = {}
        """Accepted and tested tokens of each row."""
        self._pool = (self.PRIOR * self.WEIGHT, self.WEIGHT)
        """The same of all rows so far."""
        self._costs: dict[int, Costs] = defaultdict(partial(Costs, self._choices))
        """By rows of the batch."""
        self._since_plain = 0
        self._since_probe = 0
        self._probe_after = self.FIRST_PROBE
        self._unread: list[Round] = []
        """Rounds that have not been learned from yet."""
        self._left: list[int] = []
        """Rows that have left since."""
        self._held: list[int] | None = None
        """Lengths for as many rows, until the next look."""

    def lengths(self, rows: Sequence[int], expected: Sequence[float] | None = None) -> list[int]:
        """One length for the batch, whose rows share the cost of a round, but none for a row that has nothing."""
        held = self._held
        if held and len(held) == len(rows) and expected is None and len(self._unread) < self.HOLD:
            return held
        self._learn()
        rates = [self._rate(row) for row in rows] if expected is None else expected
        length = self._length(rates) if any(rates) else 0
        lengths = [length if rate else 0 for rate in rates]
        pays = self._since_probe == 0 and length and self._costs[len(rows)].settled(length)
        self._held = lengths if pays and expected is None else None
        return lengths

    def _length(self, rates: Sequence[float]) -> int:
        costs = self._costs[len(rates)]
        if not costs.drafting_known:
            return self.longest
        if not costs.plain_known or self._since_plain >= self.REMEASURE:
            return 0
        plain, *drafting = [
            sum([expected_tokens(rate, length) for rate in rates]) / seconds
            for length, seconds in zip(self._choices, costs.seconds(), strict=True)
        ]
        best = max(drafting)
        if best > plain * self.MARGIN:
            self._probe_after = self.FIRST_PROBE
            return self._choices[1 + drafting.index(best)]
        if self._since_probe >= self._probe_after:
            self._probe_after = min(2 * self._probe_after, self.LAST_PROBE)
            return min(2, self.longest)
        return 0

    def acceptance(self, row: int) -> float:
        """The row's rate of acceptance, 0..1."""
        self._learn()
        return self._rate(row)

    def _rate(self, row: int) -> float:
        accepted, tested = self._acceptance.get(row) or self._fresh
        return accepted / tested

    @property
    def _fresh(self) -> tuple[float, float]:
        """What a new row starts with."""
        accepted, tested = self._pool
        return accepted / tested * self.WEIGHT, self.WEIGHT

    def observe(self, round_: Round) -> None:
        """Note a round."""
        self._unread.append(round_)
        if self._held is None:
            self._learn()

    def _learn(self) -> None:
        """Learn from what has been noted: times, and what was accepted."""
        unread, self._unread = self._unread, []
        for round_ in unread:
            self._learn_from(round_)
        while self._left:
            self._acceptance.pop(self._left.pop(), None)

    def _learn_from(self, round_: Round) -> None:
        length = max(round_.drafted)
        seconds = round_.draft_seconds, round_.verify_seconds, round_.rest_seconds
        self._costs[len(round_.rows)].add(length, *seconds)
        self._since_plain = self._since_plain + 1 if length else 0
        self._since_probe = 0 if length else self._since_probe + 1
        for row, drafted, accepted in zip(round_.rows, round_.drafted, round_.accepted, strict=True):
            if drafted:
                looked_at = min(accepted + 1, drafted)
                kept, tested = self._acceptance.get(row) or self._fresh
                self._acceptance[row] = kept * self.MEMORY + accepted, tested * self.MEMORY + looked_at
                kept, tested = self._pool
                self._pool = kept * self.POOL + accepted, tested * self.POOL + looked_at

    def release(self, row: int) -> None:
        """Forget the row's acceptance; the times stay, they belong to the machine, and what others begin with."""
        self._left.append(row)
        if self._held is None:
            self._learn()


def expected_tokens(acceptance: float, length: int) -> float:
    """Mean tokens committed by a round that drafts a chain of `length` tokens (arXiv:2211.17192, equation 1)."""
    if acceptance >= 1.0:
        return length + 1.0
    return (1.0 - acceptance ** (length + 1)) / (1.0 - acceptance)


CONTROLLERS: Final[dict[str, Callable[[int], Controller]]] = {
    "fixed": Fixed,
    "heuristic": Heuristic,
    "threshold": Threshold,
    "auto": CostModel,
}


def make_controller(
    name: str, longest: int, threshold: float | None = None, acceptance: float | None = None
) -> Controller:
    """The controller called `name` for drafts of at most `longest` tokens.

    threshold, acceptance: see `Threshold`; the others have no use for them.
    """
    if name not in CONTROLLERS:
        raise ConfigError(f"draft.controller: '{name}' does not exist; choose one of {', '.join(CONTROLLERS)}")
    return Threshold(longest, threshold, acceptance) if name == "threshold" else CONTROLLERS[name](longest)
