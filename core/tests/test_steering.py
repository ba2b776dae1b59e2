"""Rows of one batch may have different controllers, each of which hears of its own rows alone."""

from __future__ import annotations

from dataclasses import replace

from fastllm_core.controllers import Controller, Fixed, Round
from fastllm_core.request import Request
from fastllm_core.steering import Steering
from fastllm_core.testing import Scripted, tiny_model
from fastllm_core.testing.engines import make_engine


class Noted(Fixed):
    """Remembers what it was told."""

    def __init__(self, longest: int) -> None:
        super().__init__(longest)
        self.rounds: list[Round] = []
        self.left: list[int] = []

    def observe(self, round_: Round) -> None:
        self.rounds.append(round_)

    def release(self, row: int) -> None:
        self.left.append(row)


def round_(rows: tuple[int, ...], accepted: tuple[int, ...]) -> Round:
    return Round(rows, (4,) * len(rows), accepted, 1.0, 2.0, 3.0)


def test_each_controller_hears_of_its_own_rows() -> None:
    own = Noted(4)
    steering: Controller = Steering(own, 4)
    assert isinstance(steering, Steering)
    steering.assign(7, "heuristic")
    steering.assign(9, "heuristic")
    assert steering.lengths([5, 7, 9, 6]) == [4, 4, 4, 4]
    steering.observe(round_((5, 7, 9, 6), (1, 2, 4, 3)))
    assert steering.lengths([5, 7, 9, 6]) == [4, 3, 4, 4]
    assert own.rounds == [Round((5, 6), (4, 4), (1, 3), 1.0, 2.0, 3.0)]
    assert steering.thresholds([5, 7], [True, False]) == [0.0, 0.0]
    steering.release(7)
    steering.release(5)
    assert own.left == [5]
    assert steering.lengths([7]) == [4]


def test_without_a_wish_the_round_goes_to_the_engines_own_as_it_is() -> None:
    own = Noted(3)
    steering = Steering(own, 3)
    steering.observe(round_((5, 6), (1, 3)))
    assert own.rounds == [round_((5, 6), (1, 3))]
    assert steering.lengths([5, 6]) == [3, 3]


def test_what_a_drafter_expects_reaches_those_who_weigh_it() -> None:
    steering = Steering(Noted(4), 4)
    assert not steering.weighs
    steering.assign(7, "auto")
    assert steering.weighs
    assert steering.lengths([5, 7], [0.0, 0.0]) == [4, 0]
    assert steering.lengths([5, 7], [0.0, 0.9]) == [4, 4]


def test_a_controller_that_is_exchanged_is_the_one_that_is_asked() -> None:
    engine = make_engine(tiny_model(num_hidden_layers=2), Scripted(lambda row, count: [1, 2, 3, 4][:count]))
    other = Noted(1)
    engine.parts = replace(engine.parts, controller=other)
    engine.add(Request((3, 4), 6))
    while not engine.idle:
        engine.step()
    assert {drafted for round_ in other.rounds for drafted in round_.drafted} <= {0, 1}
    assert len(other.rounds) > 2


def test_rows_of_an_engine() -> None:
    """One that is always wrong drafts less and less by the heuristic, and as much as ever beside it."""
    drafted: dict[int, list[int]] = {}
    engine = make_engine(tiny_model(num_hidden_layers=2), Scripted(lambda row, count: [1, 2, 3, 4][:count]))
    rows = {engine.add(Request((3, 4), 12, controller=name)): name for name in (None, "heuristic")}
    waiting = engine.add(Request((3, 4), 12, controller="auto"))
    engine.cancel(waiting)
    while not engine.idle:
        for event in engine.step():
            drafted.setdefault(event.row, []).append(sum(event.drafted))
    fixed, heuristic = (drafted[row] for row in rows)
    assert fixed[:5] == [4] * 5
    assert heuristic[:5] == [4, 3, 2, 1, 1]
