"""The closed form: expected tokens, costs of drafts, and what early exits save."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fastllm_core import load
from fastllm_core.testing import tiny_model, tiny_tokenizer
from fastllm_plugin_self_speculative.skipset import SkipSet
from fastllm_plugin_self_speculative.tuning.costs import Costs, expected_tokens
from fastllm_plugin_self_speculative.tuning.timing import Turns, measure, weights_of

FLAT = Costs((1.0,) * 4, (2.0,) * 4, 1.0, {1: 13.0, 5: 13.0})


@pytest.mark.parametrize(
    ("acceptance", "length", "tokens"), [(0.8, 4, 3.362), (0.9, 5, 4.686), (1.0, 5, 6.0), (0.0, 5, 1.0)]
)
def test_expected_tokens_of_a_round(acceptance: float, length: int, tokens: float) -> None:
    assert expected_tokens(acceptance, length) == pytest.approx(tokens, abs=5e-4)


def test_a_draft_costs_what_it_does_not_skip() -> None:
    assert FLAT.step(SkipSet()) == 13.0
    assert FLAT.step(SkipSet.of([0, 1], [3])) == 9.0
    assert FLAT.draft(SkipSet.of([0, 1], [3]), 3) == 27.0
    assert FLAT.ratio(SkipSet.of([0, 1, 2], [1, 2, 3]), 2) == pytest.approx(4 / 13)


def test_a_layer_that_is_skipped_whole_is_passed_by_and_a_draft_has_to_begin() -> None:
    costs = Costs((1.0,) * 4, (2.0,) * 4, 1.0, {1: 18.0}, shell=0.5, begin=3.0)
    assert costs.step(SkipSet()) == 15.0
    assert costs.step(SkipSet.of([0, 1], [1, 2])) == 1 + 2 + 4 + 3 * 0.5
    assert costs.draft(SkipSet.of([0, 1], [1, 2]), 2) == 3 + 2 * 8.5
    assert costs.ratio(SkipSet.of([0, 1], [1, 2]), 2) == pytest.approx(10 / 18)


def test_the_speed_up_is_the_formula_of_leviathan() -> None:
    skipped = SkipSet.of(range(4), [2, 3])
    c = FLAT.ratio(skipped, 4)
    assert FLAT.speedup(skipped, 0.8, 4) == pytest.approx(3.3616 / (4 * c + 1))
    assert FLAT.best_length(skipped, 0.3, 8) == 1
    assert FLAT.best_length(skipped, 0.99, 8) == 8


def test_the_whole_model_as_drafter_never_pays() -> None:
    assert all(FLAT.speedup(SkipSet(), 1.0, length) <= 1.0 for length in range(1, 9))


def test_an_early_exit_verifies_with_the_upper_layers_only() -> None:
    """Half of the layers: 6 of 13 are not run again, and the last draft's first layers cost 6. Overheads stay."""
    skipped = SkipSet.of_layers(2, 4)
    assert FLAT.verify(skipped, 4) == pytest.approx(13.0 * (1 - 6 / 13))
    assert FLAT.draft(skipped, 4) == pytest.approx(4 * 7 + 6)
    assert FLAT.verify(SkipSet.of([2, 3], [2]), 4) == 13.0
    slow = Costs((1.0,) * 4, (2.0,) * 4, 1.0, {1: 15.0, 5: 15.0})
    assert slow.verify(skipped, 4) == pytest.approx(2 + 13.0 * (1 - 6 / 13))


def test_widths_between_the_measured_ones_are_interpolated() -> None:
    costs = Costs((1.0,), (1.0,), 0.0, {1: 2.0, 3: 4.0, 9: 4.0})
    assert [costs.verify(SkipSet(), length) for length in (0, 1, 2, 5, 20)] == [2.0, 3.0, 4.0, 4.0, 4.0]


def test_costs_survive_a_file_and_nonsense_does_not() -> None:
    assert Costs.read(FLAT.to_json()) == FLAT
    with pytest.raises(ValueError, match="negative"):
        Costs((1.0,), (-1.0,), 1.0, {1: 1.0})
    with pytest.raises(ValueError, match="rows that include 1"):
        Costs((1.0,), (1.0,), 1.0, {2: 1.0})


@pytest.mark.parametrize("longest", [1, 3])
def test_costs_of_a_model_are_measured_in_its_own_shares(longest: int) -> None:
    model: Any = tiny_model()
    with load(model, "plain", tokenizer=tiny_tokenizer(), dtype="float32", config={"forward": "eager"}) as pipeline:
        weights = weights_of(pipeline)
        costs = measure(pipeline, longest, "a")
        assert pipeline.generate("a", max_new_tokens=4).token_ids
    layer = model.model.layers[0]
    assert weights["mlp"] == [sum(each.numel() * 4 for each in layer.mlp.parameters())] * 4
    assert weights["attention"] == [sum(each.numel() * 4 for each in layer.self_attn.parameters())] * 4
    assert costs.layers == 4
    assert sorted(costs.rows) == [1, 2, 3, 4][: longest + 1]
    assert 0 < costs.step(SkipSet.of_layers(1, 4)) < costs.step(SkipSet())


def test_every_kind_of_round_has_its_turn_and_a_draft_cut_short_has_another() -> None:
    def round_(drafted: int, seconds: float) -> Any:
        return SimpleNamespace(drafted=(drafted,), draft_seconds=seconds, verify_seconds=2 * seconds, rest_seconds=1.0)

    some, other = SkipSet.of([1], []), SkipSet.of([], [1])
    turns = Turns([(some, 0), (other, 2)])
    asked = []
    for drafted, seconds in ((0, 1.0), (1, 2.0), (2, 3.0), (0, 4.0)):
        asked.append((turns.skipped, turns.lengths([7])))
        turns.observe(round_(drafted, seconds))
    assert asked == [(some, [0]), (other, [2]), (other, [2]), (some, [0])]
    assert turns.drafts == {(other, 2): [3.0]}
    assert turns.rests == {0: [3.0, 9.0], 2: [7.0]}
    assert turns.had(1)
    assert not turns.had(2)
