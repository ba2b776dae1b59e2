"""Where drafts end by a threshold: row by row, and never before the token that was unsure."""

from __future__ import annotations

import pytest
import torch

import fastllm_core
from fastllm_core import Batch, Confidence, ConfigError, Row, SamplingParams
from fastllm_core.request import Request
from fastllm_core.sampling import Sampling
from fastllm_core.testing import Subject, tiny_model, tiny_tokenizer

SURE, UNSURE = [0.0, 9.0, 0.0], [1.0, 1.1, 1.0]


def batch(lengths: tuple[int, ...], thresholds: tuple[float, ...] = (), final: tuple[set[int], ...] = ()) -> Batch:
    ends = final or ((),) * len(lengths)
    rows = tuple(Row(i, Request((1,), 9, eos_token_ids=frozenset(ends[i])), [1], 0, i) for i in range(len(lengths)))
    sampling = Sampling.of([SamplingParams()] * len(rows), torch.device("cpu"))
    return Batch(rows, lengths, torch.device("cpu"), sampling, thresholds=thresholds)


def told(confidence: Confidence, *steps: list[list[float]], tokens: list[list[int]] | None = None) -> list[bool]:
    token = torch.tensor(tokens or [[1]] * len(steps[0]))
    return [confidence.goes_on(torch.tensor(logits), token) for logits in steps]


def test_without_thresholds_rows_end_where_they_were_asked_to() -> None:
    confidence = Confidence(batch((3, 1)))
    assert told(confidence, [UNSURE, UNSURE], [UNSURE, UNSURE], [UNSURE, UNSURE]) == [True, True, False]
    assert confidence.lengths.tolist() == [3, 1]


def test_each_row_ends_behind_its_own_unsure_token() -> None:
    confidence = Confidence(batch((4, 4, 0), (0.8, 0.2, 0.8)))
    assert told(confidence, [SURE, UNSURE, UNSURE], [UNSURE, UNSURE, SURE], [SURE, UNSURE, SURE]) == [True, True, True]
    assert confidence.lengths.tolist() == [2, 4, 0]
    assert told(confidence, [UNSURE, SURE, SURE]) == [False]
    assert confidence.lengths.tolist() == [2, 4, 0], "a row that has ended stays as it is"


def test_drafting_ends_with_the_last_row() -> None:
    confidence = Confidence(batch((4, 4), (0.8, 0.8)))
    assert told(confidence, [SURE, UNSURE], [UNSURE, SURE]) == [True, False]
    assert (confidence.lengths.tolist(), confidence.drafted) == ([2, 1], 2)


def test_the_chance_is_that_of_the_token_that_was_drafted() -> None:
    confidence = Confidence(batch((4,), (0.8,)))
    assert told(confidence, [SURE], tokens=[[0]]) == [False]
    assert confidence.lengths.tolist() == [1]


def test_a_row_ends_behind_a_token_that_ends_its_text_and_keeps_it() -> None:
    confidence = Confidence(batch((4, 4, 0), final=({1, 2}, {2}, {1})))
    assert told(confidence, [SURE] * 3, [SURE] * 3, tokens=[[0], [0], [1]]) == [True, True]
    assert told(confidence, [SURE] * 3, tokens=[[1], [1], [1]]) == [True], "each row has its own"
    assert told(confidence, [SURE] * 3, tokens=[[0], [2], [1]]) == [False]
    assert confidence.lengths.tolist() == [3, 4, 0]


def test_a_whole_draft_is_told_at_once() -> None:
    lines = [[0, 1, 0, 2], [0, 0, 0, 0], [2, 2, 2, 2], [0, 0, 0, 1]]
    final = ({1, 2}, {2}, {2}, set[int]())
    at_once, in_turn = (Confidence(batch((4, 3, 0, 4), final=final)) for _ in range(2))
    assert not at_once.watches
    at_once.told(torch.tensor(lines))
    told(in_turn, [SURE] * 4, tokens=[[line[0]] for line in lines])
    for step in (1, 2, 3):
        told(in_turn, [SURE] * 4, tokens=[[line[step]] for line in lines])
    assert at_once.lengths.tolist() == in_turn.lengths.tolist() == [2, 3, 0, 4]
    assert at_once.drafted == in_turn.drafted == 4
    nowhere = Confidence(batch((4,), final=({1},)))
    nowhere.told(torch.empty(1, 4, dtype=torch.long, device="meta"))
    assert nowhere.lengths.tolist() == [4]
    assert Confidence(batch((2, 2), (0.0, 0.1))).watches


def test_tokens_of_another_device_are_not_read_for_that() -> None:
    confidence = Confidence(batch((2,), final=({1},)))
    nowhere = torch.empty(1, 1, dtype=torch.long, device="meta")  # to read it is an error
    assert confidence.goes_on(torch.tensor([SURE]), nowhere)
    watching = Confidence(batch((4,), (0.8,), final=({1},)))
    assert told(watching, [SURE], tokens=[[1]]) == [False], "where thresholds are read, ends are too"


def test_a_drafter_that_does_not_tell_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Subject("speculative").target()
    with fastllm_core.load(
        target.model, "speculative", tokenizer=target.tokenizer, draft_model=target.relative()
    ) as pipeline:
        drafter = type(pipeline.drafter)
    monkeypatch.setattr(drafter, "heeds_thresholds", False, raising=False)
    with pytest.raises(ConfigError, match=r"^draft\.controller: 'threshold' ends .* 'speculative' does not tell"):
        fastllm_core.load(
            target.model,
            "speculative",
            tokenizer=target.tokenizer,
            config={"draft.controller": "threshold"},
            draft_model=target.relative(),
        )


def test_the_controllers_settings_are_for_the_controller() -> None:
    with pytest.raises(ConfigError, match=r'draft\.threshold.*must be unset unless draft\.controller = "threshold"'):
        fastllm_core.load(
            tiny_model(),
            "plain",
            tokenizer=tiny_tokenizer(),
            config={"draft.controller": "fixed", "draft.threshold": 0.5},
        )
