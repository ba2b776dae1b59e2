"""Random requests over all controls at once, in batches whose rows all differ: each text is plain decoding's."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import (
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from fastllm_core import Controls, Engine, Request, SamplingParams
from fastllm_core.batch import Row
from fastllm_core.protocols import Drafter
from fastllm_core.testing import Branching, Scripted, tiny_model, tiny_tokenizer
from fastllm_core.testing.engines import decode, make_engine
from fastllm_core.testing.processors import AfterSum, Alternating, Parity, Rolling

V = 48
TOKENIZER = tiny_tokenizer(V)
TOKENS = st.integers(0, V - 1)
SEQUENCES = st.lists(TOKENS, min_size=1, max_size=3).map(tuple)
TOGETHER = 5
"""Requests of a batch."""


@cache
def model(seed: int = 5) -> PreTrainedModel:
    return tiny_model(seed=seed, num_hidden_layers=2, vocab_size=V, max_position_embeddings=64)


PROCESSORS: dict[str, Any] = {
    "rolling": Rolling,
    "alternating": Alternating,
    "parity": Parity,
    "penalty": lambda: RepetitionPenaltyLogitsProcessor(1.25),
    "guidance": lambda: UnbatchedClassifierFreeGuidanceLogitsProcessor(1.4, model(6)),
}

CONTROLS = st.fixed_dictionaries(
    {},
    optional={
        "repetition_penalty": st.sampled_from([0.7, 1.2, 2.0]),
        "presence_penalty": st.sampled_from([-1.0, 0.5, 3.0]),
        "frequency_penalty": st.sampled_from([-0.5, 0.4, 2.0]),
        "no_repeat_ngram_size": st.integers(1, 4),
        "bad_words": st.lists(SEQUENCES, max_size=12).map(tuple),
        "sequence_bias": st.lists(st.tuples(SEQUENCES, st.floats(-6, 6, width=32)), max_size=6).map(tuple),
        "min_new_tokens": st.integers(0, 14),
        "processors": st.lists(st.sampled_from(sorted(PROCESSORS)), max_size=2),
    },
)
REQUESTS = st.fixed_dictionaries(
    {
        "prompt": st.lists(TOKENS, min_size=1, max_size=10).map(tuple),
        "max_new_tokens": st.integers(1, 16),
        "controls": CONTROLS,
        "eos_token_ids": st.frozensets(TOKENS, max_size=4),
    },
    optional={
        "sampling": st.builds(
            SamplingParams,
            temperature=st.sampled_from([0.0, 0.7, 1.5]),
            top_k=st.sampled_from([0, 5]),
            top_p=st.sampled_from([1.0, 0.8]),
            min_p=st.sampled_from([0.0, 0.05]),
        ),
        "stop": st.lists(st.text(" abcdefgh", min_size=1, max_size=2), max_size=2).map(tuple),
        "criterion": st.integers(0, 400),
        "speculate": st.booleans(),
        "controller": st.sampled_from(["fixed", "heuristic", "auto"]),
    },
)
SPOILT = st.integers(1, 8)
"""Every which drafted token is wrong."""


def request(recipe: dict[str, Any], seed: int) -> Request:
    """With processors and criteria of its own, which have seen nothing."""
    fields = dict(recipe)
    controls = dict(fields.pop("controls"))
    controls["processors"] = tuple(PROCESSORS[name]() for name in controls.pop("processors", ()))
    criterion = fields.pop("criterion", None)
    criteria = () if criterion is None else (AfterSum(criterion),)
    return Request(**fields, seed=seed, controls=Controls(**controls), stopping_criteria=criteria)


class Told:
    """Guesses what plain decoding wrote, but for every few tokens."""

    def __init__(self) -> None:
        self.texts: dict[int, list[int]] = {}
        self.every = 3

    def __call__(self, row: Row, count: int) -> list[int]:
        written = row.length - row.prompt_length
        text = self.texts[row.seed][written : written + count]
        text += [0] * (count - len(text))  # beyond the end too: an end must not be overrun
        return [(token + 1) % V if (written + i) % self.every == 0 else token for i, token in enumerate(text)]


@cache
def engines() -> tuple[Engine, Told, dict[str, Engine]]:
    told = Told()
    drafters: dict[str, Drafter] = {
        "chain": Scripted(told),
        "tree": Branching(told, branches=2, vocab_size=V),
    }
    made = {
        name: make_engine(model(), drafter, draft_length=4, max_rows=TOGETHER - 1, tokenizer=TOKENIZER)
        for name, drafter in drafters.items()
    }
    return make_engine(model(), max_rows=1, tokenizer=TOKENIZER), told, made


def check(recipes: list[dict[str, Any]], every: int, late: int, kind: str) -> None:
    plain, told, made = engines()
    told.every = every
    # A text is told by its row's seed, since prompts may be equal.
    told.texts = {seed: decode(plain, [request(recipe, seed)])[0] for seed, recipe in enumerate(recipes)}
    texts = decode(made[kind], [request(recipe, seed) for seed, recipe in enumerate(recipes)], every=late)
    assert texts == list(told.texts.values())


BATCHES = {
    "recipes": st.lists(REQUESTS, min_size=TOGETHER, max_size=TOGETHER),
    "every": SPOILT,
    "late": st.integers(0, 2),
    "kind": st.sampled_from(["chain", "tree"]),
}
CALM: Any = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}


@settings(max_examples=20, derandomize=True, **CALM)
@given(**BATCHES)
def test_a_hundred_random_requests(recipes: list[dict[str, Any]], every: int, late: int, kind: str) -> None:
    check(recipes, every, late, kind)


@pytest.mark.slow
@settings(max_examples=1000, **CALM)
@given(**BATCHES)
def test_five_thousand_random_requests(recipes: list[dict[str, Any]], every: int, late: int, kind: str) -> None:
    check(recipes, every, late, kind)
