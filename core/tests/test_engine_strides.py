"""Plain rounds that are one call of a back end: the same texts, ends and reports as one by one, if nobody watches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fastllm_core.controls import Controls
from fastllm_core.engine import Engine
from fastllm_core.programs import ProgramFolder
from fastllm_core.request import Request, SamplingParams
from fastllm_core.rows import Event
from fastllm_core.strides import STRIDE
from fastllm_core.testing import tiny_model, tiny_tokenizer
from fastllm_core.testing.drafters import Oracle
from fastllm_core.testing.engines import decode, make_engine
from fastllm_core.testing.unrolled import Unrolled

PROMPTS = [(3, 4, 5, 6, 7, 8, 9), (5,), (9, 8, 7), tuple(3 + i % 50 for i in range(70))]


def tied(model: Any) -> Any:
    """Tokens 0 and 1, 2 and 3, ... have the same logit: every token is a near-tie."""
    with torch.no_grad():
        weights = model.get_output_embeddings().weight
        weights[1::2] = weights[::2]
    return model


@pytest.fixture
def backend(tmp_path: Path) -> Unrolled:
    return Unrolled(ProgramFolder(tmp_path / "programs"), compiles=True)


def run(engine: Engine, requests: list[Request]) -> list[list[Event]]:
    """The events of each request."""
    rows = {engine.add(request): list[Event]() for request in requests}
    while not engine.idle:
        for event in engine.step():
            rows[event.row].append(event)
    return list(rows.values())


@pytest.mark.parametrize("every", [0, 1, 3])
@pytest.mark.parametrize("new", [1, 3, 4, 13])
def test_texts_are_those_of_single_rounds(backend: Unrolled, new: int, every: int) -> None:
    model = tiny_model()
    requests = [Request(prompt, max_new_tokens=new + i) for i, prompt in enumerate(PROMPTS)]
    assert decode(make_engine(model, backend=backend), requests, every=every) == decode(make_engine(model), requests)


@pytest.mark.parametrize("make", [tiny_model, lambda: tied(tiny_model())], ids=["clear", "tied"])
def test_reports_are_those_of_single_rounds(backend: Unrolled, make: Any) -> None:
    """Where a text ends within a stride, too: what was run behind its end is not counted for it."""
    model = make()
    requests = [Request(prompt, max_new_tokens=11) for prompt in PROMPTS]
    texts = decode(make_engine(model), requests)
    requests += [
        replace(request, eos_token_ids=frozenset(text[5:6])) for request, text in zip(requests, texts, strict=True)
    ]
    said = []
    for back in (None, backend):
        engine = make_engine(model, backend=back)
        events = [run(engine, [request])[0] for request in requests]
        said.append([(sum((event.tokens for event in row), ()), row[-1].finish_reason) for row in events])
        reports = [row[-1].report for row in events]
        assert None not in reports
        said[-1] += [
            (
                one.tokens,
                one.rounds,
                one.verified_rows,
                one.near_ties,
                one.near_ties_at,
                one.drafted,
                one.tokens_per_round,
            )  # type: ignore[union-attr]
            for one in reports
        ]
    assert said[0] == said[1]
    assert any(len(event.tokens) == STRIDE for row in events for event in row)
    assert {reason for _, reason, *_ in said[0][: len(requests)]} == {"length", "eos"}


def test_the_engines_own_report_counts_every_forward(backend: Unrolled) -> None:
    engine = make_engine(tiny_model(), backend=backend)
    run(engine, [Request(PROMPTS[0], max_new_tokens=10), Request(PROMPTS[2], max_new_tokens=10)])
    assert (engine.report.rounds, engine.report.tokens, engine.report.verified_rows) == (10, 20, 20)


def test_criteria_and_stop_strings_are_asked_token_by_token(backend: Unrolled) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    (text,) = decode(make_engine(model), [Request(PROMPTS[0], max_new_tokens=12)])
    word = tokenizer.decode(text[6:7])
    said = []
    for back in (None, backend):
        asked: list[int] = []

        def third(ids: torch.Tensor, _: Any, asked: list[int] = asked) -> bool:
            asked.append(ids.shape[1])
            return ids.shape[1] == len(PROMPTS[0]) + 3

        engine = make_engine(model, tokenizer=tokenizer, backend=back)
        ended = run(engine, [Request(PROMPTS[0], max_new_tokens=12, stopping_criteria=(third,))])
        ended += run(engine, [Request(PROMPTS[0], max_new_tokens=12, stop=(word,))])
        said.append([(sum((event.tokens for event in row), ()), row[-1].finish_reason) for row in ended] + [asked])
    assert said[0] == said[1]
    assert said[0][-1] == [len(PROMPTS[0]) + n for n in (1, 2, 3)]


class Watch:
    """Sees every round."""

    def observe(self, *_: Any) -> None:
        """Nothing to do."""


@pytest.mark.parametrize(
    "asked",
    [
        {"sampling": SamplingParams(temperature=1.0), "seed": 3},
        {"controls": Controls(repetition_penalty=1.2)},
        {"controls": Controls(processors=(lambda ids, scores: scores,))},
        {"logprobs": 2},
        {"keep_logits": True},
        {"watch": True},
        {"drafts": True, "speculate": False},
        {"exact": True},
    ],
    ids=("sampling", "penalty", "processor", "logprobs", "logits", "observer", "drafter", "exact"),
)
def test_whoever_needs_every_round_gets_it(backend: Unrolled, asked: dict[str, Any]) -> None:
    model = tiny_model()
    drafter = Oracle({}, lambda _: False) if asked.pop("drafts", False) else None
    settings = {"observers": (Watch(),)} if asked.pop("watch", False) else {}
    engine = make_engine(model, drafter, backend=backend, exact=asked.pop("exact", False), max_rows=2, **settings)
    request = Request(PROMPTS[0], max_new_tokens=9, **asked)
    (events,) = run(engine, [request])
    assert [len(event.tokens) for event in events] == [1] * 9
    (beside, _) = run(engine, [Request(PROMPTS[2], max_new_tokens=9, speculate=drafter is None), request])
    assert [len(event.tokens) for event in beside] == [1] * 9, "nor does a row beside it stride"


def test_the_cache_holds_all_but_the_last_token(backend: Unrolled) -> None:
    """As after every round: the last one is the next root."""
    engine = make_engine(tiny_model(), backend=backend)
    for prompt in PROMPTS[:2]:
        engine.add(Request(prompt, max_new_tokens=20))
    written: dict[int, int] = {}
    for _ in range(4):
        for event in engine.step():
            written[event.row] = written.get(event.row, 0) + len(event.tokens)
        stored = engine.parts.cache.lengths
        assert [stored[0], stored[1]] == [
            len(prompt) + count - 1 for prompt, count in zip(PROMPTS, written.values(), strict=False)
        ]
    assert set(written.values()) == {4 * STRIDE}
