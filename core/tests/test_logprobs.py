"""Log-probabilities are the target's own: a full forward's log-softmax, whatever was drafted and whoever was beside."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, RepetitionPenaltyLogitsProcessor

import fastllm_core
from fastllm_core.batch import Row
from fastllm_core.controls import Controls
from fastllm_core.engine import Engine
from fastllm_core.errors import RequestError
from fastllm_core.logprobs import TokenLogprob
from fastllm_core.protocols import Drafter
from fastllm_core.request import Request, SamplingParams
from fastllm_core.rows import Event
from fastllm_core.sampling import Sampling, truncated
from fastllm_core.testing import Branching, Scripted, TableDrafter, tiny_model, tiny_tokenizer
from fastllm_core.testing.engines import decode, make_engine

V, NEW, TOP = 64, 12, 5
RNG = random.Random(3)
PROMPTS = [tuple(RNG.randrange(V) for _ in range(size)) for size in (1, 9, 3, 21)]
SETTINGS = [
    SamplingParams(),
    SamplingParams(temperature=0.8, top_k=12),
    SamplingParams(temperature=1.5, top_p=0.8),
    SamplingParams(temperature=1.2, min_p=0.05),
]
REQUESTS = [
    Request(prompt, NEW, sampling, seed=40 + i, logprobs=TOP, prompt_logprobs=2, keep_logits=True)
    for i, (prompt, sampling) in enumerate(zip(PROMPTS, SETTINGS, strict=True))
]


@cache
def model() -> PreTrainedModel:
    return tiny_model(sharpness=2.0)


@cache
def texts() -> tuple[tuple[int, ...], ...]:
    """Each request alone, decoded plainly, with nothing asked."""
    return tuple(
        tuple(decode(make_engine(model()), [Request(request.prompt, NEW, request.sampling, seed=request.seed)])[0])
        for request in REQUESTS
    )


def guess(row: Row, count: int) -> list[int]:
    """Often right and often wrong, and of any length."""
    rng = random.Random(row.length)
    whole = [*PROMPTS[row.seed - 40], *texts()[row.seed - 40]]
    right = whole[row.length : row.length + rng.randrange(count + 1)]
    return [(token + (rng.random() < 0.3)) % V for token in right]


def table() -> TableDrafter:
    return TableDrafter(torch.softmax(torch.randn(V, generator=torch.Generator().manual_seed(0)), -1))


METHODS: dict[str, Callable[[], Drafter | None]] = {
    "plain": lambda: None,
    "chain": lambda: Scripted(guess),
    "tree": lambda: Branching(guess, branches=2),
    "drawn": table,
}


def engine(method: str, **more: Any) -> Engine:
    return make_engine(model(), METHODS[method](), **{"acceptance": "match", "prefill_chunk": 8, **more})


def events_of(engine: Engine, requests: list[Request]) -> list[list[Event]]:
    """Every row's events."""
    rows: dict[int, list[Event]] = {engine.add(request): [] for request in requests}
    while not engine.idle:
        for event in engine.step():
            rows[event.row].append(event)
    return list(rows.values())


def logits_of(tokens: tuple[int, ...]) -> Tensor:
    """float[len(tokens), V]: one forward of the unmodified model over everything."""
    with torch.no_grad():
        return model()(torch.tensor([tokens])).logits[0].float()  # type: ignore[no-any-return]


def check(request: Request, events: list[Event]) -> None:
    """All that was said about a row, against one forward over its whole text."""
    tokens = tuple(token for event in events for token in event.tokens)
    said = [one for event in events for one in event.logprobs]
    whole = logits_of((*request.prompt, *tokens))
    raw = whole.log_softmax(-1)
    start = len(request.prompt)
    check_tokens(said, raw[start - 1 :], tokens, TOP)
    first, *prompt = events[0].prompt_logprobs
    assert first is None
    check_tokens([one for one in prompt if one is not None], raw, request.prompt[1:], 2)
    assert not any(event.prompt_logprobs for event in events[1:])
    kept = torch.cat([event.logits for event in events if event.logits is not None])
    torch.testing.assert_close(kept, whole[start - 1 : -1], atol=2e-5, rtol=1e-4)


def check_tokens(said: list[TokenLogprob], raw: Tensor, tokens: tuple[int, ...], top: int) -> None:
    assert tuple(one.token_id for one in said) == tokens
    for one, row in zip(said, raw, strict=False):
        assert one.logprob == pytest.approx(row[one.token_id].item(), abs=1e-5)
        best = row.topk(top)
        assert [token for token, _ in one.top] == best.indices.tolist()
        assert [value for _, value in one.top] == pytest.approx(best.values.tolist(), abs=1e-5)


@pytest.mark.parametrize("max_rows", [4, 2, 1])
@pytest.mark.parametrize("method", METHODS)
def test_they_are_a_full_forwards(method: str, max_rows: int) -> None:
    rows = events_of(engine(method, max_rows=max_rows), REQUESTS)
    assert [[token for event in row for token in event.tokens] for row in rows] == [list(text) for text in texts()]
    for request, events in zip(REQUESTS, rows, strict=True):
        check(request, events)


@pytest.mark.parametrize("method", ["chain", "tree"])
def test_drafts_were_really_accepted(method: str) -> None:
    one = engine(method)
    events_of(one, REQUESTS)
    assert one.report.accepted_at[1] > 0
    assert one.report.accepted < one.report.drafted


