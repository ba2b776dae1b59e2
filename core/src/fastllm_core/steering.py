"""Draft lengths where the rows of a batch have different controllers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from .controllers import Controller, Round, make_controller
from .protocols import has_own


class Steering(Controller):
    """Asks for each row the controller that its request names, else the engine's own."""

    def __init__(self, own: Controller, longest: int) -> None:
        """own: of rows that name none.  longest: the most tokens that a round drafts."""
        self.own = own
        self.longest = longest
        self._others: dict[str, Controller] = {}
        self._names: dict[int, str] = {}
        self._look_at([own])

    def assign(self, row: int, name: str) -> None:
        """A row wants a controller of this name. Raises ConfigError if there is none."""
        if name not in self._others:
            self._others[name] = make_controller(name, self.longest)
            self._look_at([self.own, *self._others.values()])
        self._names[row] = name

    def _look_at(self, controllers: Sequence[Controller]) -> None:
        """Note what any of them does, so that a round asks nobody for nothing."""
        self.weighs = any(map(_weighs, controllers))
        self.learns = any(has_own("observe", one, Controller) for one in controllers)
        """Whether it wants to hear of rounds."""
        self.ends_drafts = any(has_own("thresholds", one, Controller) for one in controllers)
        """Whether it ends drafts that their drafter is unsure of."""

    def lengths(self, rows: Sequence[int], expected: Sequence[float] | None = None) -> list[int]:
        """What each row's controller says to it and to its other rows."""
        if not self._names:
            return _lengths(self.own, rows, expected)
        of = None if expected is None else dict(zip(rows, expected, strict=True))
        found: dict[int, int] = {}
        for one, some in self._groups(rows):
            found.update(zip(some, _lengths(one, some, None if of is None else [of[row] for row in some]), strict=True))
        return [found[row] for row in rows]

    def thresholds(self, rows: Sequence[int], sampled: Sequence[bool]) -> list[float]:
        """What each row's controller says."""
        if not self._names:
            return self.own.thresholds(rows, sampled)
        draws = dict(zip(rows, sampled, strict=True))
        found: dict[int, float] = {}
        for one, some in self._groups(rows):
            found.update(zip(some, one.thresholds(some, [draws[row] for row in some]), strict=True))
        return [found[row] for row in rows]

    def observe(self, round_: Round) -> None:
        """Every controller hears of its own rows; the round's times are those of all."""
        if not self._names:
            self.own.observe(round_)
            return
        place = {row: index for index, row in enumerate(round_.rows)}
        for one, some in self._groups(round_.rows):
            drafted = tuple(round_.drafted[place[row]] for row in some)
            accepted = tuple(round_.accepted[place[row]] for row in some)
            seconds = round_.draft_seconds, round_.verify_seconds, round_.rest_seconds
            one.observe(Round(tuple(some), drafted, accepted, *seconds))

    def release(self, row: int) -> None:
        """A row has left."""
        self._of(row).release(row)
        self._names.pop(row, None)

    def state(self, row: int) -> dict[str, float]:
        """What its controller has adapted to a row."""
        return self._of(row).state(row)

    def _of(self, row: int) -> Controller:
        return self._others[self._names[row]] if row in self._names else self.own

    def _groups(self, rows: Sequence[int]) -> list[tuple[Controller, list[int]]]:
        """The rows of each controller that has any."""
        groups: dict[str, list[int]] = defaultdict(list)
        for row in rows:
            groups[self._names.get(row, "")].append(row)
        return [(self._of(some[0]), some) for some in groups.values()]


def _weighs(controller: Controller) -> bool:
    """A controller need not inherit from the protocol."""
    return getattr(controller, "weighs", False)


def _lengths(controller: Controller, rows: Sequence[int], expected: Sequence[float] | None) -> list[int]:
    """What is expected, only for one that weighs it."""
    return (
        controller.lengths(rows, expected) if expected is not None and _weighs(controller) else controller.lengths(rows)
    )
