"""On the demo models, greedy in float32: plain is `model.generate`, and every way to speculate is plain.

`pytest -m slow tests/test_equality.py -s` compares 200 prompts in every arrangement and prints the counts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

import fastllm_core
from fastllm_core import Network, Pipeline, Row, chain, read
from fastllm_core.cache import SlotCache
from fastllm_core.models import LoadedModel
from fastllm_core.testing import Branching
from fastllm_core.testing.engines import decode, make_engine

NEW = 40
FORWARD = os.environ.get("FASTLLM_FORWARD", "eager")
"""The back end of this run."""
Texts = list[list[int]]
Openings = Callable[[int], list[str]]


@pytest.fixture(scope="module")
def plain() -> Iterator[Pipeline]:
    with fastllm_core.load(
        "demo", "plain", config={"engine.max_rows": 5, "forward": FORWARD}, dtype="float32", device="cpu"
    ) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def speculative() -> Iterator[Pipeline]:
    with fastllm_core.load(
        "demo",
        "speculative",
        config={"engine.max_rows": 5, "draft.controller": "fixed", "draft.length": 5, "forward": FORWARD},
        dtype="float32",
        device="cpu",
    ) as pipeline:
        assert pipeline.drafter is not None
        yield pipeline


def texts(pipeline: Pipeline, prompts: Sequence[Sequence[int]], *, new: int = NEW, every: int = 0) -> Texts:
    """Tokens of each prompt, all together or, with `every`, one joining every few rounds."""
    requests = [pipeline.request(list(ids), max_new_tokens=new, temperature=0.0) for ids in prompts]
    return decode(pipeline.engine, requests, every=every)


def generated(target: LoadedModel, prompts: Sequence[Sequence[int]], batch: int, new: int = NEW) -> Texts:
    """What an unmodified `model.generate` says, in left-padded batches."""
    answers: Texts = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        width = max(len(ids) for ids in part)
        padded = torch.tensor([[0] * (width - len(ids)) + list(ids) for ids in part])
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in part])
        rows = target.model.generate(padded, attention_mask=mask, do_sample=False, max_new_tokens=new, pad_token_id=0)
        answers += [cut(row[width:].tolist(), target.eos_token_ids) for row in rows]
    return answers


def cut(tokens: list[int], eos: frozenset[int]) -> list[int]:
    """Without the padding behind the end."""
    end = next((i + 1 for i, token in enumerate(tokens) if token in eos), len(tokens))
    return tokens[:end]


def differences(ours: Texts, theirs: Texts) -> int:
    return sum(a != b for a, b in zip(ours, theirs, strict=True))


class GuessModel:
    """What a small model would say next, for a tree drafter: greedy, with a cache of its own for every row."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.network = Network(loaded)
        self.caches: dict[int, SlotCache] = {}

    @torch.inference_mode()
    def __call__(self, row: Row, count: int) -> list[int]:
        cache = self.caches.setdefault(row.id, SlotCache(self.network))
        cache.reserve(1, row.length + count + 8)
        have = min(cache.lengths[0], row.length - 1)
        if have < row.length - 1:
            read(self.network, cache, 0, row.tokens[have : row.length - 1], have)
        tokens = [row.tokens[-1]]
        for step in range(count):
            at = row.length - 1 + step
            inputs = chain(torch.tensor([tokens[-1:]]), torch.tensor([at]), cache.extent(at + 1))
            logits = self.network.forward(inputs, cache.layers(slice(0, 1), cache.extent(at + 1))).logits
            assert logits is not None
            tokens.append(int(logits[0, -1].argmax()))
        cache.lengths[0] = row.length - 1  # what was drafted is not known to be right
        return tokens[1:]


