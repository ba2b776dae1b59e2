"""Choices, plans, statistics, counting and costs, each by itself."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from fastllm_core import ConfigError
from fastllm_plugin_bench.arm import JobRun, RowRun, Step
from fastllm_plugin_bench.choice import configured, parse
from fastllm_plugin_bench.cost import Rounds, cost_of, limit_of
from fastllm_plugin_bench.plan import Case, Plan, rotated
from fastllm_plugin_bench.recount import Counts, Limit
from fastllm_plugin_bench.statistics import Pair, speed_ratio
from fastllm_plugin_bench.suite import load_suite


def test_several_configurations_of_one_method() -> None:
    choices = parse("speculative,speculative:draft.length=3:device=cuda:1:draft_model=x,plain", [])
    assert [choice.label for choice in choices] == [
        "plain",
        "speculative",
        "speculative:draft.length=3:device=cuda:1:draft_model=x",
    ]
    assert choices[2].settings == {"draft.length": "3", "device": "cuda:1", "options.speculative.draft_model": "x"}


def test_all_methods_are_optional_and_plain_comes_first() -> None:
    choices = parse("all", ["a", "b"])
    assert [(choice.label, choice.optional) for choice in choices] == [("plain", False), ("a", True), ("b", True)]


def test_a_setting_without_a_method_is_refused() -> None:
    with pytest.raises(ConfigError, match="write METHOD or METHOD:KEY=VALUE"):
        parse("draft.length=3", [])


def test_a_choice_leaves_out_the_options_of_others() -> None:
    overrides = {"options.a.x": 1, "options.b.y": 2, "draft.length": 7}
    choice = parse("a:draft.length=3", [])[1]
    config = configured(choice, None, overrides, {"a": {"x": 0, "z": 5}, "c": {"w": 1}})
    assert (config.method, config.draft.length) == ("a", 3)
    assert config.options == {"a": {"x": 1, "z": 5}}


def test_groups_are_of_one_category_and_hold_every_question_once() -> None:
    plan = Plan(load_suite("demo"), (Case(4, 0.0),), 1, 8)
    groups = plan.groups(plan.cases[0])
    assert all({q.category for q in group.questions} == {group.category} for group in groups)
    assert [len(group.questions) for group in groups] == [4, 2] * 4
    asked = Counter(q.id for group in groups for q in group.questions)
    assert asked == Counter(q.id for q in plan.suite.questions)


def test_every_arm_comes_first_as_often_as_the_others() -> None:
    firsts = Counter(rotated("abc", by)[0] for by in range(9))
    assert set(firsts.values()) == {3}


def steps(*lengths: int, every: float = 1.0) -> list[Step]:
    return [Step((i + 1) * every, tuple(range(length)), accepted=length - 1) for i, length in enumerate(lengths)]


def test_tokens_after_the_end_count_nowhere() -> None:
    row = RowRun([Step(1.0, (5, 6), accepted=1), Step(2.0, (7, 9, 8), accepted=2), Step(3.0, (5,))])
    counts = Counts()
    counts.add(JobRun([row], 3.0), Limit({9}, 100))
    assert (counts.tokens, counts.row_rounds, counts.decode_tokens, counts.decode_seconds) == (4, 2, 2, 1.0)
    shorter = Counts()
    shorter.add(JobRun([row], 3.0), Limit({9}, 3))
    assert (shorter.tokens, shorter.decode_tokens) == (3, 1)


def test_decoding_begins_when_every_row_has_its_first_tokens() -> None:
    late = [Step(2.5, (1,)), Step(3.5, (1,))]
    counts = Counts()
    counts.add(JobRun([RowRun(steps(1, 1, 1, 1)), RowRun(late)], 4.0), Limit((), 100))
    assert (counts.prompt_seconds, counts.decode_seconds, counts.decode_tokens) == (2.5, 1.5, 3)


def test_rounds_without_drafts_may_be_one_event() -> None:
    """The last one ends behind two of its four tokens."""
    row = RowRun([Step(1.0, (1, 2, 3, 4)), Step(2.0, (5, 6, 7), (1, 1), 2), Step(3.0, (4, 9, 4, 4))])
    counts = Counts()
    counts.add(JobRun([row], 3.0), Limit({9}, 100))
    assert (counts.tokens, counts.row_rounds) == (9, 4 + 1 + 2)


def test_acceptance_is_counted_by_position() -> None:
    row = RowRun([Step(1.0, (1, 2, 3), (1, 1, 1), 2), Step(2.0, (4,), (1, 1), 0), Step(3.0, (5,), (), 0)])
    counts = Counts()
    counts.add(JobRun([row], 3.0), Limit((), 100))
    assert (counts.drafted_at, counts.accepted_at) == ([2, 2, 1], [1, 1, 0])
    assert (counts.judged, counts.kept, counts.drafting, counts.positions) == (4, 2, 2, 5)


def noisy(units: int, repeats: int, ratio: float, seed: int) -> list[Pair]:
    """Prompts that differ in difficulty, on a machine whose speed wanders."""
    draw = random.Random(seed)
    pairs = []
    for unit in range(units):
        own = ratio * draw.gauss(1, 0.2)
        for _ in range(repeats):
            machine = draw.gauss(1, 0.1)
            pairs.append(Pair(unit, 100, machine / own * draw.gauss(1, 0.02), 100, machine * draw.gauss(1, 0.02)))
    return pairs


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """The ratio of totals is the harmonic mean over prompts: 2 / E[1 / N(1, 0.2)], about 1.91."""
    truth = speed_ratio(noisy(4000, 1, 2.0, seed=1))
    assert truth is not None
    found = [speed_ratio(noisy(20, 3, 2.0, seed)) for seed in range(60)]
    held = sum(ratio is not None and ratio.low <= truth.value <= ratio.high for ratio in found)
    assert 50 <= held <= 60


def test_repeats_of_a_prompt_are_no_further_prompts() -> None:
    few, many = (speed_ratio(noisy(8, repeats, 2.0, seed=3)) for repeats in (2, 40))
    assert few is not None
    assert many is not None
    assert many.high - many.low > 0.6 * (few.high - few.low)


def test_nothing_timed_gives_no_ratio() -> None:
    assert speed_ratio([]) is None
    assert speed_ratio([Pair(0, 0, 0.0, 3, 1.0)]) is None


PLAIN = Rounds(100, 0.0, 0.9, 0.1)


def counts_of(kept: int, rounds: int = 100, length: int = 4) -> Counts:
    """Rounds with drafts of one length, of which each keeps the same number."""
    counts = Counts()
    rows = [RowRun([Step(1.0, (0,) * (kept + 1), (1,) * length, kept)] * rounds)]
    counts.add(JobRun(rows, 1.0), Limit((), 10**6))
    return counts


def test_full_acceptance_at_no_cost_predicts_all_tokens_of_a_round() -> None:
    cost = cost_of(counts_of(4), Rounds(100, 0.0, 0.9, 0.1), PLAIN)
    assert cost is not None
    assert cost.predicted == pytest.approx(5, rel=1e-3)
    assert cost.round == pytest.approx(1)


def test_the_cost_model_is_theorem_3_8() -> None:
    cost = cost_of(counts_of(2), Rounds(100, 0.4, 0.9, 0.1), PLAIN)
    assert cost is not None
    assert (cost.acceptance, cost.ratio) == (pytest.approx(2 / 3), pytest.approx(0.1))
    assert cost.predicted == pytest.approx((1 - (2 / 3) ** 5) / (1 / 3) / 1.4)


@pytest.mark.parametrize(
    ("kept", "rounds", "cause"),
    [
        (0, Rounds(100, 0.01, 0.95, 0.1), "acceptance: 0%"),
        (4, Rounds(100, 5.0, 0.95, 0.1), "drafting, which takes 5.00 plain steps"),
        (4, Rounds(100, 0.1, 3.9, 0.1), "verification: a round's rows cost 4.00 plain steps"),
        (4, Rounds(100, 0.1, 0.9, 3.1), "what surrounds the forwards, 3.00"),
        (4, Rounds(100, 0.02, 0.9, 0.1), "Nothing limits it much"),
    ],
)
def test_the_sentence_names_the_cause(kept: int, rounds: Rounds, cause: str) -> None:
    assert cause in limit_of(cost_of(counts_of(kept), rounds, PLAIN), 1.5)


def test_drafting_seldom_is_named() -> None:
    counts = counts_of(1, rounds=10)
    counts.row_rounds = 100
    cost = cost_of(counts, PLAIN, PLAIN)
    assert limit_of(cost, 1.0).startswith("It drafts in 10% of its rounds only")
    assert "controller" not in limit_of(cost, 1.0)
    assert "controller" in limit_of(cost, 1.0, controlled=True)
