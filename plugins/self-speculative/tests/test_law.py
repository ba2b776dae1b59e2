"""Sampled text follows the target's distribution where drafts end at a threshold, which a dropped token would bias."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastllm_core import Confidence, Request, SamplingParams
from fastllm_core.testing import Subject
from fastllm_core.testing.situations import texts
from fastllm_core.testing.statistics import law_of, misfit

SAMPLES = 3000
FAR = 4.5
"""Standard deviations that chance does not reach."""


def off(options: dict[str, Any]) -> float:
    """Standard deviations of many sampled texts from their exact law."""
    subject = Subject("self-speculative", options)
    target = subject.target(vocab_size=4, sharpness=1.5, num_hidden_layers=2)
    law = law_of(target.model, (1,), 4, 4, 1.2)
    requests = [Request((1,), 4, SamplingParams(temperature=1.2), seed=seed) for seed in range(SAMPLES)]
    config = {"draft.length": 3, "draft.controller": "threshold", "draft.threshold": 0.4, "engine.max_rows": 128}
    with subject.pipeline(target, config=config) as pipeline:
        samples = [tuple(text) for text in texts(pipeline, requests)]
        lengths = pipeline.engine.report.drafted_at
    assert 0 < lengths[1] < lengths[0], "no draft ended early, so this shows nothing"
    return misfit(samples, law)


@pytest.mark.parametrize("options", [{"skip_attention": [1], "skip_mlp": [0]}, {"exit_layer": 1}], ids=["skip", "exit"])
def test_drafts_that_end_early_bias_nothing(options: dict[str, Any]) -> None:
    assert off(options) < FAR


def test_a_token_that_is_dropped_for_being_unlikely_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on = Confidence.goes_on

    def dropping(confidence: Confidence, logits: Tensor, tokens: Tensor) -> bool:
        more = goes_on(confidence, logits, tokens)
        likely = torch.softmax(logits.float(), -1).gather(1, tokens)[:, 0].tolist()
        for row, (chance, threshold) in enumerate(zip(likely, confidence.batch.thresholds, strict=True)):
            if chance < threshold and confidence._ends[row] == confidence.drafted > 1:
                confidence._ends[row] -= 1
        return more

    monkeypatch.setattr(Confidence, "goes_on", dropping)
    assert off({"skip_attention": [1], "skip_mlp": [0]}) > FAR
