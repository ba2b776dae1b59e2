"""The law of whole texts, from the engine as it is: drawn drafts, a tiny vocabulary, every text enumerated."""

from __future__ import annotations

import itertools
import math
from functools import cache

import pytest
import torch
from transformers import PreTrainedModel

from fastllm_core.acceptor import Rule
from fastllm_core.request import Request, SamplingParams
from fastllm_core.testing import TableDrafter, tiny_model
from fastllm_core.testing.engines import decode, make_engine

V = 5
COUNT = 3
SAMPLES = 3000
PROMPT = (1,)  # one token needs no prefill
WARM = SamplingParams(temperature=1.3)
DRAFTS = torch.tensor([0.05, 0.4, 0.1, 0.4, 0.05])

Text = tuple[int, ...]


@cache
def model() -> PreTrainedModel:
    return tiny_model(vocab_size=V, sharpness=1.5, seed=3)


@cache
def law() -> dict[Text, float]:
    """The probability of every text of COUNT tokens, from the model alone."""
    texts = list(itertools.product(range(V), repeat=COUNT))
    with torch.inference_mode():
        logits = model()(torch.tensor([PROMPT + text for text in texts])).logits
    steps = torch.log_softmax(logits[:, len(PROMPT) - 1 : -1].double() / WARM.temperature, -1)
    chosen = steps.gather(2, torch.tensor(texts)[:, :, None]).sum((1, 2)).exp()
    return dict(zip(texts, chosen.tolist(), strict=True))


@cache
def sample(rule: Rule) -> list[Text]:
    engine = make_engine(model(), TableDrafter(DRAFTS), acceptance=rule, draft_length=2, max_rows=500)
    requests = [Request(PROMPT, COUNT, WARM, seed=seed) for seed in range(SAMPLES)]
    texts = [tuple(text) for text in decode(engine, requests)]
    assert 0.05 < engine.report.accepted / engine.report.drafted < 0.9  # drafts matter
    return texts


def chi_square(texts: list[Text], expected: dict[Text, float]) -> tuple[float, float]:
    """The statistic and what it exceeds once in 10,000 times (Wilson and Hilferty); rare texts are counted together."""
    total = len(texts)
    frequent = {text: p for text, p in expected.items() if p * total >= 5}
    counts = dict.fromkeys(frequent, 0)
    rest = 0
    for text in texts:
        if text in counts:
            counts[text] += 1
        else:
            rest += 1
    rare = max(1 - sum(frequent.values()), 1e-12) * total
    terms = [(counts[text] - p * total) ** 2 / (p * total) for text, p in frequent.items()]
    terms += [(rest - rare) ** 2 / rare] if rare >= 5 else []
    freedom = len(terms) - 1
    spread = 2 / (9 * freedom)
    return sum(terms), freedom * (1 - spread + 3.719 * math.sqrt(spread)) ** 3


def test_the_law_is_not_trivial() -> None:
    assert sum(law().values()) == pytest.approx(1)
    assert max(law().values()) < 0.2
    assert sum(p * SAMPLES >= 5 for p in law().values()) > 50


@pytest.mark.parametrize("rule", ["rejection", "match", "block"])
def test_texts_have_the_models_own_law(rule: Rule) -> None:
    statistic, limit = chi_square(sample(rule), law())
    assert statistic < limit


def test_a_law_that_is_slightly_off_would_be_found() -> None:
    """As if one draft in ten were kept without asking the target."""
    texts = sample("rejection")
    generator = torch.Generator().manual_seed(1)
    drafts = torch.multinomial(DRAFTS, SAMPLES, replacement=True, generator=generator).tolist()
    biased = [
        (draft, *text[1:]) if i % 10 == 0 else text for i, (draft, text) in enumerate(zip(drafts, texts, strict=True))
    ]
    statistic, limit = chi_square(biased, law())
    assert statistic > limit
