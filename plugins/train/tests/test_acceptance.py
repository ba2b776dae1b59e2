"""Rounds foretold by walking over a known text, against rounds counted by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from fastllm_core import Judgement, Lesson
from fastllm_plugin_train.acceptance import Foretold, foretell
from fastllm_plugin_train.data import Text
from fastllm_plugin_train.rows import packed


def walked(right: Sequence[int], length: int, *, chance: Sequence[float] = (), threshold: float = 0.0) -> Foretold:
    """right[i]: whether a draft of the token behind place i is right, whatever round it is made in."""
    size = len(right) + 1
    rows = packed([[Text([1] * size, [False] + [True] * (size - 1))]], size)
    lesson = Lesson(rows.tokens, rows.documents, rows.positions, rows.answers, {}, torch.zeros(()))

    def ahead(values: Sequence[float]) -> torch.Tensor:
        padded = torch.tensor([*values] + [0.0] * (length + 1))
        return torch.stack([padded[d : d + size] for d in range(length)], dim=-1)[None]

    sure = list(chance) or [1.0] * len(right)
    judgement = Judgement(ahead(right) > 0, ahead(sure), torch.zeros(1, size))
    return foretell(lesson.counted(), judgement, length, threshold)


def test_all_right_commits_whole_drafts() -> None:
    found = walked([1] * 9, 2)
    assert (found.rounds, found.tokens) == (3, 9)
    assert found.drafted_at == found.accepted_at == [3, 3]


def test_all_wrong_is_plain_decoding() -> None:
    found = walked([0] * 4, 2)
    assert (found.rounds, found.tokens, found.accepted_at) == (4, 4, [0, 0])
    assert found.drafted_at == [3, 2]  # the extra token needs room: the last rounds draft less


def test_a_round_ends_at_the_first_wrong_draft() -> None:
    # root 0: right, wrong -> 2 tokens; root 2: right, right, right -> 4; root 6: wrong -> 1; root 7: room for 1
    found = walked([1, 0, 1, 1, 1, 0, 0, 1], 3)
    assert (found.rounds, found.tokens) == (4, 8)
    assert found.accepted_at == [2, 1, 1]


def test_an_unsure_draft_is_the_last_of_its_round() -> None:
    found = walked([1] * 6, 3, chance=[0.9, 0.2, 0.9, 0.9, 0.9, 0.9], threshold=0.5)
    assert found.drafted_at == found.accepted_at == [2, 2]  # the unsure token itself is drafted, and kept
    assert found.tokens == 6


def test_counts_add_up() -> None:
    one, two = walked([1] * 9, 2), walked([0] * 4, 2)
    one.add(two)
    assert (one.rounds, one.tokens) == (7, 13)
    assert one.by_position == [3 / 6, 3 / 5]
    assert one.tokens_per_round == pytest.approx(13 / 7)
