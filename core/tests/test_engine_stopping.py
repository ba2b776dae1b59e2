"""Texts end where plain decoding ends them, wherever in a round that falls."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

import pytest
import torch
from transformers import PreTrainedModel

from fastllm_core.engine import Engine
from fastllm_core.errors import RequestError
from fastllm_core.protocols import Drafter
from fastllm_core.request import Request
from fastllm_core.rows import Event
from fastllm_core.testing import Branching, Oracle, tiny_model, tiny_tokenizer
from fastllm_core.testing.engines import make_engine
from fastllm_core.transcript import text_of

V = 64
NEW = 16
TOKENIZER = tiny_tokenizer(V)


@cache
def model() -> PreTrainedModel:
    return tiny_model(seed=1)


@cache
def greedy(prompt: tuple[int, ...]) -> list[int]:
    ids = torch.tensor([prompt])
    answer = model().generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW, pad_token_id=0
    )
    return list(answer[0, len(prompt) :].tolist())


@cache
def prompt() -> tuple[int, ...]:
    """One whose continuation says many different things, all of them shown."""
    rng = random.Random(0)
    candidates = [tuple(rng.randrange(1, V) for _ in range(6)) for _ in range(30)]
    return max(candidates, key=lambda ids: len(set(greedy(ids)) - {0}))


def oracle(spoil: Callable[[int], bool]) -> Oracle:
    return Oracle({prompt(): [*prompt(), *greedy(prompt())]}, spoil)


def third_wrong(position: int) -> bool:
    """Every round accepts two tokens and is then corrected."""
    return (position - len(prompt())) % 3 == 2


DRAFTERS: dict[str, Callable[[], Drafter | None]] = {
    "plain": lambda: None,
    "all right": lambda: oracle(lambda _: False),  # ends at accepted drafts and at the bonus
    "third wrong": lambda: oracle(third_wrong),  # ends at corrections
    "all wrong": lambda: oracle(lambda _: True),
    "tree": lambda: Branching(oracle(lambda _: False).guess),
}


@cache
def engine_with(drafter: str) -> Engine:
    return make_engine(model(), DRAFTERS[drafter](), tokenizer=TOKENIZER)


def run(drafter: str, request: Request) -> tuple[list[int], Event]:
    """Tokens and the last event."""
    engine = engine_with(drafter)
    engine.add(request)
    tokens: list[int] = []
    while True:
        for event in engine.step():
            tokens += event.tokens
            if event.finish_reason:
                assert engine.idle
                return tokens, event


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_eos_at_every_place(drafter: str) -> None:
    text = greedy(prompt())
    ends = {token: text.index(token) for token in text}
    assert len(ends) > 10
    assert ends[text[0]] == 0
    for token, at in ends.items():
        tokens, event = run(drafter, Request(prompt(), NEW, eos_token_ids=frozenset({token})))
        assert (tokens, event.finish_reason) == (text[: at + 1], "eos"), at


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_the_first_of_several_eos_ids_ends_the_text(drafter: str) -> None:
    text = greedy(prompt())
    several = frozenset({text[9], text[5], text[12]})
    tokens, event = run(drafter, Request(prompt(), NEW, eos_token_ids=several))
    end = min(text.index(token) for token in several)
    assert (tokens, event.finish_reason) == (text[: end + 1], "eos")


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_max_new_tokens_at_every_place(drafter: str) -> None:
    for count in range(1, NEW + 1):
        tokens, event = run(drafter, Request(prompt(), count))
        assert (tokens, event.finish_reason) == (greedy(prompt())[:count], "length")


def test_eos_wins_over_a_limit_that_falls_on_the_same_token() -> None:
    text = greedy(prompt())
    last = max(text.index(token) for token in text)
    tokens, event = run("all right", Request(prompt(), last + 1, eos_token_ids=frozenset({text[last]})))
    assert (tokens, event.finish_reason) == (text[: last + 1], "eos")


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_stop_strings_at_every_offset_of_a_block(drafter: str, size: int) -> None:
    text = greedy(prompt())
    shown = [text_of(TOKENIZER, prompt(), text[:count]) for count in range(NEW + 1)]
    for start in range(len(shown[-1]) - size + 1):
        stop = shown[-1][start : start + size]
        first = shown[-1].index(stop)
        needed = next(count for count, part in enumerate(shown) if len(part) >= first + size)
        tokens, event = run(drafter, Request(prompt(), NEW, stop=(stop,)))
        assert (tokens, event.finish_reason) == (text[:needed], "stop"), stop
        assert text_of(TOKENIZER, prompt(), tokens, (stop,)) == shown[-1][:first]


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_the_stop_string_that_is_complete_first_ends_the_text(drafter: str) -> None:
    text = greedy(prompt())
    shown = text_of(TOKENIZER, prompt(), text)
    long, short = shown[3:9], shown[6:8]  # the short one begins later and is complete earlier
    assert shown.index(long) == 3
    assert shown.index(short) == 6
    tokens, event = run(drafter, Request(prompt(), NEW, stop=(long, short)))
    assert (tokens, event.finish_reason) == (run("plain", Request(prompt(), NEW, stop=(short,)))[0], "stop")
    assert text_of(TOKENIZER, prompt(), tokens, (long, short)) == shown[:6]


def test_a_stop_string_does_not_match_in_the_prompt_or_across_its_end() -> None:
    shown_prompt = TOKENIZER.decode(list(prompt()))
    shown = text_of(TOKENIZER, prompt(), greedy(prompt()))
    for stop in (shown_prompt[-2:], shown_prompt[-1] + shown[:2]):
        assert stop not in shown
        tokens, event = run("all right", Request(prompt(), NEW, stop=(stop,)))
        assert (tokens, event.finish_reason) == (greedy(prompt()), "length")


def test_stop_strings_need_a_tokenizer() -> None:
    engine: Engine = make_engine(model())
    with pytest.raises(RequestError, match="stop strings need a tokenizer"):
        engine.add(Request(prompt(), NEW, stop=("x",)))


def test_rows_that_end_in_the_same_round_all_leave() -> None:
    engine = make_engine(model(), oracle(lambda _: False))
    ids = [engine.add(Request(prompt(), count)) for count in (2, 5, 9, 3, 5)]
    ended = {event.row: event.tokens for event in engine.step() if event.finish_reason}
    assert ended == {ids[i]: tuple(greedy(prompt())[:count]) for i, count in enumerate((2, 5, 9, 3, 5)) if count <= 5}
    (last,) = engine.step()
    assert (last.row, last.finish_reason) == (ids[2], "length")
    assert engine.idle
