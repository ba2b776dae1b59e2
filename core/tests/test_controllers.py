"""Draft lengths against the formula, with simulated times and acceptances."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from fastllm_core.controllers import CostModel, Fixed, Heuristic, Round, Threshold, expected_tokens, make_controller
from fastllm_core.errors import ConfigError


def round_of(drafted: int, accepted: int, *, row: int = 1, draft: float = 1.0, verify: float = 1.0) -> Round:
    return Round((row,), (drafted,), (accepted,), draft * drafted, verify, 0.1)


@dataclass
class Machine:
    """Rounds with known costs: `verify` seconds a forward, `slope` more for each node, `draft` for a drafted token."""

    verify: float = 1.0
    slope: float = 0.0
    draft: float = 0.1
    rest: float = 0.05
    noise: float = 0.0
    rng: random.Random = field(default_factory=lambda: random.Random(1))
    seconds: float = 0.0
    tokens: int = 0

    def run(
        self,
        controller: CostModel,
        rounds: int,
        acceptance: float | Callable[[int], float],
        rows: int = 1,
        *,
        told: bool = False,
    ) -> list[int]:
        """The lengths that were drafted. told: the drafter knows what to expect."""
        lengths = []
        for number in range(rounds):
            rate = acceptance(number) if callable(acceptance) else acceptance
            length = controller.lengths(range(rows), [rate] * rows if told else None)[0]
            accepted = tuple(self._accepted(length, rate) for _ in range(rows))
            noise = 1 + self.noise * self.rng.random()
            verify, draft = (self.verify + self.slope * length) * noise, self.drafting(length) * noise
            controller.observe(Round(tuple(range(rows)), (length,) * rows, accepted, draft, verify, self.rest))
            self.seconds += verify + draft + self.rest
            self.tokens += sum(accepted) + rows
            lengths.append(length)
        return lengths

    def _accepted(self, length: int, rate: float) -> int:
        return next((i for i in range(length) if self.rng.random() >= rate), length)

    def best(self, longest: int, rate: float) -> int:
        """The arg max of the formula, over the lengths that the verifier has widths for."""
        choices = [length for length in (0, 1, 2, 4, 8, 16, 32) if length < longest] + [longest]
        return max(choices, key=lambda n: self.rate(n, rate))

    def rate(self, length: int, rate: float) -> float:
        seconds = self.verify + self.slope * length + self.drafting(length) + self.rest
        return expected_tokens(rate, length) / seconds

    def drafting(self, length: int) -> float:
        return self.draft * length


@pytest.mark.parametrize(
    ("acceptance", "length", "expected"),
    [
        *((0.8, 2, 2.440), (0.8, 4, 3.362), (0.8, 5, 3.689), (0.8, 7, 4.161), (0.8, 10, 4.571)),
        *((0.6, 4, 2.306), (0.9, 5, 4.686)),
        *((0.0, 5, 1.0), (1.0, 5, 6.0), (0.5, 0, 1.0)),
    ],
)
def test_expected_tokens(acceptance: float, length: int, expected: float) -> None:
    """The values of methods section 1."""
    assert expected_tokens(acceptance, length) == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize(
    ("cost", "acceptance", "length", "factor"),
    [(0.05, 0.7, 6, 2.35), (0.1, 0.8, 6, 2.47), (0.2, 0.6, 2, 1.40), (0.02, 0.5, 4, 1.79), (0.1, 0.9, 10, 3.43)],
)
def test_the_formula_has_its_known_optimum(cost: float, acceptance: float, length: int, factor: float) -> None:
    def speed_up(n: int) -> float:
        return expected_tokens(acceptance, n) / (n * cost + 1)

    assert max(range(25), key=speed_up) == length
    assert speed_up(length) == pytest.approx(factor, abs=0.005)


def test_fixed() -> None:
    controller = Fixed(5)
    controller.observe(round_of(5, 0))
    controller.release(1)
    assert controller.lengths([1, 2]) == [5, 5]


def test_heuristic_adds_two_after_full_acceptance_and_takes_one_otherwise() -> None:
    controller = Heuristic(6)
    lengths = []
    for accepted in (0, 4, 3, 3, 0, 2):
        lengths += controller.lengths([1])
        controller.observe(round_of(lengths[-1], min(accepted, lengths[-1])))
    assert lengths == [6, 5, 4, 3, 5, 4]
    for _ in range(9):
        controller.observe(round_of(2, 0))
    assert controller.lengths([1]) == [1]


def test_heuristic_learns_nothing_from_a_round_without_drafts_and_keeps_rows_apart() -> None:
    controller = Heuristic(6)
    controller.observe(round_of(0, 0))
    controller.observe(Round((1, 2), (6, 6), (6, 1), 1, 1, 1))
    assert controller.lengths([1, 2, 3]) == [6, 5, 6]
    controller.release(2)
    assert controller.lengths([2]) == [6]


@pytest.mark.parametrize("longest", [5, 8, 16])
@pytest.mark.parametrize("acceptance", [0.5, 0.7, 0.9])
@pytest.mark.parametrize(("draft", "slope"), [(0.02, 0.0), (0.1, 0.0), (0.2, 0.02)])
def test_auto_is_as_fast_as_the_best_length(longest: int, acceptance: float, draft: float, slope: float) -> None:
    machine = Machine(draft=draft, slope=slope, noise=0.2)
    lengths = machine.run(CostModel(longest), 2000, acceptance)
    best = machine.best(longest, acceptance)
    average = machine.tokens / machine.seconds
    assert average * 1.1 > 0.93 * machine.rate(best, acceptance)  # noise makes every round 1.1 times as long
    near = [n for n in range(longest + 1) if machine.rate(n, acceptance) > 0.95 * machine.rate(best, acceptance)]
    assert sum(near[0] <= length <= near[-1] for length in lengths[50:]) > 0.85 * len(lengths[50:])


class Strides(Machine):
    """Its drafter makes four tokens in a call that takes hardly longer than one."""

    def drafting(self, length: int) -> float:
        return self.draft * (length // 4 + length % 4)


def test_auto_times_drafts_of_each_length() -> None:
    """Two tokens cost twice as much as four; taken for a share of four's time, they would look like the best."""
    machine = Strides(draft=0.3)
    lengths = machine.run(CostModel(8), 400, 0.5)
    assert machine.best(8, 0.5) == 4
    assert Counter(lengths[20:]).most_common(1)[0][0] == 4
    assert lengths[20:].count(4) > 0.95 * len(lengths[20:])


