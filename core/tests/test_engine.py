"""Whatever is drafted and whoever shares the batch, greedy text is `model.generate`'s, token for token."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import pytest
import torch
from transformers import PreTrainedModel

from fastllm_core.batch import Batch, Row
from fastllm_core.cache import SlotCache
from fastllm_core.engine import Engine
from fastllm_core.errors import ContextLengthError
from fastllm_core.protocols import Draft, Drafter, Scores, Verdict
from fastllm_core.request import Request
from fastllm_core.testing import Branching, Oracle, Scripted, tiny_model
from fastllm_core.testing.engines import decode, make_engine

V = 64
NEW = 10
RNG = random.Random(5)
PROMPTS = [tuple(RNG.randrange(V) for _ in range(size)) for size in (1, 1, 2, 5, 8, 17, 30, 47)]


@cache
def model() -> PreTrainedModel:
    return tiny_model()


@cache
def greedy(prompt: tuple[int, ...], count: int = NEW) -> list[int]:
    """What an unmodified model generates."""
    ids = torch.tensor([prompt])
    answer = model().generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count, pad_token_id=0
    )
    return list(answer[0, len(prompt) :].tolist())


def requests(prompts: Sequence[tuple[int, ...]] = tuple(PROMPTS), count: int = NEW) -> list[Request]:
    return [Request(prompt, count) for prompt in prompts]


def whole(prompts: Sequence[tuple[int, ...]] = tuple(PROMPTS), count: int = NEW) -> dict[tuple[int, ...], list[int]]:
    """Prompt and continuation, for an Oracle."""
    return {prompt: [*prompt, *greedy(prompt, count)] for prompt in prompts}


def noise(position: int) -> bool:
    """A pattern without a period that a round could meet."""
    return position * 2654435761 % 97 < 40


def right(row: Row, count: int) -> list[int]:
    known = whole()[row.request.prompt]
    return known[row.length : row.length + count]


def spoilt(row: Row, count: int) -> list[int]:
    return [(token + 1) % V if noise(row.length + i) else token for i, token in enumerate(right(row, count))]


def random_tokens(row: Row, count: int) -> list[int]:
    rng = random.Random(row.length * 31 + row.request.prompt[0])
    return [rng.randrange(V) for _ in range(rng.randrange(count + 1))]


def sometimes(row: Row, count: int) -> list[int]:
    """Empty drafts beside full ones, and rounds in which nobody drafts."""
    return right(row, count) if row.length % 3 else []


DRAFTERS: dict[str, Callable[[], Drafter | None]] = {
    "nothing": lambda: None,
    "random": lambda: Scripted(random_tokens),
    "all right": lambda: Oracle(whole(), lambda _: False),
    "all wrong": lambda: Oracle(whole(), lambda _: True),
    "some wrong": lambda: Oracle(whole(), noise),
    "some empty": lambda: Scripted(sometimes),
    "always empty": lambda: Scripted(lambda row, count: []),
    "tree": lambda: Branching(right),
    "wide tree, some wrong": lambda: Branching(spoilt, branches=3),
    "tree of random tokens": lambda: Branching(random_tokens, branches=2),
}


@pytest.mark.parametrize("rows", [(1, 0), (5, 0), (3, 2)], ids=["alone", "five ragged", "joining late"])
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_text_is_the_models_own(drafter: str, rows: tuple[int, int]) -> None:
    engine = make_engine(model(), DRAFTERS[drafter](), max_rows=rows[0])
    assert decode(engine, requests(), every=rows[1]) == [greedy(prompt) for prompt in PROMPTS]
    assert engine.idle


@pytest.mark.parametrize("controller", ["auto", "heuristic"])
@pytest.mark.parametrize("drafter", ["some wrong", "wide tree, some wrong"])
def test_text_does_not_depend_on_the_controller(drafter: str, controller: str) -> None:
    engine = make_engine(model(), DRAFTERS[drafter](), max_rows=4, controller=controller)
    assert decode(engine, requests(), every=1) == [greedy(prompt) for prompt in PROMPTS]


@pytest.mark.parametrize("chunk", [1, 7, 16, 46])
def test_prompts_longer_than_a_chunk(chunk: int) -> None:
    engine = make_engine(model(), DRAFTERS["some wrong"](), max_rows=5, prefill_chunk=chunk)
    assert decode(engine, requests(), every=1) == [greedy(prompt) for prompt in PROMPTS]


def test_full_acceptance_commits_draft_and_bonus_in_every_round() -> None:
    engine = make_engine(model(), DRAFTERS["all right"](), draft_length=3)
    engine.add(Request(PROMPTS[4], 10))
    assert [len(event.tokens) for _ in range(3) for event in engine.step()] == [4, 4, 2]


def test_no_acceptance_commits_one_token_in_every_round() -> None:
    engine = make_engine(model(), DRAFTERS["all wrong"]())
    engine.add(Request(PROMPTS[4], 6))
    assert [len(event.tokens) for _ in range(6) for event in engine.step()] == [1] * 6


def test_a_joining_row_does_not_stop_the_others() -> None:
    engine = make_engine(model(), prefill_chunk=4)
    first = engine.add(Request(PROMPTS[2], 30))
    engine.step()
    late = engine.add(Request(PROMPTS[-1], 5))
    alone = 0
    while late not in (rows := [event.row for event in engine.step()]):
        assert rows == [first]
        alone += 1
    assert alone == len(PROMPTS[-1]) // 8  # two chunks of 4 in a step


def test_rows_beyond_max_rows_wait_and_join_in_order() -> None:
    engine = make_engine(model(), max_rows=2)
    ids = [engine.add(Request(PROMPTS[i], 2 + i)) for i in range(4)]
    assert {event.row for event in engine.step()} == set(ids[:2])
    finished = []
    while not engine.idle:
        finished += [event.row for event in engine.step() if event.finish_reason]
    assert finished == ids


def test_a_plain_row_beside_speculating_ones_takes_one_token_a_round() -> None:
    engine = make_engine(model(), DRAFTERS["all right"]())
    plain = engine.add(Request(PROMPTS[5], 10, speculate=False))
    fast = engine.add(Request(PROMPTS[6], 10))
    sizes: dict[int, list[int]] = {plain: [], fast: []}
    while not engine.idle:
        for event in engine.step():
            sizes[event.row].append(len(event.tokens))
    assert sizes == {plain: [1] * 10, fast: [5, 5]}


def test_cache_holds_exactly_the_committed_tokens_but_the_last() -> None:
    """After every round each row's keys and values are those of a fresh reading of its tokens."""
    engine = make_engine(model(), DRAFTERS["wide tree, some wrong"](), max_rows=3)
    for prompt in PROMPTS[3:8]:
        engine.add(Request(prompt, NEW))
    checked = 0
    while not engine.idle:
        engine.step()
        for row in engine._slots.rows:
            if row.ready:
                assert engine.parts.cache.lengths[row.slot] == row.length - 1
                assert_same_cache(engine, row)
                checked += 1
    assert checked > 12