class GuessTree(Branching):
    """The guess model's chain with a wrong sibling at every node."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.model = GuessModel(loaded)
        super().__init__(self.model, branches=1, vocab_size=loaded.vocab_size)

    def release(self, row: Row) -> None:
        self.model.caches.pop(row.id, None)


def tree_texts(
    plain: Pipeline, speculative: Pipeline, prompts: Sequence[Sequence[int]], rows: int, every: int = 0
) -> tuple[Texts, float]:
    """Texts with a tree from the draft model, and how many of its tokens a row accepts in a round."""
    draft: Any = speculative.drafter
    engine = make_engine(plain.target.model, GuessTree(draft.loaded), draft_length=4, max_rows=rows)
    requests = [plain.request(list(ids), max_new_tokens=NEW, temperature=0.0) for ids in prompts]
    answers = decode(engine, requests, every=every)
    return answers, 2 * engine.report.accepted / engine.report.drafted_at[0]


def test_speculative_text_is_plain_text_is_the_models_text(
    plain: Pipeline, speculative: Pipeline, story_openings: Openings
) -> None:
    prompts = [plain.request(text, max_new_tokens=1).prompt for text in story_openings(10)]
    expected = generated(plain.target, prompts, 1, new=14)
    assert texts(plain, prompts, new=14) == expected
    assert texts(speculative, prompts, new=14, every=2) == expected
    assert [texts(speculative, [prompt], new=14)[0] for prompt in prompts] == expected
    assert speculative.engine.report.accepted > speculative.engine.report.drafted / 3


def test_a_tree_from_a_draft_model_is_plain_text(
    plain: Pipeline, speculative: Pipeline, story_openings: Openings
) -> None:
    prompts = [plain.request(text, max_new_tokens=1).prompt for text in story_openings(3)]
    answers, accepted = tree_texts(plain, speculative, prompts, rows=3)
    assert answers == generated(plain.target, prompts, 1)
    assert accepted > 1


Arrangement = Callable[[Pipeline, Pipeline, list[Any]], Texts]


def one_by_one(work: Callable[[list[Any]], Texts], prompts: list[Any]) -> Texts:
    return [work([prompt])[0] for prompt in prompts]


ARRANGEMENTS: dict[str, Arrangement] = {
    "model.generate in left-padded batches of 5": lambda plain, _, prompts: generated(plain.target, prompts, 5),
    "plain, B = 1": lambda plain, _, prompts: one_by_one(lambda part: texts(plain, part), prompts),
    "plain, B = 5 ragged": lambda plain, _, prompts: texts(plain, prompts),
    "chain, B = 1": lambda _, speculative, prompts: one_by_one(lambda part: texts(speculative, part), prompts),
    "chain, B = 5 ragged": lambda _, speculative, prompts: texts(speculative, prompts),
    "chain, rows joining late": lambda _, speculative, prompts: texts(speculative, prompts, every=3),
    "tree, B = 1": lambda plain, speculative, prompts: tree_texts(plain, speculative, prompts, 1)[0],
    "tree, B = 5 ragged": lambda plain, speculative, prompts: tree_texts(plain, speculative, prompts, 5)[0],
    "tree, rows joining late": lambda plain, speculative, prompts: tree_texts(plain, speculative, prompts, 5, every=3)[
        0
    ],
}


@pytest.fixture(scope="module")
def stories(plain: Pipeline, story_openings: Openings) -> tuple[list[Any], Texts]:
    """200 prompts and what `model.generate` makes of each alone."""
    prompts = [plain.request(text, max_new_tokens=1).prompt for text in story_openings(200)]
    assert len(set(prompts)) == 200
    return prompts, generated(plain.target, prompts, 1)


@pytest.mark.slow
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_no_differences_over_200_prompts(
    plain: Pipeline, speculative: Pipeline, stories: tuple[list[Any], Texts], arrangement: str
) -> None:
    prompts, expected = stories
    answers = ARRANGEMENTS[arrangement](plain, speculative, prompts)
    count = differences(answers, expected)
    tokens = sum(len(answer) for answer in answers)
    print(f"{arrangement}: {count} of {len(prompts)} texts ({tokens} tokens) differ from model.generate alone")
    assert count == 0