def test_one_unlucky_time_is_put_right() -> None:
    machine, controller = Machine(draft=0.02), CostModel(8)
    best = machine.best(8, 0.5)
    assert best == 4
    machine.run(controller, 2, 0.5)
    for length in (8, 8, 2, 2, 2):
        controller.observe(Round((0,), (length,), (0,), 0.02 * length, 1.0, 0.0))
    controller.observe(Round((0,), (best,), (0,), 0.9, 9.0, 0.0))  # the machine did something else meanwhile
    lengths = machine.run(controller, 200, 0.5)
    assert lengths[50:].count(best) > 0.9 * len(lengths[50:])


def test_a_cold_start_is_put_right() -> None:
    machine, controller = Machine(draft=0.02), CostModel(5)
    for _ in range(9):  # everything is slow at first, and the longest drafts come first
        controller.observe(Round((0,), (5,), (5,), 0.5, 3.0, 0.05))
    for _ in range(3):
        controller.observe(Round((0,), (4,), (4,), 0.08, 1.0, 0.05))
    lengths = machine.run(controller, 600, 0.9)
    assert machine.best(5, 0.9) == 5
    assert lengths[300:].count(5) > 0.95 * 300


def test_auto_with_certain_acceptance_takes_exactly_the_arg_max() -> None:
    for draft, expected in ((0.02, 16), (0.3, 16), (1.2, 0)):
        machine = Machine(draft=draft)
        assert machine.best(16, 1.0) == expected
        tail = machine.run(CostModel(16), 400, 1.0)[100:]
        assert max(set(tail), key=tail.count) == expected


@pytest.mark.parametrize(("draft", "acceptance"), [(0.1, 0.02), (0.6, 0.4), (1.5, 0.9)])
def test_auto_drafts_nothing_where_drafting_does_not_pay(draft: float, acceptance: float) -> None:
    machine = Machine(draft=draft, noise=0.1)
    assert machine.best(5, acceptance) == 0
    lengths = machine.run(CostModel(5), 5000, acceptance)
    assert sum(length > 0 for length in lengths) < 0.02 * 5000
    plain = 1 / (machine.verify * 1.05 + machine.rest)
    assert machine.tokens / machine.seconds > 0.97 * plain  # probing costs at most 3 %


