"""The exact law of what the engine writes in several rounds, with every role as in a run.

The target tosses a fair coin (its output matrix is zero), the drafter a false one. Every combination of uniforms is a
row of one batch: only `uniforms` is replaced, by the cells of a grid under the keys that the engine asks for.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from fastllm_core.acceptor import Rule
from fastllm_core.batch import Batch
from fastllm_core.protocols import Draft, Scores, Verdict
from fastllm_core.randomness import Purpose
from fastllm_core.request import Request, SamplingParams
from fastllm_core.testing import TableDrafter, tiny_model
from fastllm_core.testing.engines import decode, make_engine
from fastllm_core.testing.enumeration import Key
from fastllm_core.testing.laws import Law, always, distance, is_law_of

COIN = always(0.5, 0.5)
FALSE_COIN = torch.tensor([0.75, 0.25])
COUNT, LENGTH, PROMPT = 3, 2, (1,)
BORDERS = {Purpose.TARGET: [1 / 2], Purpose.DRAFT: [3 / 4], Purpose.ACCEPT: [2 / 3], Purpose.EXTRA: [1 / 2]}
BLOCK_BORDERS = [1 / 5, 4 / 9, 2 / 3]
"""Thresholds of a draft of two that is judged as a block."""
FIRST = len(PROMPT)
BY_ROUND: list[Key] = [
    *[(purpose, FIRST + n, i) for purpose in (Purpose.DRAFT, Purpose.ACCEPT) for n, i in ((0, 0), (0, 1), (1, 0))],
    (Purpose.EXTRA, FIRST, 0), (Purpose.EXTRA, FIRST + 1, 0), (Purpose.TARGET, FIRST + 2, 0),
]  # fmt: skip
BY_POSITION: list[Key] = [
    *[(purpose, FIRST + n, 0) for purpose in (Purpose.DRAFT, Purpose.ACCEPT, Purpose.EXTRA) for n in (0, 1)],
    (Purpose.TARGET, FIRST + 2, 0),
]  # fmt: skip
POSITIONS: list[Key] = [(Purpose.TARGET, FIRST + n, 0) for n in range(COUNT)]


@cache
def target() -> PreTrainedModel:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    return tiny_model(vocab_size=2, sharpness=0.0, **sizes)


def law(rule: Rule, keys: Sequence[Key], drafter: TableDrafter, monkeypatch: pytest.MonkeyPatch) -> Law:
    """The law of the engine's texts if the numbers of some keys run over their cells; other keys' decide nothing."""
    borders = {**BORDERS, Purpose.ACCEPT: BLOCK_BORDERS} if rule == "block" else BORDERS
    cells = [np.array([0.0, *borders[key[0]], 1.0]) for key in keys]
    grid = np.array(list(itertools.product(*[(edges[1:] + edges[:-1]) / 2 for edges in cells])))
    weights = [float(np.prod(widths)) for widths in itertools.product(*[np.diff(edges) for edges in cells])]
    column = {key: i for i, key in enumerate(keys)}

    def uniforms(
        seeds: Sequence[int], purpose: Purpose, counters: Sequence[Sequence[tuple[int, int]]]
    ) -> NDArray[np.float64]:
        columns = [[column.get((purpose, *pair), -1) for pair in row] for row in counters]
        picked = np.array(columns, dtype=np.int64).reshape(len(seeds), -1)
        return np.where(picked < 0, 0.5, grid[np.array(seeds)[:, None], picked])

    monkeypatch.setattr("fastllm_core.batch.uniforms", uniforms)
    engine = make_engine(target(), drafter, acceptance=rule, draft_length=LENGTH, max_rows=len(grid))
    warm = SamplingParams(temperature=1.0)
    texts = decode(engine, [Request(PROMPT, COUNT, warm, seed=row) for row in range(len(grid))])
    assert engine.report.rounds == COUNT  # for those that accept nothing
    assert 0 < engine.report.accepted < engine.report.drafted
    found = np.zeros((2,) * COUNT)
    for text, weight in zip(texts, weights, strict=True):
        found[tuple(text)] += weight
    return found


class Watchful(TableDrafter):
    """Drafts only where no token was discarded, or it was 0: its control looks at discarded draws."""

    def __init__(self) -> None:
        super().__init__(FALSE_COIN)
        self.discarded: dict[int, int] = {}

    def propose(self, batch: Batch) -> Draft:
        draft = super().propose(batch)
        wants = torch.tensor([self.discarded.get(row.id, 0) == 0 for row in batch.rows])
        return Draft(draft.tokens, draft.lengths * wants, probs=draft.probs)

    def observe(self, batch: Batch, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        for row, tokens, kept in zip(batch.rows, draft.tokens.tolist(), verdict.accepted.tolist(), strict=True):
            rest = tokens[kept + 1 :]
            self.discarded[row.id] = rest[0] if rest else 0


@pytest.fixture
def keyed_by_position(monkeypatch: pytest.MonkeyPatch) -> None:
    def uniforms(batch: Batch, purpose: Purpose, count: int) -> Tensor:
        return batch._keyed(purpose, [[(n + i, 0) for i in range(count)] for n in batch.lengths])

    monkeypatch.setattr(Batch, "uniforms", uniforms)


@pytest.mark.parametrize("rule", ["rejection", "block"])
def test_several_rounds_have_the_targets_law(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_law_of(COIN, law(rule, BY_ROUND, TableDrafter(FALSE_COIN), monkeypatch))


def test_several_rounds_have_the_targets_law_under_match(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [*POSITIONS, *[key for key in BY_ROUND if key[0] is Purpose.DRAFT]]
    assert is_law_of(COIN, law("match", keys, TableDrafter(FALSE_COIN), monkeypatch))


def test_control_may_look_at_discarded_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[Key] = [*BY_ROUND, (Purpose.TARGET, FIRST + 1, 0)]  # for a row that drafts nothing there
    assert is_law_of(COIN, law("rejection", keys, Watchful(), monkeypatch))


@pytest.mark.usefixtures("keyed_by_position")
def test_keys_by_position_alone_bias_block_verification(monkeypatch: pytest.MonkeyPatch) -> None:
    found = law("block", BY_POSITION, TableDrafter(FALSE_COIN), monkeypatch)
    assert distance(COIN, found) == pytest.approx(0.025)


@pytest.mark.usefixtures("keyed_by_position")
def test_keys_by_position_alone_bias_rejection_where_control_looks_at_discarded_draws(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert is_law_of(COIN, law("rejection", BY_POSITION, TableDrafter(FALSE_COIN), monkeypatch))
    keys: list[Key] = [*BY_POSITION, (Purpose.TARGET, FIRST + 1, 0)]
    assert distance(COIN, law("rejection", keys, Watchful(), monkeypatch)) == pytest.approx(0.03125)
