"""Rows share rounds and nothing else: each keeps its own settings, seed and text, and a failure takes down no other."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from transformers import PreTrainedModel

from fastllm_core.acceptor import Rule
from fastllm_core.batch import Batch, Row
from fastllm_core.engine import Engine
from fastllm_core.protocols import Draft, Drafter, Observer, Scores, Verdict
from fastllm_core.request import Request, SamplingParams
from fastllm_core.testing import Branching, Scripted, TableDrafter, tiny_model
from fastllm_core.testing.engines import decode, make_engine

V = 64
NEW = 12
RNG = random.Random(11)
PROMPTS = [tuple(RNG.randrange(V) for _ in range(size)) for size in (1, 4, 7, 12, 20, 33)]
SETTINGS = [
    SamplingParams(temperature=0.7),
    SamplingParams(),
    SamplingParams(temperature=1.5, top_k=5),
    SamplingParams(temperature=1.0, top_p=0.8),
    SamplingParams(temperature=2.0, min_p=0.05),
    SamplingParams(temperature=1.0, top_k=20, top_p=0.9),
]
REQUESTS = [
    Request(prompt, NEW, sampling, seed=100 + i, speculate=i != 3)
    for i, (prompt, sampling) in enumerate(zip(PROMPTS, SETTINGS, strict=True))
]


@cache
def model() -> PreTrainedModel:
    return tiny_model(sharpness=2.0)


def guesses(row: Row, count: int) -> list[int]:
    """Right often enough that drafts of every length are accepted: sampled text repeats itself little."""
    rng = random.Random(row.length)
    sizes = rng.randrange(count + 1)
    return [known[row.length + i] for i in range(sizes) if row.length + i < len(known := reference(row))]


@cache
def plain_texts() -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(decode(make_engine(model()), [request])[0]) for request in REQUESTS)


def reference(row: Row) -> list[int]:
    at = PROMPTS.index(row.request.prompt)
    known = [*PROMPTS[at], *plain_texts()[at]]
    return [(token + (i % 4 == 1)) % V for i, token in enumerate(known)]


def table() -> TableDrafter:
    return TableDrafter(torch.softmax(torch.randn(V, generator=torch.Generator().manual_seed(0)), -1))


MATCHED: dict[str, Callable[[], Drafter | None]] = {
    "plain": lambda: None,
    "chain": lambda: Scripted(guesses),
    "tree": lambda: Branching(guesses, branches=2),
    "drawn": table,
}


@pytest.mark.parametrize("drafter", MATCHED)
@pytest.mark.parametrize(("max_rows", "every"), [(6, 0), (2, 0), (3, 2)])
def test_under_match_a_text_follows_from_its_seed_alone(drafter: str, max_rows: int, every: int) -> None:
    engine = make_engine(model(), MATCHED[drafter](), acceptance="match", max_rows=max_rows, prefill_chunk=8)
    assert decode(engine, REQUESTS, every=every) == [list(text) for text in plain_texts()]


def test_the_reference_really_accepts_and_rejects() -> None:
    engine = make_engine(model(), Scripted(guesses))
    decode(engine, REQUESTS)
    assert 0.2 < engine.report.accepted / engine.report.drafted < 0.9
    assert max(position for position, count in enumerate(engine.report.accepted_at) if count) >= 1


@pytest.mark.parametrize("rule", ["rejection", "block"])
def test_under_rejection_too_a_row_in_a_batch_is_the_row_alone(rule: Rule) -> None:
    together = decode(make_engine(model(), table(), acceptance=rule), REQUESTS)
    assert together == [decode(make_engine(model(), table(), acceptance=rule), [one])[0] for one in REQUESTS]


@pytest.mark.parametrize("rule", ["rejection", "block"])
def test_under_rejection_a_row_that_does_not_speculate_has_plain_decodings_text(rule: Rule) -> None:
    """Whether or not its neighbours draft."""
    requests = [replace(request, speculate=i % 2 == 1) for i, request in enumerate(REQUESTS)]
    texts = decode(make_engine(model(), table(), acceptance=rule), requests)
    assert texts[::2] == [list(text) for text in plain_texts()[::2]]
    assert texts[1::2] != [list(text) for text in plain_texts()[1::2]]
    alone = [decode(make_engine(model(), table(), acceptance=rule), [one])[0] for one in requests[::2]]
    assert alone == texts[::2]


def test_seeds_differ_from_each_other_and_fresh_ones_are_fresh() -> None:
    warm = SamplingParams(temperature=2.0)
    texts = decode(make_engine(model()), [Request(PROMPTS[1], NEW, warm, seed=i) for i in range(8)])
    assert len({tuple(text) for text in texts}) == 8
    texts = decode(make_engine(model()), [Request(PROMPTS[1], NEW, warm) for _ in range(4)])
    assert len({tuple(text) for text in texts}) == 4


def test_cancel_frees_a_row_wherever_it_is() -> None:
    engine = make_engine(model(), Scripted(guesses), max_rows=4, prefill_chunk=4)
    ids = [engine.add(request) for request in REQUESTS]
    engine.step()
    live = [row.id for row in engine._slots.rows if row.ready]
    assert live
    assert len(live) < 4
    reading = next(row.id for row in engine._slots.rows if not row.ready)
    victims = [live[0], reading, ids[-1]]  # the last one waits
    for victim in victims:
        engine.cancel(victim)
        engine.cancel(victim)
        assert not engine.holds(victim)
    engine.cancel(12345)
    assert_finishes(engine, {row: i for i, row in enumerate(ids) if row not in victims})
    assert engine.idle


def assert_finishes(engine: Engine, rows: dict[int, int]) -> None:
    """Every row (id -> index of its request) ends with its own text, and no other row says anything."""
    tokens = {row.id: row.tokens[row.prompt_length :] for row in engine._slots.rows}
    tokens = {row: tokens.get(row, []) for row in rows}
    while not engine.idle:
        for event in engine.step():
            tokens[event.row] += event.tokens
    assert tokens == {row: list(plain_texts()[index]) for row, index in rows.items()}


@pytest.mark.parametrize("leaver", range(4))
def test_whichever_row_leaves_the_others_keep_their_caches(leaver: int) -> None:
    engine = make_engine(model(), Branching(guesses), max_rows=5, prefill_chunk=3)
    ids = [engine.add(request) for request in REQUESTS]
    for _ in range(4):
        engine.step()
    engine.cancel(ids[leaver])
    rows = {row: i for i, row in enumerate(ids) if i != leaver}
    assert_finishes(engine, rows)


def drain(engine: Engine) -> None:
    while not engine.idle:
        engine.step()


class Faulty(Scripted):
    """Raises in one of its methods, at a certain call, for a certain row."""

    def __init__(self, where: str, error: BaseException, at: int = 2) -> None:
        super().__init__(guesses)
        self.where, self.error, self.left = where, error, at
        self.released: list[int] = []

    def _count(self, where: str) -> None:
        if where == self.where:
            self.left -= 1
            if self.left == 0:
                raise self.error

    def propose(self, batch: Batch) -> Draft:
        self._count("propose")
        return super().propose(batch)

    def prefill(self, row: Row, start: int, stop: int, hidden: object) -> None:
        self._count("prefill")

    def observe(self, batch: Batch, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        self._count("observe")

    def release(self, row: Row) -> None:
        self.released.append(row.id)
        self._count("release")


class Watcher(Observer):
    def __init__(self, work: Callable[[Batch], None]) -> None:
        self.work = work

    def observe(self, batch: Batch, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        self.work(batch)


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()], ids=["exception", "interrupt"])
@pytest.mark.parametrize("where", ["propose", "observe", "release"])
def test_a_failing_round_frees_its_rows_and_no_others(where: str, error: BaseException) -> None:
    drafter = Faulty(where, error)
    engine = make_engine(model(), drafter, max_rows=3, prefill_chunk=4)
    ids = [engine.add(request) for request in REQUESTS]
    with pytest.raises(type(error)):
        drain(engine)
    lost = {row for row in ids if not engine.holds(row)}
    assert lost
    assert len(lost) <= 3
    assert lost == set(drafter.released)
    rows = {row: i for i, row in enumerate(ids) if row not in lost}
    assert_finishes(engine, rows)
    assert decode(engine, REQUESTS) == [list(text) for text in plain_texts()]


def test_a_failing_prefill_frees_the_joining_row_alone() -> None:
    drafter = Faulty("prefill", ValueError("broken"), at=3)  # the third chunk is the second of the row of 7 tokens
    engine = make_engine(model(), drafter, prefill_chunk=4)
    ids = [engine.add(request) for request in REQUESTS]
    with pytest.raises(ValueError, match="broken"):
        engine.step()
    assert drafter.released == [ids[2]]
    assert_finishes(engine, {row: i for i, row in enumerate(ids) if i != 2})


def test_a_drafter_that_fails_and_fails_again_at_letting_go_leaves_no_row_behind() -> None:
    class Stubborn(Scripted):
        def propose(self, batch: Batch) -> Draft:
            raise ValueError("first")

        def release(self, row: Row) -> None:
            raise ValueError("second")

    engine = make_engine(model(), Stubborn(guesses), max_rows=4)
    for request in REQUESTS[:3]:
        engine.add(request)
    with pytest.raises(ValueError, match="second") as caught:
        engine.step()
    assert "first" in str(caught.value.__context__) or "second" in str(caught.value.__context__)
    assert engine.idle


@pytest.mark.parametrize("role", ["acceptor", "verifier", "observer", "controller"])
def test_any_role_may_fail(role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    left = [3]

    def work(_: Batch) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise RuntimeError(role)

    engine = make_engine(
        model(), Scripted(guesses), observers=[Watcher(work if role == "observer" else lambda _: None)]
    )
    if role != "observer":
        part = getattr(engine.parts, role)
        method = {"acceptor": "decide", "verifier": "score", "controller": "lengths"}[role]
        original = getattr(part, method)
        monkeypatch.setattr(part, method, lambda *arguments: (work(arguments[0]), original(*arguments))[1])
    for request in REQUESTS[:4]:
        engine.add(request)
    with pytest.raises(RuntimeError, match=role):
        drain(engine)
    assert engine.idle
    assert decode(engine, REQUESTS) == [list(text) for text in plain_texts()]


@pytest.mark.parametrize("where", ["propose", "observe"])
def test_a_row_may_be_cancelled_from_within_a_round(where: str) -> None:
    """As the garbage collector does when it closes a forgotten stream: the round still belongs to all of its rows."""

    class Canceller(Scripted):
        def propose(self, batch: Batch) -> Draft:
            cancel("propose", batch)
            return super().propose(batch)

    def cancel(here: str, batch: Batch) -> None:
        if here == where and batch.lengths[0] > len(PROMPTS[0]) + 3:
            engine.cancel(ids[1])

    engine = make_engine(model(), Canceller(guesses), observers=[Watcher(lambda batch: cancel("observe", batch))])
    ids = [engine.add(request) for request in REQUESTS]
    tokens: dict[int, list[int]] = {row: [] for row in ids}
    while not engine.idle:
        for event in engine.step():
            tokens[event.row] += event.tokens
    rest = [list(text) for i, text in enumerate(plain_texts()) if i != 1]
    assert [tokens[row] for i, row in enumerate(ids) if i != 1] == rest
    assert tokens[ids[1]] == list(plain_texts()[1][: len(tokens[ids[1]])])
    assert len(tokens[ids[1]]) < NEW


def test_a_plugin_may_not_step_the_engine_that_calls_it() -> None:
    engine = make_engine(model(), observers=[Watcher(lambda _: engine.step() and None)])
    engine.add(REQUESTS[1])
    with pytest.raises(RuntimeError, match="within a step"):
        engine.step()
    assert engine.idle