def test_auto_recovers_when_acceptance_improves() -> None:
    machine = Machine(draft=0.1)
    controller = CostModel(5)
    machine.run(controller, 400, 0.0)
    lengths = machine.run(controller, 1500, 0.9)
    assert sum(length >= 4 for length in lengths[-500:]) > 480


def test_auto_drafts_at_the_first_token_of_a_late_burst_where_the_drafter_expects_it() -> None:
    """A look-up that had nothing good for 3000 tokens. By what was accepted alone, it would be found late."""

    def copies(number: int) -> float:
        return 0.95 if number >= 3000 else 0.02

    late, told = (Machine(draft=0.001).run(CostModel(8), 3040, copies, told=told)[3000:] for told in (False, True))
    assert told.count(8) >= 39  # but for a plain round that is timed anew
    assert late.count(8) < 20


def test_auto_asks_for_no_draft_where_there_is_nothing_and_learns_from_no_such_round() -> None:
    controller = CostModel(4)
    assert controller.lengths([1, 2], [0.0, 0.0]) == [0, 0]
    for _ in range(50):
        controller.observe(Round((1, 2), (4, 4), (4, 4), 0.1, 1.0, 0.1))
        controller.observe(Round((1, 2), (0, 0), (0, 0), 0.0, 1.0, 0.1))
    assert controller.lengths([1, 2], [0.9, 0.0]) == [4, 0]
    assert controller.lengths([1, 2], [0.0, 0.0]) == [0, 0]


@pytest.mark.parametrize("rate", [0.0, 0.02, 0.1])
def test_auto_is_as_fast_as_plain_decoding_where_little_is_expected(rate: float) -> None:
    machine = Machine(draft=0.001, slope=0.1, noise=0.1)
    machine.run(CostModel(8), 5000, rate, told=True)
    assert machine.tokens / machine.seconds > 0.98 / (machine.verify * 1.05 + machine.rest)


def test_auto_measures_plain_decoding_now_and_then_while_drafting_pays() -> None:
    lengths = Machine().run(CostModel(5), 1000, 0.9)
    assert 5 <= lengths.count(0) <= 10


def test_auto_times_each_batch_size_by_itself() -> None:
    """One row: drafting pays. Eight rows on a machine that is busy then: it does not."""
    controller = CostModel(5)
    alone, crowd = Machine(), Machine(slope=2.0)
    for _ in range(6):
        alone.run(controller, 50, 0.8)
        crowd.run(controller, 50, 0.8, rows=8)
    assert min(sorted(alone.run(controller, 40, 0.8))[4:]) >= 4
    assert max(sorted(crowd.run(controller, 40, 0.8, rows=8))[:-3]) == 0


def test_auto_begins_a_request_with_what_the_others_showed() -> None:
    controller = CostModel(5)
    assert controller.acceptance(0) == 0.75
    Machine().run(controller, 100, 0.0)
    assert controller.acceptance(0) < 0.2
    controller.release(0)
    controller.release(0)
    assert controller.acceptance(0) < 0.3
    lengths = Machine().run(controller, 300, 0.9)
    assert sum(length >= 4 for length in lengths[-100:]) > 95, "and finds out that it was wrong"


def test_an_early_rejection_does_not_end_the_drafts_of_a_text() -> None:
    controller = CostModel(5)
    Machine().run(controller, 50, 0.75)
    controller.observe(Round((1,), (5,), (0,), 0.5, 1.0, 0.05))
    assert 0.5 < controller.acceptance(1) < 0.75
    assert controller.lengths([1])[0] > 0


def test_auto_keeps_a_length_that_pays_for_some_rounds() -> None:
    """And learns what they showed, all of it, when it looks again: also of other rows."""
    controller = CostModel(5)
    Machine().run(controller, 20, 0.9)
    looks = 0
    look = controller._length

    def counting(rates: Sequence[float]) -> int:
        nonlocal looks
        looks += 1
        return look(rates)

    controller._length = counting  # type: ignore[method-assign]
    Machine().run(controller, 10 * CostModel.HOLD, 0.9)
    assert 9 <= looks <= 11
    before, looks = controller.acceptance(0), 0
    lengths = Machine().run(controller, 3 * CostModel.HOLD, 0.0)
    assert lengths[-1] < 5
    assert looks >= 3
    assert controller.acceptance(0) < 0.75 < before


