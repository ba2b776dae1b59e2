"""The law of whole texts, from the engine as it is: drawn drafts, a tiny vocabulary, every text enumerated."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from transformers import PreTrainedModel

from fastllm_core.acceptor import Rule
from fastllm_core.request import Request, SamplingParams
from fastllm_core.testing import TableDrafter, tiny_model
from fastllm_core.testing.engines import decode, make_engine
from fastllm_core.testing.statistics import Text, law_of, misfit

V = 5
COUNT = 3
SAMPLES = 3000
PROMPT = (1,)  # one token needs no prefill
WARM = SamplingParams(temperature=1.3)
DRAFTS = torch.tensor([0.05, 0.4, 0.1, 0.4, 0.05])
SELDOM = 3.719
"""Standard deviations that chance exceeds once in 10,000 times."""


@cache
def model() -> PreTrainedModel:
    return tiny_model(vocab_size=V, sharpness=1.5, seed=3)


@cache
def law() -> dict[Text, float]:
    return law_of(model(), PROMPT, COUNT, V, WARM.temperature)


@cache
def sample(rule: Rule) -> list[Text]:
    engine = make_engine(model(), TableDrafter(DRAFTS), acceptance=rule, draft_length=2, max_rows=500)
    requests = [Request(PROMPT, COUNT, WARM, seed=seed) for seed in range(SAMPLES)]
    texts = [tuple(text) for text in decode(engine, requests)]
    assert 0.05 < engine.report.accepted / engine.report.drafted < 0.9  # drafts matter
    return texts


def test_the_law_is_not_trivial() -> None:
    assert sum(law().values()) == pytest.approx(1)
    assert max(law().values()) < 0.2
    assert sum(p * SAMPLES >= 5 for p in law().values()) > 50


@pytest.mark.parametrize("rule", ["rejection", "match", "block"])
def test_texts_have_the_models_own_law(rule: Rule) -> None:
    assert misfit(sample(rule), law()) < SELDOM


def test_a_law_that_is_slightly_off_would_be_found() -> None:
    """As if one draft in ten were kept without asking the target."""
    texts = sample("rejection")
    generator = torch.Generator().manual_seed(1)
    drafts = torch.multinomial(DRAFTS, SAMPLES, replacement=True, generator=generator).tolist()
    biased = [
        (draft, *text[1:]) if i % 10 == 0 else text for i, (draft, text) in enumerate(zip(drafts, texts, strict=True))
    ]
    assert misfit(biased, law()) > SELDOM
