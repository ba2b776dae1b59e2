"""Run: PYTHONPATH=core/src pytest core/tests/test_sampling.py"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from fastllm_core.request import SamplingParams
from fastllm_core.sampling import Sampling, draw, warp

ALL = [
    SamplingParams(*settings)
    for settings in itertools.product([0.0, 0.7, 1.0, 1.9], [0, 1, 5, 500], [1.0, 0.9, 0.3, 1e-6], [0.0, 0.05, 1.0])
]


def reference(logits: Tensor, params: SamplingParams) -> Tensor:
    """float[W, V] by transformers' own warpers."""
    if params.temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).float()
    ids: Any = None  # these four do not look at the text
    scores: Tensor = TemperatureLogitsWarper(params.temperature)(ids, logits.float())
    if params.top_k:
        scores = TopKLogitsWarper(params.top_k)(ids, scores)
    if params.top_p < 1:
        scores = TopPLogitsWarper(params.top_p)(ids, scores)
    if params.min_p:
        scores = MinPLogitsWarper(params.min_p)(ids, scores)
    return scores.softmax(-1)


def logits_of(kind: str, rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, 3, 60, generator=generator) * 3
    if kind == "ties":
        logits = logits.round()
    if kind == "flat":
        logits = torch.zeros_like(logits)[..., :10]  # ten tokens of 0.1: cuts of top-p fall on sums
    if kind == "masked":
        logits[..., ::2] = -torch.inf
    return logits.bfloat16() if kind == "bfloat16" else logits


@pytest.mark.parametrize("kind", ["plain", "ties", "flat", "masked", "bfloat16"])
def test_mixed_rows_agree_with_transformers(kind: str) -> None:
    logits = logits_of(kind, len(ALL))
    got = warp(logits, Sampling.of(ALL, "cpu"))
    assert got.dtype == torch.float32
    for row, params in enumerate(ALL):
        expected = reference(logits[row], params)
        if kind in ("ties", "bfloat16"):  # which of equal tokens top-p cuts is up to the sort: theirs is not stable
            torch.testing.assert_close(got[row].sort().values, expected.sort().values, rtol=1e-6, atol=1e-7)
            continue
        torch.testing.assert_close(got[row], expected, rtol=1e-6, atol=1e-7, msg=f"{params}")
        assert torch.equal(got[row] > 0, expected > 0), params


@pytest.mark.parametrize("params", ALL[:: len(ALL) // 24], ids=str)
def test_a_row_alone_equals_the_row_in_company(params: SamplingParams) -> None:
    logits = logits_of("plain", 3)
    alone = warp(logits[:1], Sampling.of([params], "cpu"))
    company = [params, SamplingParams(), SamplingParams(0.5, 7, 0.5, 0.1)]
    torch.testing.assert_close(warp(logits, Sampling.of(company, "cpu"))[:1], alone, rtol=1e-6, atol=1e-7)


def test_flags_say_what_is_needed() -> None:
    greedy = Sampling.of([SamplingParams(0.0, 5, 0.5, 0.5)], "cpu")
    assert (greedy.greedy, greedy.mixed, greedy.largest_k, greedy.uses_top_p, greedy.uses_min_p) == (
        True, False, 0, False, False)  # fmt: skip
    both = Sampling.of([SamplingParams(), SamplingParams(1.0, 5), SamplingParams(1.0, 0, 0.5, 0.5)], "cpu")
    assert (both.greedy, both.mixed, both.largest_k, both.uses_top_p, both.uses_min_p) == (False, True, 5, True, True)
    assert [both.temperature.dtype, both.top_k.dtype, both.top_p.dtype, both.min_p.dtype] == [
        torch.float32, torch.int64, torch.float32, torch.float32]  # fmt: skip
    assert Sampling.of([], "cpu").greedy


def test_greedy_takes_the_first_of_equals() -> None:
    logits = torch.tensor([[[1.0, 3.0, 3.0]]])
    assert warp(logits, Sampling.of([SamplingParams()], "cpu")).tolist() == [[[0.0, 1.0, 0.0]]]


@pytest.mark.parametrize("temperature", [1e-300, 1e-44, 1e-20, 1e38, 1e300])
def test_extreme_temperatures_stay_distributions(temperature: float) -> None:
    logits = torch.tensor([[[50.0, 49.0, -torch.inf]]])
    probs = warp(logits, Sampling.of([SamplingParams(temperature)], "cpu"))
    expected = [1.0, 0.0, 0.0] if temperature < 1 else [0.5, 0.5, 0.0]
    assert probs.flatten().tolist() == pytest.approx(expected)


def test_large_logits_are_not_clamped() -> None:
    probs = warp(torch.tensor([[[300.0, 299.0]]]), Sampling.of([SamplingParams(1.0)], "cpu"))
    assert probs[0, 0, 0].item() == pytest.approx(0.7310586)


def test_draw_is_the_inverse_of_the_distribution() -> None:
    probs = torch.tensor([0.0, 0.5, 0.0, 0.25, 0.25, 0.0])
    u = torch.tensor([0.0, 0.49, 0.5, 0.74, 0.75, 0.99], dtype=torch.float64)
    assert draw(probs.expand(6, -1), u).tolist() == [1, 1, 3, 3, 4, 4]


def test_draw_never_returns_the_impossible() -> None:
    generator = torch.Generator().manual_seed(1)
    probs = torch.rand(400, 50, generator=generator) * (torch.rand(400, 50, generator=generator) < 0.2)
    probs[:, 7] = 1e-30  # so that some token is possible
    probs *= torch.logspace(-20, 20, 400)[:, None]
    probs[:, -5:] = 0
    probs[:, :5] = 0
    for u in (0.0, 2.0**-53, 0.5, 1 - 2.0**-53):
        tokens = draw(probs, torch.full((400,), u, dtype=torch.float64))
        assert (probs.gather(1, tokens[:, None]) > 0).all()


def test_draw_takes_any_leading_shape_and_nan_does_no_harm() -> None:
    assert draw(torch.ones(2, 0, 5), torch.zeros(2, 0, dtype=torch.float64)).shape == (2, 0)
    assert 0 <= draw(torch.full((1, 5), torch.nan), torch.full((1,), 0.5, dtype=torch.float64)).item() < 5
    assert 0 <= draw(torch.zeros(1, 5), torch.full((1,), 0.5, dtype=torch.float64)).item() < 5
