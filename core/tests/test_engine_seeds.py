"""Under the match rule a sampled text is a function of its seed: whatever drafts, batch, controller or process.

In float32, on tiny models: nothing here is close enough to a border for rounding to choose another token.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from fastllm_core.batch import Batch, Row
from fastllm_core.engine import Engine
from fastllm_core.protocols import Draft, Drafter, Proposal
from fastllm_core.randomness import Purpose
from fastllm_core.request import Request, SamplingParams
from fastllm_core.sampling import draw
from fastllm_core.testing import Branching, Oracle, Scripted, TableDrafter, tiny_model
from fastllm_core.testing.engines import decode, make_engine

V, NEW, SEED = 64, 10, 40
RNG = random.Random(5)
PROMPTS = [tuple(RNG.randrange(V) for _ in range(size)) for size in (1, 9, 3, 17, 6)]
SETTINGS = [
    SamplingParams(temperature=0.8),
    SamplingParams(temperature=1.5, top_k=8),
    SamplingParams(temperature=1.0, top_p=0.8),
    SamplingParams(),
    SamplingParams(temperature=2.0, min_p=0.05),
]
REQUESTS = [
    Request(prompt, NEW, sampling, seed=SEED + i)
    for i, (prompt, sampling) in enumerate(zip(PROMPTS, SETTINGS, strict=True))
]
FAMILIES = ["llama", "gpt_neox", "qwen3"]
TABLE = torch.softmax(torch.randn(V, generator=torch.Generator().manual_seed(0)), -1)

Texts = list[list[int]]


@cache
def model(family: str) -> PreTrainedModel:
    return tiny_model(family, sharpness=2.0)


@cache
def plain(family: str) -> Texts:
    """Each request alone, decoded plainly."""
    return [decode(make_engine(model(family)), [request])[0] for request in REQUESTS]


def whole(family: str, row: Row) -> list[int]:
    """Prompt and text of the request that a row belongs to, which its seed tells: it may have been resumed."""
    return [*PROMPTS[row.seed - SEED], *plain(family)[row.seed - SEED]]


def guesses(family: str) -> Callable[[Row, int], list[int]]:
    """Often right and often wrong, and of any length."""

    def guess(row: Row, count: int) -> list[int]:
        rng = random.Random(row.length)
        right = whole(family, row)[row.length : row.length + rng.randrange(count + 1)]
        return [(token + (rng.random() < 0.3)) % V for token in right]

    return guess


class Siblings(Drafter):
    """Three siblings drawn from one table."""

    def __init__(self, probs: Tensor, proposal: Proposal) -> None:
        self.probs, self.proposal = probs, proposal

    def propose(self, batch: Batch) -> Draft:
        uniforms, left = batch.uniforms(Purpose.DRAFT, 3), self.probs.expand(len(batch), -1)
        tokens = []
        for u in uniforms.unbind(1):
            tokens.append(draw(left, u))
            if self.proposal is Proposal.WITHOUT_REPLACEMENT:
                left = left.scatter(1, tokens[-1][:, None], 0.0)
        lengths = torch.tensor([3 * (wanted > 0) for wanted in batch.draft_lengths])
        probs = self.probs.expand(len(batch), 4, -1)
        return Draft(torch.stack(tokens, 1), lengths, torch.full((len(batch), 3), -1), probs)


METHODS: dict[str, Callable[[str], Drafter | None]] = {
    "plain": lambda family: None,
    "chain": lambda family: Scripted(guesses(family)),
    "chain of the likeliest": lambda family: Scripted(lambda row, count: [int(TABLE.argmax())] * count),
    "chain that is drawn": lambda family: TableDrafter(TABLE),
    "tree": lambda family: Branching(guesses(family), branches=2),
    "tree, independent": lambda family: Siblings(TABLE, Proposal.INDEPENDENT),
    "tree, without replacement": lambda family: Siblings(TABLE, Proposal.WITHOUT_REPLACEMENT),
    "oracle": lambda family: Oracle(
        {prompt: [*prompt, *text] for prompt, text in zip(PROMPTS, plain(family), strict=True)}, lambda at: at % 4 == 3
    ),
}
RESUMABLE = [name for name in METHODS if name != "oracle"]  # which knows whole prompts


def engine(family: str, method: str, controller: str = "fixed", max_rows: int = 16) -> Engine:
    drafter = METHODS[method](family)
    return make_engine(
        model(family), drafter, acceptance="match", controller=controller, max_rows=max_rows, prefill_chunk=8
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_writes_the_same_text(method: str, family: str) -> None:
    """All rows at once, rows that join late and wait for room, and (for one family) every row alone."""
    assert decode(engine(family, method), REQUESTS) == plain(family)
    assert decode(engine(family, method, max_rows=3), REQUESTS, every=2) == plain(family)
    if family == FAMILIES[0]:
        assert [decode(engine(family, method), [request])[0] for request in REQUESTS] == plain(family)


@pytest.mark.parametrize("controller", ["auto", "heuristic"])
@pytest.mark.parametrize("method", ["chain", "chain that is drawn", "tree"])
def test_every_controller_writes_the_same_text(method: str, controller: str) -> None:
    assert decode(engine("llama", method, controller), REQUESTS) == plain("llama")


def test_drafts_are_really_accepted_and_rejected() -> None:
    for method in ("chain", "tree", "oracle"):
        one = engine("llama", method)
        decode(one, REQUESTS)
        assert one.report.accepted_at[2] > 0
        assert one.report.accepted_at[0] < one.report.drafted_at[0]
    assert len({tuple(text) for text in plain("llama")}) == len(REQUESTS)


@pytest.mark.parametrize("method", RESUMABLE)
def test_a_row_goes_on_from_its_prompt_and_what_it_has_written(method: str) -> None:
    resumed = [resume(i, cut, plain("llama")) for i in range(len(REQUESTS)) for cut in (1, 4, 9)]
    expected = [plain("llama")[i][cut:] for i in range(len(REQUESTS)) for cut in (1, 4, 9)]
    assert decode(engine("llama", method, max_rows=4), resumed) == expected


def resume(index: int, cut: int, texts: Texts) -> Request:
    """What is left of a request after `cut` tokens of its text."""
    request = REQUESTS[index]
    return replace(request, prompt=(*request.prompt, *texts[index][:cut]), max_new_tokens=NEW - cut)


ELSEWHERE = """
import json, sys
from fastllm_core import load
from fastllm_core.request import Request, SamplingParams
from fastllm_core.testing import Branching, Scripted, tiny_model
from fastllm_core.testing.engines import decode, make_engine

