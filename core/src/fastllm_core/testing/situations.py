"""Requests that put a method into every situation, and what plain decoding says to them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from ..pipeline import Pipeline
from ..request import Request, SamplingParams
from .drafters import Branching, Oracle, Scripted
from .engines import decode
from .subject import Subject, TinyTarget, Toy

Texts = list[list[int]]


def prompts(count: int, vocab_size: int, *, longest: int = 40, seed: int = 0) -> list[tuple[int, ...]]:
    """Random prompts, the first of a single token; some repeat themselves, so that look-ups find something."""
    rng = random.Random(seed)
    made: list[tuple[int, ...]] = [(rng.randrange(vocab_size),)]
    while len(made) < count:
        piece = [rng.randrange(vocab_size) for _ in range(rng.randint(2, max(2, longest // 2)))]
        made.append(tuple((piece * 3)[: rng.randint(2, longest)]))
    return made


def greedy(prompts: Sequence[tuple[int, ...]], new: int) -> list[Request]:
    """Greedy requests that no token ends."""
    return [Request(prompt, new) for prompt in prompts]


def sampled(prompts: Sequence[tuple[int, ...]], new: int, temperature: float = 1.0) -> list[Request]:
    """Sampling requests, each with a seed of its own."""
    return [
        Request(prompt, new, SamplingParams(temperature=temperature), seed=index)
        for index, prompt in enumerate(prompts)
    ]


def texts(pipeline: Pipeline, requests: Sequence[Request], *, every: int = 0) -> Texts:
    """Tokens of each request. every: steps from one's joining to the next's, 0 for all at once."""
    return decode(pipeline.engine, requests, every=every)


def plain_texts(subject: Subject, target: TinyTarget, requests: Sequence[Request]) -> Texts:
    """What plain decoding says."""
    with subject.plain(target) as pipeline:
        return texts(pipeline, requests)


def drafters(subject: Subject, requests: Sequence[Request], expected: Texts) -> Iterator[Toy | None]:
    """None for a plugin that drafts itself; else chains and trees that are right now and then."""
    if subject.drafts:
        yield None
        return
    known = {request.prompt: [*request.prompt, *text] for request, text in zip(requests, expected, strict=True)}
    vocab = subject.target().vocab_size

    def guess(row: object, count: int) -> Sequence[int]:
        return Oracle(known, lambda i: i % 4 == 3, vocab).guess(row, count)  # type: ignore[arg-type]

    yield Toy("beside a chain", lambda context: Scripted(guess))
    yield Toy("beside a tree", lambda context: Branching(guess, vocab_size=vocab))


def expect_same(ours: Texts, expected: Texts, requests: Sequence[Request], where: str) -> None:
    """Raise with the first token that differs."""
    for request, mine, plain in zip(requests, ours, expected, strict=True):
        if mine == plain:
            continue
        at = next((i for i, (a, b) in enumerate(zip(mine, plain, strict=False)) if a != b), min(len(mine), len(plain)))
        prompt = f"{list(request.prompt[:6])}{'...' if len(request.prompt) > 6 else ''}"
        raise AssertionError(
            f"{where}, prompt {prompt}: token {at} is {_at(mine, at)} where plain decoding says {_at(plain, at)} "
            f"({len(mine)} tokens against {len(plain)})"
        )


def _at(tokens: Sequence[int], index: int) -> str:
    return str(tokens[index]) if index < len(tokens) else "missing"
