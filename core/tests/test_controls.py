"""Under every control a text is plain decoding's, and plain decoding's is what transformers writes."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from transformers import (
    ExponentialDecayLengthPenalty,
    ForcedEOSTokenLogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    StoppingCriteriaList,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TypicalLogitsWarper,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
    WatermarkLogitsProcessor,
)

from fastllm_core import Controls, Engine, Request
from fastllm_core.protocols import Drafter
from fastllm_core.testing import Branching, Oracle, tiny_model
from fastllm_core.testing.engines import decode, make_engine
from fastllm_core.testing.processors import AfterSum, Alternating, Parity, Rolling

V = 64
NEW = 20
QUICK, FULL = 3, 36
ENDS = frozenset({7, 21, 40})


@cache
def model() -> PreTrainedModel:
    return tiny_model(seed=3, num_hidden_layers=2)


@cache
def unconditional() -> PreTrainedModel:
    return tiny_model(seed=4, num_hidden_layers=2)


@cache
def prompts(count: int) -> list[tuple[int, ...]]:
    rng = random.Random(2)
    pieces = [tuple(rng.randrange(1, V) for _ in range(rng.randint(2, 5))) for _ in range(count)]
    return [(piece * 3)[: rng.randint(2, 12)] for piece in pieces]  # some repeat themselves


Case = Callable[[tuple[int, ...]], dict[str, Any]]
"""The fields of a request for a prompt, each time anew."""


def controls(**values: Any) -> Case:
    return lambda prompt: {"controls": Controls(**values)}


def processors(*make: Callable[[tuple[int, ...]], Any]) -> Case:
    return lambda prompt: {"controls": Controls(processors=tuple(one(prompt) for one in make))}


BIAS = {(9,): -4.0, (3,): 2.5, (5, 11): 6.0, (40, 2): -torch.inf, (8, 9, 10): 4.0}
WORDS = ((5,), (12, 30), (33,), (2, 4, 6), *((token,) for token in range(44, 52)), *((i, i + 1) for i in range(40)))

BUILT_IN: dict[str, tuple[Case, Case]] = {
    "repetition penalty": (
        controls(repetition_penalty=1.7),
        processors(lambda _: RepetitionPenaltyLogitsProcessor(1.7)),
    ),
    "repetition reward": (
        controls(repetition_penalty=0.6),
        processors(lambda _: RepetitionPenaltyLogitsProcessor(0.6)),
    ),
    "no repeated pairs": (
        controls(no_repeat_ngram_size=2),
        processors(lambda _: NoRepeatNGramLogitsProcessor(2)),
    ),
    "no repeated token": (
        controls(no_repeat_ngram_size=1),
        processors(lambda _: NoRepeatNGramLogitsProcessor(1)),
    ),
    "no repeated triples": (
        controls(no_repeat_ngram_size=3),
        processors(lambda _: NoRepeatNGramLogitsProcessor(3)),
    ),
    "bad words": (
        controls(bad_words=WORDS),
        processors(lambda _: NoBadWordsLogitsProcessor([list(words) for words in WORDS])),
    ),
    "biases": (
        controls(sequence_bias=tuple(BIAS.items())),
        processors(lambda _: SequenceBiasLogitsProcessor(BIAS)),
    ),
    "a least length": (
        lambda _: {"controls": Controls(min_new_tokens=9), "eos_token_ids": ENDS},
        lambda prompt: {
            "controls": Controls(processors=(MinNewTokensLengthLogitsProcessor(len(prompt), 9, sorted(ENDS)),)),
            "eos_token_ids": ENDS,
        },
    ),
    "suppressed tokens": (
        controls(bad_words=tuple((token,) for token in range(20))),
        processors(lambda _: SuppressTokensLogitsProcessor([*range(20)])),
    ),
    "everything": (
        controls(sequence_bias=tuple(BIAS.items()), repetition_penalty=1.3, no_repeat_ngram_size=2, bad_words=WORDS),
        processors(
            lambda _: SequenceBiasLogitsProcessor(BIAS),
            lambda _: RepetitionPenaltyLogitsProcessor(1.3),
            lambda _: NoRepeatNGramLogitsProcessor(2),
            lambda _: NoBadWordsLogitsProcessor([list(words) for words in WORDS]),
        ),
    ),
}
"""Each built-in control, and the processors of transformers that do the same."""

CALLED: dict[str, Case] = {
    "guidance": processors(lambda _: UnbatchedClassifierFreeGuidanceLogitsProcessor(1.5, unconditional())),
    "guidance against the model itself": processors(
        lambda prompt: UnbatchedClassifierFreeGuidanceLogitsProcessor(3.0, model(), torch.tensor([prompt[:1]]))
    ),
    "guidance without a cache": processors(
        lambda prompt: UnbatchedClassifierFreeGuidanceLogitsProcessor(
            1.5, unconditional(), torch.tensor([prompt[-2:]]), use_cache=False
        )
    ),
    "allowed tokens": processors(
        lambda _: PrefixConstrainedLogitsProcessor(lambda _, ids: [*range(int(ids[-1]) % 2, V, 2)], 1)
    ),
    "decay": lambda prompt: {
        "controls": Controls(
            processors=(ExponentialDecayLengthPenalty((4, 1.2), sorted(ENDS), len(prompt)),)
        ),
        "eos_token_ids": ENDS,
    },
    "a forced end": lambda prompt: {
        "controls": Controls(processors=(ForcedEOSTokenLogitsProcessor(len(prompt) + 11, 7),)), "eos_token_ids": ENDS
    },
    "a watermark": processors(lambda _: WatermarkLogitsProcessor(V, "cpu", context_width=2, bias=4.0)),
    "a truncation": processors(lambda _: TypicalLogitsWarper(0.5), lambda _: TemperatureLogitsWarper(0.7)),
    "stateful": processors(lambda _: Rolling()),
    "snapshotable": processors(lambda _: Alternating()),
    "pure": processors(lambda _: Parity()),
    "a mixture": lambda _: {
        "controls": Controls(repetition_penalty=1.4, processors=(Alternating(), Rolling())),
        "stopping_criteria": (AfterSum(400),),
        "eos_token_ids": frozenset({30}),
    },
    "a criterion": lambda _: {"stopping_criteria": (AfterSum(300),)},
}  # fmt: skip
"""Processors and criteria that are called as they are."""

EXTRA: dict[str, Case] = {
    "presence penalty": controls(presence_penalty=2.0),
    "frequency penalty": controls(frequency_penalty=1.5, repetition_penalty=1.1),
    "frequency reward": controls(frequency_penalty=-2.5),
}
"""What transformers does not have."""

CASES: dict[str, Case] = {**{name: case for name, (case, _) in BUILT_IN.items()}, **CALLED, **EXTRA}


class Told(Oracle):
    """An oracle that is told each text when it is known."""

    def __init__(self, spoil: Callable[[int], bool]) -> None:
        super().__init__({}, spoil, V)


def kinds() -> dict[str, tuple[Oracle, Drafter]]:
    right, third, wrong, tree, broad = (
        Told(lambda _: False), Told(lambda i: i % 3 == 2), Told(lambda _: True), Told(lambda i: i % 5 == 4),
        Told(lambda i: i % 7 == 3),
    )  # fmt: skip
    return {
        "a chain that is right": (right, right),
        "a chain that is wrong now and then": (third, third),
        "a chain that is wrong": (wrong, wrong),
        "a tree": (tree, Branching(tree.guess)),
        "a broad tree": (broad, Branching(broad.guess, branches=3)),
    }


@cache
def engines() -> dict[str, tuple[Oracle | None, Engine]]:
    made: dict[str, tuple[Oracle | None, Engine]] = {"plain": (None, make_engine(model()))}
    for name, (oracle, drafter) in kinds().items():
        made[name] = (oracle, make_engine(model(), drafter, draft_length=5))
    return made


def request(case: Case, prompt: tuple[int, ...], new: int = NEW) -> Request:
    return Request(prompt, new, **case(prompt))


def plain(case: Case, prompt: tuple[int, ...], new: int = NEW) -> list[int]:
    return decode(engines()["plain"][1], [request(case, prompt, new)])[0]


def transformers_says(case: Case, prompt: tuple[int, ...], **settings: Any) -> list[int]:
    asked = request(case, prompt)
    ids = torch.tensor([prompt])
    answer: Any = model().generate(  # type: ignore[operator]
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=NEW,
        pad_token_id=0,
        eos_token_id=sorted(asked.eos_token_ids) or None,
        logits_processor=LogitsProcessorList(asked.controls.processors),  # type: ignore[arg-type]
        stopping_criteria=StoppingCriteriaList(asked.stopping_criteria),  # type: ignore[arg-type]
        **settings,
    )
    return answer[0, len(prompt) :].tolist()  # type: ignore[no-any-return]


def check_plain(name: str, count: int) -> None:
    theirs = BUILT_IN[name][1] if name in BUILT_IN else CASES[name]
    if name == "a mixture":  # the penalty is a setting there
        theirs = lambda prompt: {  # noqa: E731
            **CALLED[name](prompt),
            "controls": Controls(processors=(RepetitionPenaltyLogitsProcessor(1.4), Alternating(), Rolling())),
        }
    changed = 0
    for prompt in prompts(count):
        text = plain(CASES[name], prompt)
        assert text == transformers_says(theirs, prompt), prompt
        changed += text != plain(lambda _: {}, prompt)
    if count == FULL:
        assert changed or name == "a truncation"  # greedily that changes nothing


def check_speculation(name: str, count: int) -> None:
    accepted = 0
    for kind, (oracle, engine) in engines().items():
        if oracle is None:
            continue
        for prompt in prompts(count):
            expected = plain(CASES[name], prompt)
            oracle.continuations[prompt] = [*prompt, *expected]
            assert decode(engine, [request(CASES[name], prompt)])[0] == expected, (kind, prompt)
        accepted += engine.report.accepted
    assert accepted >= count


@pytest.mark.parametrize("name", [*BUILT_IN, *CALLED])
def test_plain_decoding_is_transformers(name: str) -> None:
    check_plain(name, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*BUILT_IN, *CALLED])
def test_plain_decoding_is_transformers_often(name: str) -> None:
    check_plain(name, FULL)


@pytest.mark.parametrize("name", CASES)
def test_speculation_is_plain_decoding(name: str) -> None:
    check_speculation(name, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_speculation_is_plain_decoding_often(name: str) -> None:
    check_speculation(name, FULL)


def test_guidance_by_its_setting_is_the_processor() -> None:
    """`guidance_scale` of transformers, which makes the processor with the model itself."""
    case = processors(lambda _: UnbatchedClassifierFreeGuidanceLogitsProcessor(1.5, model()))
    for prompt in prompts(QUICK):
        assert plain(case, prompt) == transformers_says(lambda _: {}, prompt, guidance_scale=1.5)


def test_rows_of_a_batch_may_all_differ() -> None:
    """Each row keeps its own text beside every other control, with rows joining late and some not speculating."""
    asked = list(zip(CASES, prompts(len(CASES)), strict=True))
    expected = [plain(CASES[name], prompt) for name, prompt in asked]
    for kind, (oracle, engine) in engines().items():
        if oracle is not None:
            oracle.continuations.update(
                {prompt: [*prompt, *text] for (_, prompt), text in zip(asked, expected, strict=True)}
            )
        requests = [
            Request(prompt, NEW, speculate=index % 5 != 4, controller=(None, "heuristic", "auto")[index % 3],
                    **CASES[name](prompt))
            for index, (name, prompt) in enumerate(asked)
        ]  # fmt: skip
        assert decode(engine, requests, every=1) == expected, kind


def sampled(case: Case) -> Case:
    from fastllm_core import SamplingParams

    return lambda prompt: {**case(prompt), "sampling": SamplingParams(1.3, top_k=30), "seed": sum(prompt)}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_sampled_text_follows_from_its_seed(name: str) -> None:
    """Under the match rule a sampled text is plain decoding's, to the token."""
    case = sampled(CASES[name])
    for prompt in prompts(1):
        expected = plain(case, prompt)
        for kind, (oracle, engine) in engines().items():
            if oracle is not None:
                oracle.continuations[prompt] = [*prompt, *expected]
            assert decode(engine, [request(case, prompt)])[0] == expected, kind
