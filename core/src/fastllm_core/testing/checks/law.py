"""Checks of what is drawn: the target's distribution, as a function of the seed."""

from __future__ import annotations

from typing import Final

import torch

from ...acceptor import ExactAcceptor
from ...context import Context
from ...request import Request, SamplingParams
from .. import situations
from ..drafters import Scripted, TableDrafter
from ..situations import prompts, sampled
from ..statistics import law_of, misfit, total_variation
from ..subject import Subject, TinyTarget, Toy

SAMPLES: Final = 6000
FAR: Final = 4.5
"""Standard deviations that chance does not reach in anyone's lifetime of checks."""


def check_sampled_law(subject: Subject) -> None:
    """Sampled text follows the target's distribution: every text of four tokens, against its exact probability."""
    target = subject.target(vocab_size=4, sharpness=1.5, num_hidden_layers=2)
    for toy in _toys(subject):
        _expect_law(subject, target, toy, new=4, length=2)


def check_law_over_rounds(subject: Subject) -> None:
    """The same over more and longer rounds of a fair coin: reused randomness shows only in the rounds that follow."""
    target = subject.target(vocab_size=2, sharpness=0.0, num_hidden_layers=2)  # a verifier may run them in parts
    for toy in _toys(subject):
        _expect_law(subject, target, toy, new=6, length=3)


def _expect_law(subject: Subject, target: TinyTarget, toy: Toy | None, *, new: int, length: int) -> None:
    prompt, temperature = (1,), 1.2  # a prompt of one token needs no prefill, which would take most of the time
    law = law_of(target.model, prompt, new, target.vocab_size, temperature)
    requests = [Request(prompt, new, SamplingParams(temperature=temperature), seed=seed) for seed in range(SAMPLES)]
    config = {"draft.length": length, "engine.max_rows": 128}
    with subject.pipeline(target, config=config, beside=toy) as pipeline:
        samples = [tuple(text) for text in situations.texts(pipeline, requests)]
    off = misfit(samples, law)
    assert off < FAR, (
        f"{SAMPLES} sampled texts{f', {toy.label},' if toy else ''} are {off:.0f} standard deviations from the "
        f"target's distribution (total variation {total_variation(samples, law):.3f})"
    )


def check_same_seed_same_text(subject: Subject) -> None:
    """The same seed gives the same text, run after run, alone and in company."""
    target = subject.target()
    requests = sampled(prompts(6, target.vocab_size), 20)
    for toy in _toys(subject):
        answers = []
        for rows in (6, 6, 1):
            config = {"engine.max_rows": rows}
            with subject.pipeline(target, config=config, beside=toy) as pipeline:
                answers.append(situations.texts(pipeline, requests))
        beside = f" {toy.label}" if toy else ""
        situations.expect_same(answers[1], answers[0], requests, f"a second run with the same seeds{beside}")
        situations.expect_same(answers[2], answers[0], requests, f"alone with the same seeds{beside}")


def check_matched_law(subject: Subject) -> None:
    """Where the drafter allows the match rule, sampled text is plain decoding's for the same seed, to the token."""
    target = subject.target()
    requests = sampled(prompts(8, target.vocab_size), 20)
    expected = situations.plain_texts(subject, target, requests)
    with subject.pipeline(target, config={"acceptance.rule": "match"}) as pipeline:
        if isinstance(pipeline.engine.parts.acceptor, ExactAcceptor):
            situations.expect_same(situations.texts(pipeline, requests), expected, requests, "under the match rule")


def _toys(subject: Subject) -> list[Toy | None]:
    if subject.drafts:
        return [None]
    size = subject.target().vocab_size

    def spread(context: Context) -> TableDrafter:
        vocab = context.network.vocab_size
        return TableDrafter(torch.arange(1.0, vocab * 2, 2) / vocab**2)

    return [
        Toy("beside drafts that are drawn", spread),
        Toy("beside drafts that are not drawn", lambda _: Scripted(lambda row, count: [row.tokens[-1] % size] * count)),
    ]
