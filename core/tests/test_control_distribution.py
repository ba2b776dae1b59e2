"""The distribution that a controlled row samples from is the one that transformers' `generate` samples from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessorList

from fastllm_core import Batch, Controls, Draft, Request, SamplingParams, Scores, Verdict, warp
from fastllm_core.acceptor import ExactAcceptor
from fastllm_core.protocols import Proposal
from fastllm_core.testing import tiny_model
from fastllm_core.testing.engines import decode, make_engine
from fastllm_core.testing.processors import Alternating, Parity

PROMPT = (3, 9, 4, 9, 3)
WARM = {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.02}
MODEL = tiny_model(seed=3, num_hidden_layers=2, sharpness=2.0)


class Spy(ExactAcceptor):
    """Notes the distribution of the next token."""

    def __init__(self) -> None:
        super().__init__(Proposal.ONE_HOT)
        self.laws: list[Tensor] = []

    def decide(self, batch: Batch, draft: Draft, scores: Scores) -> Verdict:
        self.laws.append(warp(scores.logits, batch.sampling)[0, 0])
        return super().decide(batch, draft, scores)

    def follow(self, batch: Batch, children: Draft, logits: Tensor) -> Verdict:
        self.laws.append(warp(logits[:, None], batch.sampling)[0, 0])
        return super().follow(batch, children, logits)


CASES: dict[str, tuple[Controls, dict[str, Any]]] = {
    "settings": (
        Controls((((5,), 1.5), ((9, 3), -2.0)), 1.3, 0.0, 0.0, 2, ((6,), (8, 1)), 3),
        {
            "sequence_bias": {(5,): 1.5, (9, 3): -2.0},
            "repetition_penalty": 1.3,
            "no_repeat_ngram_size": 2,
            "bad_words_ids": [[6], [8, 1]],
            "min_new_tokens": 3,
        },
    ),
    "a setting and processors": (
        Controls(repetition_penalty=1.3, processors=(Parity(1.5), Alternating())),
        {"repetition_penalty": 1.3, "logits_processor": LogitsProcessorList([Parity(1.5), Alternating()])},  # type: ignore[list-item]
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_distributions_are_those_of_generate(case: str) -> None:
    controls, settings = CASES[case]
    torch.manual_seed(0)
    ids = torch.tensor([PROMPT])
    answer: Any = MODEL.generate(  # type: ignore[operator]
        ids, attention_mask=torch.ones_like(ids), do_sample=True, max_new_tokens=12, eos_token_id=7, pad_token_id=0,
        return_dict_in_generate=True, output_scores=True, **WARM, **settings,
    )  # fmt: skip
    text = answer.sequences[0, len(PROMPT) :].tolist()
    # Our row is made to write the same text, so that every distribution has the same prefix.
    spy = Spy()
    spoken = iter(text)

    def speak(verdict: Verdict) -> Verdict:
        return Verdict(verdict.accepted, verdict.path, torch.full_like(verdict.tokens, next(spoken)))

    class Speaking(Spy):
        def decide(self, *arguments: Any) -> Verdict:
            return speak(spy.decide(*arguments))

        def follow(self, *arguments: Any) -> Verdict:
            return speak(spy.follow(*arguments))

    engine = make_engine(MODEL)
    object.__setattr__(engine.parts, "acceptor", Speaking())
    asked = Request(PROMPT, 12, SamplingParams(**WARM), 1, frozenset({7}), controls=controls)
    assert decode(engine, [asked])[0] == text
    assert len(spy.laws) == len(text) > 5
    for law, scores in zip(spy.laws, answer.scores, strict=True):
        torch.testing.assert_close(law, scores[0].softmax(-1), rtol=1e-4, atol=1e-6)
