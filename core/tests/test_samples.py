"""Several samples of a prompt: each is what its own seed gives alone, and the prompt is read once."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import fastllm_core
from fastllm_core.batch import Batch, Row
from fastllm_core.engine import Engine
from fastllm_core.errors import RequestError
from fastllm_core.protocols import Drafter, Scores, Verdict
from fastllm_core.randomness import sample_seed
from fastllm_core.request import Request, SamplingParams
from fastllm_core.testing import Branching, Scripted, TableDrafter, tiny_model, tiny_tokenizer
from fastllm_core.testing.engines import decode, make_engine

V, NEW, N = 64, 10, 5
PROMPT = tuple(random.Random(1).randrange(V) for _ in range(19))
REQUEST = Request(PROMPT, NEW, SamplingParams(temperature=1.2), seed=7)


@cache
def model() -> PreTrainedModel:
    return tiny_model(sharpness=2.0)


def guess(row: Row, count: int) -> list[int]:
    return [(row.length * 7 + i) % V for i in range(count)]


class Watching(Scripted):
    """Wants hidden states, and remembers which of them each row was given."""

    hidden_layers = (1, 4)

    def __init__(self) -> None:
        super().__init__(guess)
        self.given: dict[int, list[tuple[int, int, Tensor, Tensor]]] = {}

    def prefill(self, row: Row, start: int, stop: int, hidden: Mapping[int, Tensor]) -> None:
        self.given.setdefault(row.id, []).append((start, stop, hidden[1], hidden[4]))


METHODS: dict[str, Callable[[], Drafter | None]] = {
    "plain": lambda: None,
    "chain": lambda: Scripted(guess),
    "tree": lambda: Branching(guess),
    "drawn": lambda: TableDrafter(torch.full((V,), 1 / V)),
    "hidden": Watching,
}


def engine(method: str = "plain", **sizes: Any) -> Engine:
    return make_engine(model(), METHODS[method](), **{"prefill_chunk": 8, **sizes})


def samples(engine: Engine, request: Request = REQUEST, count: int = N) -> list[list[int]]:
    tokens: dict[int, list[int]] = {row: [] for row in engine.add_samples(request, count)}
    while not engine.idle:
        for event in engine.step():
            tokens[event.row] += event.tokens
    return list(tokens.values())


def count_reads(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each forward of the prompt's reading."""
    from fastllm_core import prefill

    reads: list[int] = []
    read = prefill._read

    def counted(network: Any, cache: Any, slot: int, tokens: Any, *more: Any, **options: Any) -> Any:
        reads.append(len(tokens))
        return read(network, cache, slot, tokens, *more, **options)

    monkeypatch.setattr(prefill, "_read", counted)
    return reads


@pytest.mark.parametrize("max_rows", [8, 3, 1])
@pytest.mark.parametrize("method", METHODS)
def test_each_is_what_its_seed_gives_alone(method: str, max_rows: int) -> None:
    alone = [decode(engine(method), [replace(REQUEST, seed=sample_seed(7, i))])[0] for i in range(N)]
    assert samples(engine(method, max_rows=max_rows)) == alone
    assert alone[0] == decode(engine(method), [REQUEST])[0]
    assert len({tuple(text) for text in alone}) == N


def test_the_prompt_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    one = engine(max_rows=8)
    reads = count_reads(one, monkeypatch)
    samples(one)
    assert reads == [8, 8, 2]


def test_it_is_read_again_where_nobody_is_left_to_copy_from(monkeypatch: pytest.MonkeyPatch) -> None:
    one = engine(max_rows=1)
    reads = count_reads(one, monkeypatch)
    samples(one, count=2)
    assert reads == [8, 8, 2] * 2


def test_a_drafter_is_given_the_same_hidden_states_for_every_sample() -> None:
    drafter = Watching()
    samples(make_engine(model(), drafter, prefill_chunk=8, max_rows=3))
    first, *others = drafter.given.values()
    assert [(start, stop) for start, stop, *_ in first] == [(0, 8), (8, 16), (16, 18)]
    for other in others:
        assert all(
            torch.equal(a, b)
            for one, two in zip(first, other, strict=True)
            for a, b in zip(one[2:], two[2:], strict=True)
        )
    assert len(drafter.given) == N