@pytest.mark.parametrize("method", ["plain", "chain", "tree"])
def test_a_resumed_row_says_the_same(method: str) -> None:
    resumed = [
        replace(request, prompt=(*request.prompt, *text[:5]), max_new_tokens=NEW - 5)
        for request, text in zip(REQUESTS, texts(), strict=True)
    ]
    for request, events in zip(resumed, events_of(engine(method), resumed), strict=True):
        check(request, events)


@pytest.mark.parametrize("method", ["plain", "chain", "tree"])
def test_processed_ones_are_those_that_the_token_was_drawn_from(method: str) -> None:
    requests = [replace(request, logprobs_mode="processed" if i else "raw") for i, request in enumerate(REQUESTS)]
    rows = events_of(engine(method), requests)
    for i, (request, events) in enumerate(zip(requests, rows, strict=True)):
        tokens = tuple(token for event in events for token in event.tokens)
        raw = logits_of((*request.prompt, *tokens))[len(request.prompt) - 1 : -1]
        wanted = truncated(raw[None], Sampling.of([request.sampling], "cpu"))[0] if i else raw
        said = [one for event in events for one in event.logprobs]
        expected = [row[token].item() for row, token in zip(wanted.log_softmax(-1), tokens, strict=True)]
        assert [one.logprob for one in said] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("method", ["plain", "chain", "tree"])
def test_controls_change_the_processed_ones_alone(method: str) -> None:
    """Raw ones are the model's, untouched; processed ones are behind a penalty and a processor of the caller's own."""
    theirs = RepetitionPenaltyLogitsProcessor(1.6)

    def shift(_: Tensor, scores: Tensor) -> Tensor:
        return scores + torch.arange(V) * 0.05

    for mode, processors in (("raw", (shift,)), ("processed", ()), ("processed", (shift,))):
        controls = Controls(repetition_penalty=1.6, processors=processors)
        requests = [replace(request, controls=controls, logprobs_mode=mode) for request in REQUESTS[:2]]  # type: ignore[arg-type]
        for request, events in zip(requests, events_of(engine(method), requests), strict=True):
            tokens = tuple(token for event in events for token in event.tokens)
            whole = (*request.prompt, *tokens)
            said = [one.logprob for event in events for one in event.logprobs]
            lines = logits_of(whole)[len(request.prompt) - 1 : -1]
            if mode == "processed":
                ids = torch.tensor(whole)[None]
                lines = torch.cat(
                    [theirs(ids[:, : len(request.prompt) + step], line[None]) for step, line in enumerate(lines)]
                )
                lines = shift(ids, lines) if processors else lines
                lines = truncated(lines[None], Sampling.of([request.sampling], "cpu"))[0]
            expected = [line[token].item() for line, token in zip(lines.log_softmax(-1), tokens, strict=True)]
            assert said == pytest.approx(expected, abs=1e-4)


def test_a_row_that_did_not_ask_is_told_nothing_and_nothing_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = [Request(request.prompt, NEW, request.sampling, seed=request.seed) for request in REQUESTS]
    rows = events_of(engine("chain"), [REQUESTS[0], *silent[1:]])
    assert all(event.logprobs for event in rows[0])
    assert all(not event.logprobs and event.logits is None for row in rows[1:] for event in row)

    def never(*_: object) -> Any:
        raise AssertionError("computed for nobody")

    monkeypatch.setattr("fastllm_core.logprobs.behind", never)
    monkeypatch.setattr("fastllm_core.logprobs.of_tokens", never)
    monkeypatch.setattr("fastllm_core.joining.read_and_score", never)
    events_of(engine("chain"), silent)


def test_generations_and_pieces_bring_them() -> None:
    settings: dict[str, Any] = {"max_new_tokens": 6, "logprobs": 2, "prompt_logprobs": 0}
    with fastllm_core.load(model(), "plain", config={}, tokenizer=tiny_tokenizer(V)) as pipeline:
        one = pipeline.generate("abc", **settings)
        assert one.logprobs is not None
        assert one.prompt_logprobs is not None
        assert [token.token_id for token in one.logprobs] == list(one.token_ids)
        assert [token and token.token_id for token in one.prompt_logprobs] == [None, *one.prompt_token_ids[1:]]
        assert all(math.isfinite(token.logprob) for token in one.logprobs)
        pieces = list(pipeline.stream("abc", **settings))
        assert tuple(token for piece in pieces for token in piece.logprobs) == one.logprobs
        assert pieces[-1].result is not None
        assert pieces[-1].result.logprobs == one.logprobs
        assert one.to_dict()["prompt_logprobs"][0] is None
        assert one.to_dict()["logprobs"][0]["top"][0]["token_id"] == one.logprobs[0].top[0][0]
        silent = pipeline.generate("abc", max_new_tokens=6)
        assert silent.logprobs is None
        assert "logprobs" not in silent.to_dict()


@pytest.mark.parametrize("name", ["logprobs", "prompt_logprobs"])
def test_less_than_none_is_refused(name: str) -> None:
    with pytest.raises(RequestError, match=f"^{name} must be 0"):
        Request((1,), 1, **{name: -1})  # type: ignore[arg-type]


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(RequestError, match="logprobs_mode must be"):
        Request((1,), 1, logprobs_mode="cooked")  # type: ignore[arg-type]
