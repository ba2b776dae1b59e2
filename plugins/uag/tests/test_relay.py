"""Another method's drafter over the draft model's tokens: what it is told, and that the text is the target's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import fastllm_core
from fastllm_core import (
    Batch,
    ConfigError,
    Draft,
    Drafter,
    PluginNotFound,
    Proposal,
    Request,
    Row,
    Sampling,
    SamplingParams,
)
from fastllm_core.controllers import Fixed
from fastllm_core.models import load_model
from fastllm_core.testing import tiny_model, tiny_tokenizer
from fastllm_core.testing.engines import decode, make_engine
from fastllm_plugin_uag.reading import Reading
from fastllm_plugin_uag.relative import relative
from fastllm_plugin_uag.relay import Relay, _paths
from fastllm_plugin_uag.vocabulary import Vocabulary

PROMPTS = [[1, 2, 3], [7], [5] * 20, [9, 8], [4, 11, 6, 60, 33, 2, 1]]
Continues = Callable[[list[int], int], list[int]]


class Clerk(Drafter):
    """Drafts what it is told to, and checks that it is treated as by an engine."""

    proposal = Proposal.ONE_HOT

    def __init__(self, continues: Continues) -> None:
        self.continues = continues
        self.read: dict[int, int] = {}
        self.seen: set[int] = set()
        self.released: list[int] = []
        self.texts: list[list[int]] = []

    def prefill(self, row: Row, start: int, stop: int, hidden: Mapping[int, torch.Tensor]) -> None:
        assert (start, stop) == (0, row.length - 1)
        assert not hidden
        assert stop > start
        assert row.id not in self.seen
        self.seen.add(row.id)
        self.read[row.id] = row.length

    def propose(self, batch: Batch) -> Draft:
        assert batch.sampling.greedy
        assert [row.slot for row in batch.rows] == list(range(len(batch)))
        lines = []
        for row, most in zip(batch.rows, batch.draft_lengths, strict=True):
            if most:
                assert row.id in self.read or row.prompt_length == 1
                self.seen.add(row.id)
                assert row.id not in self.released
                assert row.length - row.prompt_length <= row.request.max_new_tokens
                self.texts.append(list(row.tokens))
            lines.append(self.continues(row.tokens, most) if most else [])
        width = max(map(len, lines))
        padded = [[*line, *[0] * (width - len(line))] for line in lines]
        lengths = torch.tensor([len(line) for line in lines])
        return Draft(torch.tensor(padded, dtype=torch.long).reshape(len(lines), width), lengths)

    def release(self, row: Row) -> None:
        self.released.append(row.id)


def vocabularies(folder: Path, merged: int) -> tuple[Vocabulary, Vocabulary]:
    """The target's, and that of a drafter that numbers otherwise and has some pairs of characters."""
    place = relative(tiny_model(), tiny_tokenizer(), folder / "relative", merged)
    target = Vocabulary(load_model(tiny_model(), tiny_tokenizer()), "model")
    return target, Vocabulary(load_model(place), "options.uag.draft_model")


def texts_of(relay: Drafter | None, **settings: Any) -> tuple[list[list[int]], Any]:
    engine = make_engine(tiny_model(), relay, tokenizer=tiny_tokenizer(), draft_length=4, max_rows=3)
    return decode(engine, [Request(tuple(prompt), 30, **settings) for prompt in PROMPTS], every=2), engine.report


def read(target: Vocabulary, drafter: Vocabulary, tokens: Sequence[int]) -> list[int]:
    reading = Reading(target, drafter, target.counterparts(drafter, "bos_token_id"))
    reading.read(list(tokens))
    return list(reading.ids)


@pytest.mark.parametrize("merged", [0, 6])
def test_what_is_drafted_is_right_if_the_inner_drafter_is(tmp_path: Path, merged: int) -> None:
    """It knows how the texts go on, in its own tokens, of which some are two of the target's."""
    target, drafter = vocabularies(tmp_path, merged)
    expected, _ = texts_of(None)
    whole = [[*prompt, *text] for prompt, text in zip(PROMPTS, expected, strict=True)]
    known = [read(target, drafter, ids) for ids in whole]

    def continues(tokens: list[int], most: int) -> list[int]:
        return next((text[len(tokens) :][:most] for text in known if text[: len(tokens)] == tokens), [])

    clerk = Clerk(continues)
    texts, report = texts_of(Relay(clerk, target, drafter, []))
    assert texts == expected
    assert report.accepted == report.drafted > 50
    assert sorted(clerk.released) == sorted(clerk.seen)
    every = [read(target, drafter, ids[:stop]) for ids in whole for stop in range(1, len(ids) + 1)]
    assert clerk.texts
    assert all(text in every for text in clerk.texts)


def test_a_row_begins_anew_where_a_token_is_divided_otherwise_than_before(tmp_path: Path) -> None:
    target, drafter = vocabularies(tmp_path, 6)
    names, own = tiny_tokenizer().get_vocab(), {piece.decode(): index for index, piece in drafter.pieces.items()}
    pair = next(name for name in own if len(name) == 2 and {*name} <= {*names})
    start = [names[pair[1]], names[pair[0]]]
    row = Row(7, Request(tuple(start), 20), list(start), seed=0, slot=0)
    clerk = Clerk(lambda tokens, most: [])
    relay = Relay(clerk, target, drafter, [])
    for came in ([], [names[pair[1]]], [names[pair[1]]]):
        row.tokens += came
        relay.propose(Batch((row,), (3,), torch.device("cpu"), Sampling.of([SamplingParams()], torch.device("cpu"))))
    second, first = own[pair[1]], own[pair[0]]
    assert clerk.texts == [[second, first], [second, own[pair]], [second, own[pair], second]]
    assert clerk.read == {1: 2, 2: 2}  # the third text goes on with the second
    assert clerk.released == [1]
    relay.release(row)
    assert clerk.released == [1, 2]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nonsense_changes_no_text(tmp_path: Path, temperature: float) -> None:
    target, drafter = vocabularies(tmp_path, 6)
    warm: dict[str, Any] = {"sampling": SamplingParams(temperature=temperature), "seed": 5}
    relay = Relay(Clerk(lambda tokens, most: [len(tokens) % drafter.size] * most), target, drafter, [])
    texts, report = texts_of(relay, **warm)
    assert texts == texts_of(None, **warm)[0]
    assert report.drafted > report.accepted