def test_the_one_that_reads_may_leave_in_the_middle() -> None:
    """The next reads from the start, and what the drafter was given comes from one reading."""
    drafter = Watching()
    one = make_engine(model(), drafter, prefill_chunk=4, max_rows=3)
    first, second, third = one.add_samples(REQUEST, 3)
    one.step()
    one.cancel(first)
    tokens: dict[int, list[int]] = {second: [], third: []}
    while not one.idle:
        for event in one.step():
            tokens[event.row] += event.tokens
    assert list(tokens.values()) == samples(engine(), count=3)[1:]
    assert [(start, stop) for start, stop, *_ in drafter.given[third]] == [(0, 4), (4, 8), (8, 12), (12, 16), (16, 18)]


class Copying(Watching):
    """Says that it has copied, so that nothing is read for the others."""

    def __init__(self) -> None:
        super().__init__()
        self.copied: list[tuple[int, int]] = []

    def copy(self, source: Row, row: Row) -> bool:
        self.copied.append((source.id, row.id))
        return True

    def observe(self, batch: Batch, draft: Any, scores: Scores, verdict: Verdict) -> None:
        return


def test_a_drafter_may_copy_instead() -> None:
    drafter = Copying()
    texts = samples(make_engine(model(), drafter, prefill_chunk=8, acceptance="match"))
    assert list(drafter.given) == [1]
    assert drafter.copied == [(1, 2), (1, 3), (1, 4), (1, 5)]
    assert texts == samples(engine("chain", acceptance="match"))


def test_prompt_logprobs_are_shared() -> None:
    one = engine()
    request = replace(REQUEST, prompt_logprobs=1)
    rows = dict.fromkeys(one.add_samples(request, 3), ())
    while not one.idle:
        for event in one.step():
            rows[event.row] = rows[event.row] or event.prompt_logprobs  # type: ignore[assignment]
    first, *others = rows.values()
    assert len(first) == len(PROMPT)
    assert all(other == first for other in others)


def test_samples_of_one_token_prompts_and_of_one() -> None:
    request = replace(REQUEST, prompt=(5,))
    alone = [decode(engine(), [replace(request, seed=sample_seed(7, i))])[0] for i in range(3)]
    assert samples(engine(), request, 3) == alone
    assert samples(engine(), REQUEST, 1) == decode(engine(), [REQUEST])


def test_seeds_of_samples_are_distinct_and_not_those_of_other_prompts() -> None:
    seeds = [sample_seed(seed, i) for seed in range(-2, 50) for i in range(50)]
    assert len(set(seeds)) == len(seeds)
    assert sample_seed(2**80 + 3, 0) == 2**80 + 3


def test_generate_answers_with_lists() -> None:
    settings: dict[str, Any] = {"max_new_tokens": 6, "temperature": 1.0, "seed": 3}
    with fastllm_core.load(model(), "plain", config={}, tokenizer=tiny_tokenizer(V)) as pipeline:
        one, two = pipeline.generate("abc", **settings), pipeline.generate("xyz", **{**settings, "seed": 4})
        three = pipeline.generate("abc", n=3, **settings)
        assert [type(sample).__name__ for sample in three] == ["Generation"] * 3
        assert three[0].token_ids == one.token_ids
        assert len({sample.token_ids for sample in three}) == 3
        lists = pipeline.generate(["abc", "xyz"], n=2, **settings)
        assert [sample.token_ids for sample in lists[0]] == [sample.token_ids for sample in three[:2]]
        assert lists[1][0].token_ids == two.token_ids
        assert len(pipeline.generate("abc", n=1, **settings)) == 1
        with pytest.raises(RequestError, match="n must be at least 1, not 0"):
            pipeline.generate("abc", n=0)
        with pytest.raises(RequestError, match=r"^n: a request and a stream are one text"):
            pipeline.stream("abc", n=2)