guess = lambda row, count: [row.length % 64] * count
answers = {}
for family, orders in json.load(sys.stdin).items():
    model = tiny_model(family, sharpness=2.0)
    requests = [Request(tuple(each.pop("prompt")), sampling=SamplingParams(**each.pop("sampling")), **each)
                for each in orders]
    for name, drafter in {"plain": None, "chain": Scripted(guess), "tree": Branching(guess)}.items():
        engine = make_engine(model, drafter, acceptance="match", max_rows=3)
        answers[f"{family}, {name}"] = decode(engine, requests)
    first = requests[0]
    with load(model, "plain", config={}) as pipeline:
        answers[f"{family}, pipeline"] = [list(pipeline.generate(
            list(first.prompt), max_new_tokens=first.max_new_tokens, seed=first.seed,
            temperature=first.sampling.temperature).token_ids)]
print(json.dumps(answers))
"""


def test_a_row_goes_on_in_another_process() -> None:
    cuts = [(0, 3), (1, 1), (2, 9), (3, 5), (4, 6)]
    orders = {
        family: [
            {
                "prompt": left.prompt,
                "max_new_tokens": left.max_new_tokens,
                "seed": left.seed,
                "sampling": asdict(left.sampling),
            }
            for left in (resume(i, cut, plain(family)) for i, cut in cuts)
        ]
        for family in FAMILIES
    }
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE], input=json.dumps(orders), capture_output=True, text=True, check=True
    )
    answers = json.loads(done.stdout)
    for family in FAMILIES:
        expected = [plain(family)[i][cut:] for i, cut in cuts]
        for name in ("plain", "chain", "tree"):
            assert answers[f"{family}, {name}"] == expected
        assert answers[f"{family}, pipeline"] == expected[:1]