def test_of_a_tree_the_path_of_first_children_is_taken() -> None:
    tokens, parents = torch.tensor([[1, 2, 3, 4, 5]]), torch.tensor([[-1, -1, 0, 0, 2]])
    assert _paths(Draft(tokens, torch.tensor([5]), parents)) == [[1, 3, 5]]
    assert _paths(Draft(tokens, torch.tensor([3]), parents)) == [[1, 3]]
    assert _paths(Draft(tokens, torch.tensor([2]))) == [[1, 2]]


def load(folder: str, **options: Any) -> fastllm_core.Pipeline:
    config = {"draft.controller": "fixed", "forward": "eager"}
    return fastllm_core.load(
        tiny_model(), "uag", tokenizer=tiny_tokenizer(), config=config, draft_model=folder, **options
    )


def test_what_cannot_draft_over_other_tokens_is_refused_by_name(tmp_path: Path) -> None:
    folder = relative(tiny_model(), tiny_tokenizer(), tmp_path / "relative")
    with pytest.raises(PluginNotFound, match="nothing-like-it"):
        load(folder, drafter="nothing-like-it")
    with pytest.raises(ConfigError, match=r"^options\.uag\.mode: with options\.uag\.drafter only text"):
        load(folder, drafter="prompt-lookup", mode="token")
    with pytest.raises(ConfigError, match=r"^options\.uag\.drafter_options: are for options\.uag\.drafter"):
        load(folder, drafter_options={"max_ngram": 3})


def test_prompt_look_up_drafts_over_other_tokens(tmp_path: Path) -> None:
    pytest.importorskip("fastllm_plugin_prompt_lookup")
    folder = relative(tiny_model(), tiny_tokenizer(), tmp_path / "relative")
    with fastllm_core.load(tiny_model(), "plain", tokenizer=tiny_tokenizer()) as pipeline:
        expected = [result.token_ids for result in pipeline.generate(PROMPTS, max_new_tokens=50)]
    with load(folder, drafter="prompt-lookup", drafter_options={"max_ngram": 3}) as pipeline:
        results = pipeline.generate(PROMPTS, max_new_tokens=50)
    assert [result.token_ids for result in results] == expected
    assert sum(result.report.accepted for result in results) > 0
    with pytest.raises(ConfigError, match=r"^options\.prompt-lookup\.max_gram: "):
        load(folder, drafter="prompt-lookup", drafter_options={"max_gram": 3})


class Resting(Fixed):
    """Drafts in every fourth round: what a rejected draft leaves in a cache lies under the tokens of the next three."""

    turn = 0

    def lengths(self, rows: Sequence[int], expected: Sequence[float] | None = None) -> list[int]:
        self.turn += 1
        return super().lengths(rows) if self.turn % 4 == 1 else [0] * len(rows)


def test_a_draft_model_drafts_over_other_tokens_and_what_its_cache_holds_agrees_with_the_text(tmp_path: Path) -> None:
    """Sampled text leaves most drafts; rows move and rest; and each draft is what a fresh reading says."""
    pytest.importorskip("fastllm_plugin_speculative")
    target, tokenizer = tiny_model(vocab_size=8), tiny_tokenizer(8)
    folder = relative(tiny_model(seed=1, vocab_size=8), tokenizer, tmp_path / "relative")
    config = {"draft.controller": "fixed", "draft.length": 3, "forward": "eager", "engine.max_rows": 3}
    options: dict[str, Any] = {"drafter": "speculative", "drafter_options": {"draft_model": folder}}
    prompts = [[1, 2, 3], [7], [5] * 20, [2, 4], [4, 1, 6, 6, 3, 2, 1]]
    with fastllm_core.load(
        target, "uag", tokenizer=tokenizer, config=config, draft_model=folder, **options
    ) as pipeline:
        relay: Any = pipeline.drafter
        says, model, checked = relay.inner.propose, relay.inner.model, list[bool]()

        def propose(batch: Batch) -> Draft:
            draft = says(batch)
            for row, line, most in zip(batch.rows, draft.tokens.tolist(), batch.draft_lengths, strict=True):
                ids = torch.tensor([[*row.tokens, *line[:most]]])
                said = model(ids).logits[0, row.length - 1 : -1].argmax(-1).tolist()
                checked.extend([said == line[:most]] if most else [])
            return draft

        relay.inner.propose = propose
        pipeline.engine.parts = replace(pipeline.engine.parts, controller=Resting(3))
        settings: dict[str, Any] = {"max_new_tokens": 60, "temperature": 1.0, "seed": 3}
        results = pipeline.generate(prompts, **settings)
        assert not pipeline.engine.parts.drafter_caches
        assert [any(cache.lengths) for cache in pipeline.engine.parts.foreign_caches] == [False]
    assert len(checked) > 50
    assert all(checked)
    with fastllm_core.load(target, "plain", tokenizer=tokenizer) as pipeline:
        expected = [result.token_ids for result in pipeline.generate(prompts, **settings)]
    assert [result.token_ids for result in results] == expected
