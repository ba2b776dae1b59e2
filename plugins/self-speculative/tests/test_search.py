"""Searches on synthetic objectives: what they find, in which order, and that they go on as if never stopped."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fastllm_core import ConfigError, RequestError
from fastllm_plugin_self_speculative.skipset import SkipSet
from fastllm_plugin_self_speculative.tuning.costs import Costs
from fastllm_plugin_self_speculative.tuning.plot import picture
from fastllm_plugin_self_speculative.tuning.space import SPACES, EarlyExit, Ranges, SubLayers
from fastllm_plugin_self_speculative.tuning.strategy import (
    AtRandom,
    Bayesian,
    Everything,
    Greedy,
    Step,
    grid,
    next_prefix,
    strategy_of,
)
from fastllm_plugin_self_speculative.tuning.study import Study, best_of, best_so_far
from fastllm_plugin_self_speculative.tuning.trial import Score, Trial

LAYERS = 32


class Synthetic:
    """64 sub-layers, each with a loss of acceptance of its own and, in pairs, one together; a few lose nothing."""

    def __init__(self, layers: int = LAYERS, idle: int = 0, seed: int = 1) -> None:
        rng = random.Random(seed)
        self.losses = [0.4 * rng.random() ** 2 + 0.03 for _ in range(2 * layers)]
        self.idle = rng.sample(range(2 * layers), idle)
        for index in self.idle:
            self.losses[index] = 0.0
        self.layers = layers
        self.costs = Costs((0.4,) * layers, (0.6,) * layers, 1.0, {1: 1.0 + layers})
        self.asked = 0

    def score(self, skipped: SkipSet) -> Score:
        self.asked += 1
        chosen = [*skipped.attention, *(layer + self.layers for layer in skipped.mlp)]
        loss = sum(self.losses[index] for index in chosen)
        loss += 0.05 * sum(1 for index in chosen if index + 1 in chosen and self.losses[index] > 0)
        acceptance = math.exp(-loss)
        length = self.costs.best_length(skipped, acceptance, 8)
        value = self.costs.speedup(skipped, acceptance, length)
        return Score(value, acceptance, self.costs.ratio(skipped, length), length)


def searched(tmp_path: Path, name: str, objective: Any, trials: int, *, file: str = "a", **more: Any) -> list[Trial]:
    strategy = strategy_of(name, SubLayers(objective.layers), 0)
    with Study(tmp_path / f"{name}-{file}.jsonl", {"search": name}) as study:
        return study.run(strategy, objective, trials, **more)


def test_the_warm_started_search_finds_what_is_idle(tmp_path: Path) -> None:
    """20 of 64 lose nothing. They are all found, at a speed that follows from the costs; random search finds few."""
    objective = Synthetic(idle=20)
    best = best_of(searched(tmp_path, "tpe", objective, 150)).skipped
    chosen = {*best.attention, *(layer + LAYERS for layer in best.mlp)}
    assert set(objective.idle) <= chosen
    by_chance = best_of(searched(tmp_path, "random", objective, 150)).value
    greedily = best_of(searched(tmp_path, "greedy", objective, 150)).value
    found = objective.score(best).value
    assert found >= objective.score(SkipSet.of(*_halves(objective.idle))).value > 1.2
    assert found > by_chance + 0.1
    assert found >= greedily - 0.02


def _halves(indices: Sequence[int]) -> tuple[list[int], list[int]]:
    return [index for index in indices if index < LAYERS], [index - LAYERS for index in indices if index >= LAYERS]


def test_refining_improves_on_the_sweep_where_pieces_interfere(tmp_path: Path) -> None:
    history = searched(tmp_path, "tpe", Synthetic(layers=8, idle=3, seed=4), 90)
    before = max(trial.value for trial in history if trial.phase != "refine")
    assert {trial.phase for trial in history} == {"baseline", "alone", "prefix", "refine"}
    assert best_of(history).value >= before
    assert history[0].skipped == SkipSet()
    assert [trial.phase for trial in history[1:17]] == ["alone"] * 16


@pytest.mark.parametrize("name", ["tpe", "greedy", "random"])
def test_a_search_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path, name: str) -> None:
    whole = searched(tmp_path, name, Synthetic(layers=6), 45)
    for stop in (1, 9, 20, 38, 45):
        part = searched(tmp_path, name, Synthetic(layers=6), stop, file="b")
        assert part == whole[:stop]
    assert (tmp_path / f"{name}-a.jsonl").read_text() == (tmp_path / f"{name}-b.jsonl").read_text()


def test_a_search_that_remembers_something_else_would_be_found(tmp_path: Path) -> None:
    class Stateful(AtRandom):
        def __init__(self) -> None:
            super().__init__(SubLayers(6), 0)
            self.rng = random.Random(0)

        def next(self, history: Sequence[Trial]) -> Step:
            return "random", SkipSet.of([layer for layer in range(6) if self.rng.random() < 0.5], [])

    histories = []
    for stops in ((8,), (4, 8)):
        for stop in stops:
            with Study(tmp_path / f"{len(stops)}.jsonl", {}) as study:
                history = study.run(Stateful(), Synthetic(layers=6), stop)
        histories.append(history)
    assert histories[0] != histories[1]


def test_what_was_tried_is_not_scored_again(tmp_path: Path) -> None:
    objective = Synthetic(layers=4)
    history = searched(tmp_path, "greedy", objective, 30)
    assert objective.asked == len({trial.skipped for trial in history}) < len(history)
    again = Synthetic(layers=4)
    assert searched(tmp_path, "greedy", again, 30) == history
    assert again.asked == 0


def test_time_ends_a_search_between_trials(tmp_path: Path) -> None:
    told: list[Trial] = []
    searched(tmp_path, "tpe", Synthetic(), 100, goes_on=lambda: len(told) < 7, tell=told.append)
    assert [trial.number for trial in told] == [*range(7)]


# -- files -------------------------------------------------------------------------------------------------------------


def spoilt(tmp_path: Path, line: int, text: str) -> Path:
    searched(tmp_path, "random", Synthetic(layers=3), 5)
    path = tmp_path / "random-a.jsonl"
    lines = path.read_text().splitlines()
    lines[line] = text
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (2, '{"number": 1, "phase"', r"line 3: Expecting ':' delimiter"),
        (2, '{"number": 1}', r"line 3: it is no trial \(KeyError: 'value'\)"),
        (3, "[]", r"line 4: it is no trial \(TypeError"),
        (0, "{}", r"line 1: it does not say what is searched"),
        (4, json.dumps(Trial(7, "random", SkipSet(), Score(1, 1, 1, 1)).to_json()), r"trial 3 was expected, not 7"),
    ],
)
def test_a_corrupt_study_says_where(tmp_path: Path, line: int, text: str, message: str) -> None:
    path = spoilt(tmp_path, line, text)
    with pytest.raises(ConfigError, match=rf"^study .*random-a\.jsonl, .*{message}"):
        Study(path, {"search": "random"})


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(ConfigError, match=r"it is no text file; delete it"):
        Study(path, {})


def test_a_line_that_was_cut_off_is_tried_again(tmp_path: Path) -> None:
    history = searched(tmp_path, "random", Synthetic(layers=3), 5)
    path = tmp_path / "random-a.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    assert searched(tmp_path, "random", Synthetic(layers=3), 5) == history


def test_another_search_is_refused(tmp_path: Path) -> None:
    with Study(tmp_path / "s.jsonl", {"seed": 0, "space": "x"}):
        pass
    with pytest.raises(RequestError, match=r"holds another search \(different: seed\)"):
        Study(tmp_path / "s.jsonl", {"seed": 1, "space": "x"})


# -- spaces ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPACES)
def test_every_point_of_a_space_is_a_set_and_back(name: str) -> None:
    space = SPACES[name](3)
    for values in grid(space):
        skipped = space.decode(values)
        assert skipped.problem(3) is None
        back = space.encode(skipped)
        assert back is not None
        assert space.decode(back) == skipped


def test_what_is_not_in_a_space_has_no_values() -> None:
    assert Ranges(5).encode(SkipSet.of([1, 3], [1, 3])) is None
    assert EarlyExit(5).encode(SkipSet.of_layers(1, 3)) is None


def test_a_small_space_is_tried_whole_whatever_the_search(tmp_path: Path) -> None:
    assert isinstance(strategy_of("random", EarlyExit(12), 0), Everything)
    assert isinstance(strategy_of("greedy", Ranges(40), 0), Bayesian)
    assert isinstance(strategy_of("greedy", SubLayers(40), 0), Greedy)
    with Study(tmp_path / "s.jsonl", {}) as study:
        history = study.run(strategy_of("tpe", EarlyExit(6), 0), Synthetic(layers=6), 50)
    assert [trial.skipped.exit_layer(6) for trial in history] == [None, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("sampler", ["tpe", pytest.param("gp", marks=pytest.mark.slow)])
def test_ranges_are_searched_by_their_ends(tmp_path: Path, sampler: str) -> None:
    """Layers 10 to 15 lose nothing."""
    if sampler == "gp":
        pytest.importorskip("scipy")
    objective = Synthetic()
    for layer in range(10, 16):
        objective.losses[layer] = objective.losses[layer + LAYERS] = 0.0
    with Study(tmp_path / "s.jsonl", {}) as study:
        history = study.run(Bayesian(Ranges(LAYERS), 0, sampler), objective, 12 if sampler == "gp" else 60)
    assert best_of(history).value >= 1.0
    assert all(Ranges(LAYERS).encode(trial.skipped) is not None for trial in history)


def test_the_sweep_is_coarse_then_fine_and_ends() -> None:
    known = {0: 1.0}
    while (length := next_prefix(known, 64)) is not None:
        assert length not in known
        known[length] = 2.0 - abs(length - 37) / 64
    assert max(known, key=lambda each: known[each]) == 37
    assert len(known) < 30


def test_the_picture_shows_every_trial_and_the_best_so_far(tmp_path: Path) -> None:
    histories = {name: searched(tmp_path, name, Synthetic(layers=4), 20) for name in ("tpe", "random")}
    text = picture(histories, "speed", 1.0)
    assert text.count("<circle") == 40
    assert text.count("<path") == 2
    assert text.startswith("<svg xmlns=")
    assert best_so_far(histories["random"]) == sorted(best_so_far(histories["random"]))