def assert_same_cache(engine: Engine, row: Row) -> None:
    if row.length < 2:
        return
    with torch.inference_mode():
        fresh = model()(torch.tensor([row.tokens[:-1]]), use_cache=True).past_key_values
    ours = engine.parts.cache.layers(slice(row.slot, row.slot + 1), row.length - 1)
    for (keys, values), layer in zip(ours, fresh.layers, strict=True):
        torch.testing.assert_close(keys, layer.keys, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(values, layer.values, atol=1e-4, rtol=1e-4)


class Recorder(Drafter):
    """Drafts what another drafter drafts and writes down how it is called."""

    hidden_layers = (0, 2, 4)

    def __init__(self, inner: Drafter) -> None:
        self.inner, self.proposal = inner, inner.proposal
        self.prefills: list[tuple[int, int, int]] = []
        self.states: dict[int, list[torch.Tensor]] = {}
        self.rounds: list[tuple[int, ...]] = []
        self.released: list[int] = []

    def propose(self, batch: Batch) -> Draft:
        return self.inner.propose(batch)

    def prefill(self, row: Row, start: int, stop: int, hidden: object) -> None:
        self.prefills.append((row.id, start, stop))
        assert isinstance(hidden, dict)
        self._keep(row, torch.stack([hidden[layer][0] for layer in self.hidden_layers]))

    def observe(self, batch: Batch, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        self.rounds.append(tuple(row.id for row in batch.rows))
        for b, row in enumerate(batch.rows):
            kept = row.length - batch.lengths[b]
            path = [0, *(verdict.path[b, : kept - 1] + 1).tolist()]  # the root, then the kept nodes
            self._keep(row, torch.stack([scores.hidden[layer][b, path] for layer in self.hidden_layers]))

    def release(self, row: Row) -> None:
        self.released.append(row.id)
        with torch.inference_mode():
            expected = model()(torch.tensor([row.tokens[:-1]]), output_hidden_states=True).hidden_states
        got = torch.cat(self.states[row.id], dim=1)
        torch.testing.assert_close(got, torch.stack([expected[i][0] for i in (0, 2, 4)]), atol=1e-4, rtol=1e-4)

    def _keep(self, row: Row, states: torch.Tensor) -> None:
        self.states.setdefault(row.id, []).append(states)


class Weather(Scripted):
    """Expects much of every third round, and drafts what is right."""

    def __init__(self) -> None:
        super().__init__(right)
        self.asked: list[list[int]] = []
        self.drafting: list[int] = []

    def expected_acceptance(self, rows: Sequence[Row]) -> list[float]:
        self.asked.append([row.id for row in rows])
        return [0.0 if len(self.asked) % 3 else 1.0] * len(rows)

    def propose(self, batch: Batch) -> Draft:
        self.drafting.append(len(self.asked))
        assert all(
            bool(most) <= row.request.speculate for row, most in zip(batch.rows, batch.draft_lengths, strict=True)
        )
        return super().propose(batch)


def test_a_drafter_that_knows_what_to_expect_is_asked_in_every_round_and_drafts_where_it_expects_something() -> None:
    drafter = Weather()
    asking = [replace(request, speculate=i > 0) for i, request in enumerate(requests(PROMPTS[5:8]))]
    engine = make_engine(model(), drafter, controller="auto", max_rows=3)
    assert decode(engine, asking) == [greedy(prompt) for prompt in PROMPTS[5:8]]
    assert drafter.asked[0] == [2, 3]  # not of the row that decodes plainly
    assert drafter.drafting
    assert not any(asked % 3 for asked in drafter.drafting)


def test_controllers_that_weigh_nothing_do_not_ask_what_is_expected() -> None:
    drafter = Weather()
    decode(make_engine(model(), drafter, controller="heuristic"), requests(PROMPTS[5:6]))
    assert not drafter.asked


@pytest.mark.parametrize("inner", ["some wrong", "wide tree, some wrong"])
def test_a_drafter_sees_prompts_rounds_and_leaving_rows_with_the_right_hidden_states(inner: str) -> None:
    drafter = Recorder(DRAFTERS[inner]() or Scripted(right))
    watcher = Recorder(drafter)
    engine = make_engine(model(), drafter, observers=[watcher], prefill_chunk=8, max_rows=2)
    assert decode(engine, requests(PROMPTS[5:8])) == [greedy(prompt) for prompt in PROMPTS[5:8]]
    assert drafter.prefills == [
        *((1, 0, 8), (1, 8, 16)),
        *((2, 0, 8), (2, 8, 16), (2, 16, 24), (2, 24, 29)),
        *((3, 0, 8), (3, 8, 16), (3, 16, 24), (3, 24, 32), (3, 32, 40), (3, 40, 46)),
    ]
    assert watcher.rounds == drafter.rounds
    assert len(drafter.rounds) == engine.report.rounds
    assert sorted(drafter.released) == [1, 2, 3]


def test_a_drafters_cache_follows_its_rows_and_is_cut_back_to_what_was_committed() -> None:
    """Keys of rejected drafts must not count as read: after a draftless round they would still be in use."""

    class Eager(Scripted):
        def propose(self, batch: Batch) -> Draft:
            draft = super().propose(batch)
            for row in batch.rows:
                cache.lengths[row.slot] = row.length - 1 + max(batch.draft_lengths)
            return draft

        def prefill(self, row: Row, start: int, stop: int, hidden: object) -> None:
            cache.lengths[row.slot] = stop

        def observe(self, batch: Batch, draft: Draft, scores: Scores, verdict: Verdict) -> None:
            for b, row in enumerate(batch.rows):
                drafted = batch.lengths[b] - 1 + max(batch.draft_lengths)
                assert cache.lengths[row.slot] == min(drafted, row.length - 1)
            rounds.append(len(batch))

    rounds: list[int] = []
    made = make_engine(model(), Eager(spoilt))
    cache = SlotCache(made.parts.network)
    parts = replace(made.parts, drafter_caches=[cache])
    engine = Engine(parts, draft_length=made.draft_length, context_length=made.context_length, max_rows=3)
    assert decode(engine, requests(), every=1) == [greedy(prompt) for prompt in PROMPTS]
    assert len(rounds) > 12
    assert not any(cache.lengths)


def test_a_cache_of_other_tokens_follows_its_rows_and_is_never_cut() -> None:
    """A drafter with another tokenizer holds more rows than there are committed tokens."""
    held = 100

    class Foreign(Scripted):
        def propose(self, batch: Batch) -> Draft:
            for row in batch.rows:
                stored = cache.lengths[row.slot]
                assert stored in (0, held + row.id)
                met.append((row.id, stored > 0))
                cache.lengths[row.slot] = held + row.id
            return super().propose(batch)

    met: list[tuple[int, bool]] = []
    made = make_engine(model(), Foreign(spoilt))
    cache = SlotCache(made.parts.network)
    parts = replace(made.parts, foreign_caches=[cache])
    engine = Engine(parts, draft_length=made.draft_length, context_length=made.context_length, max_rows=3)
    assert decode(engine, requests(), every=1) == [greedy(prompt) for prompt in PROMPTS]
    firsts = [row for row, known in met if not known]
    assert len(firsts) == len({*firsts}) == len(PROMPTS)  # empty when a row joins, and then it keeps what is its own
    assert not any(cache.lengths)


def test_context_length_is_checked_before_any_work_and_can_be_filled_exactly() -> None:
    small = tiny_model(max_position_embeddings=32)
    engine = make_engine(small, Scripted(lambda row, count: [1] * count))
    with pytest.raises(ContextLengthError, match=r"5 tokens .* 28 .* 32: at most 27 new tokens fit"):
        engine.add(Request((1, 2, 3, 4, 5), 28))
    with pytest.raises(ContextLengthError, match="shorten the prompt"):
        engine.add(Request(tuple(range(32)), 1))
    assert engine.idle
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    expected = small.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=27, pad_token_id=0)
    assert decode(engine, [Request((1, 2, 3, 4, 5), 27)]) == [expected[0, 5:].tolist()]
