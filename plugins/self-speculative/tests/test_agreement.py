"""Acceptance in one forward is what a drafter would have had, draft by draft."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

import fastllm_core
from fastllm_core import Network, SlotCache, chain, read
from fastllm_core.testing import tiny_model
from fastllm_core.testing.families import family
from fastllm_plugin_self_speculative.skipset import SkipSet
from fastllm_plugin_self_speculative.tuning.agreement import Agreement, Text

PROMPTS = [(5, 9, 33, 2, 4, 8, 11), (3,), (7,) * 12]
SETS = [SkipSet.of([1], [2]), SkipSet.of([], [0, 1]), SkipSet.of_layers(2, 4)]


@cache
def parts(name: str) -> tuple[Any, Network, list[Text]]:
    model = tiny_model() if name == "tiny" else family(name).model()
    with fastllm_core.load(model, "plain", dtype="float32", config={"forward": "eager"}) as pipeline:
        texts = [
            Text(prompt, tuple(pipeline.generate(list(prompt), max_new_tokens=count).token_ids))
            for prompt, count in zip(PROMPTS, (13, 9, 13), strict=True)
        ]
        return pipeline.target, pipeline.engine.parts.network, texts


@torch.inference_mode()
def one_by_one(name: str, skipped: SkipSet, length: int) -> float:
    """Each draft from what the whole model has stored, a token at a time, led along the text."""
    _, network, texts = parts(name)
    right = total = 0
    for text in texts:
        ids = [*text.prompt, *text.continuation]
        for first in range(0, len(text.continuation), length):
            cache = SlotCache(network)
            cache.reserve(1, 64)
            root = len(text.prompt) - 1 + first
            if root:
                read(network, cache, 0, ids[:root], 0)
            for at in range(root, min(root + length, len(ids) - 1)):
                row = chain(torch.tensor([[ids[at]]]), torch.tensor([at]), 64)
                said = network.advance(
                    row, cache.layers(slice(0, 1), 64), skip_attention=skipped.attention, skip_mlp=skipped.mlp
                )
                right += int(said.likely) == ids[at + 1]
                total += 1
    return right / total


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["tiny", "gemma3_text"])
def test_it_is_what_a_drafter_would_have_had(name: str) -> None:
    target, network, texts = parts(name)
    agreement = Agreement(target, network, texts, 4)
    assert agreement.of(SkipSet()) == 1.0
    found = [agreement.of(skipped) for skipped in SETS]
    assert found == pytest.approx([one_by_one(name, skipped, 4) for skipped in SETS])
    assert len({0.0, 1.0, *found}) > 3, "nothing is accepted in part, so this shows nothing"
    assert found == [agreement.of(skipped) for skipped in SETS], "a trial changed what is stored"


@torch.inference_mode()
def test_a_row_that_saw_other_keys_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """One long draft instead of short ones: more of the skipped model's own keys, and another acceptance."""
    target, network, texts = parts("tiny")
    short, long = (Agreement(target, network, texts, length) for length in (1, 13))
    assert [short.of(each) for each in SETS] != [long.of(each) for each in SETS]