def test_auto_forgets_a_row_that_left_between_two_looks() -> None:
    controller = CostModel(5)
    Machine().run(controller, 20, 0.9)
    controller.lengths([0])
    controller.observe(Round((0,), (5,), (5,), 0.5, 1.0, 0.05))
    assert controller._unread
    controller.release(0)
    assert controller.acceptance(0) == controller.acceptance(7)
    assert not controller._acceptance


def test_auto_keeps_rows_apart() -> None:
    controller = CostModel(4)
    for _ in range(50):
        controller.observe(Round((1, 2), (4, 4), (4, 0), 0.1, 1.0, 0.1))
    assert controller.acceptance(1) > 0.95
    assert controller.acceptance(2) < 0.1
    assert controller.acceptance(3) == pytest.approx(0.8, abs=0.01), "a new one: four of five that were tested"


def test_controllers_by_name() -> None:
    kinds = {name: type(make_controller(name, 3)) for name in ("fixed", "heuristic", "threshold", "auto")}
    assert kinds == {"fixed": Fixed, "heuristic": Heuristic, "threshold": Threshold, "auto": CostModel}
    with pytest.raises(
        ConfigError, match=r"draft\.controller: 'best' does not exist; choose one of fixed, heuristic, threshold, auto"
    ):
        make_controller("best", 3)


def followed(controller: Threshold, drafts: list[tuple[int, int]], *, sampled: bool = False) -> list[float]:
    """The threshold after each (drafted, accepted)."""
    seen = []
    for drafted, accepted in drafts:
        controller.thresholds([1], [sampled])
        controller.observe(round_of(drafted, accepted))
        seen.append(controller.state(1)["threshold"])
    return seen


def test_the_threshold_moves_by_the_papers_rule() -> None:
    """By hand: m = .5 m + .5 a/k from 0; th = .9 th + .1 (th + .01, th or th - .01)."""
    controller = Threshold(8)
    # m = .5: up.  .75: up.  .875: up.  .9375 with less than 8 drafted: down.  .96875 with 8: still.  m = .484: up.
    rounds = [(4, 4), (4, 4), (4, 4), (4, 4), (8, 8), (4, 0)]
    steps = [0.001, 0.001, 0.001, -0.001, 0.0, 0.001]
    expected = [0.8 + sum(steps[: i + 1]) for i in range(len(steps))]
    assert followed(controller, rounds) == pytest.approx(expected)
    assert controller.state(1)["acceptance"] == pytest.approx(0.484375)


def test_a_threshold_that_moves_the_wrong_way_would_be_seen() -> None:
    """Under poor acceptance drafts must end sooner, so the threshold must rise."""
    assert followed(Threshold(5), [(5, 0)] * 50)[-1] == pytest.approx(0.85)
    assert followed(Threshold(5), [(4, 4)] * 50)[-1] == pytest.approx(0.8 + 0.003 - 0.047)


def test_a_round_without_a_draft_moves_no_threshold() -> None:
    """a / k with k = 0."""
    controller = Threshold(5)
    assert followed(controller, [(0, 0), (0, 0)]) == [0.8, 0.8]
    assert controller.state(1) == {"threshold": 0.8, "acceptance": 0.0}


def test_each_row_has_its_own_threshold_and_takes_it_along() -> None:
    controller = Threshold(4)
    assert controller.thresholds([1, 2], [False, True]) == [0.8, 0.5]
    controller.observe(Round((1, 2), (4, 4), (0, 0), 1.0, 1.0, 0.1))
    assert controller.thresholds([2, 1], [True, False]) == pytest.approx([0.501, 0.801])
    controller.release(1)
    assert controller.state(1) == {}
    assert controller.thresholds([1], [False]) == [0.8]


def test_the_threshold_and_its_target_can_be_set() -> None:
    controller = make_controller("threshold", 5, 0.3, 0.4)
    assert controller.thresholds([1, 2], [False, True]) == [0.3, 0.3]
    controller.observe(round_of(2, 2))
    assert controller.state(1)["threshold"] == pytest.approx(0.299)
    assert controller.lengths([1, 2]) == [5, 5]


@pytest.mark.parametrize("name", ["fixed", "heuristic", "auto"])
def test_other_controllers_end_no_draft(name: str) -> None:
    controller = make_controller(name, 5)
    assert controller.thresholds([1, 2], [False, True]) == [0.0, 0.0]
    assert controller.state(1) == {}
