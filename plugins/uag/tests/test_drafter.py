"""The drafter inside a pipeline: what it drafts, what its cache holds, and that the text is the target's."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import PreTrainedModel

import fastllm_core
from fastllm_core import Advance, Network, Pipeline, SlotCache, chain
from fastllm_core.testing import tiny_model, tiny_tokenizer
from fastllm_core.testing.checks.cache import AnyVerdict
from fastllm_plugin_uag import drafter as drafter_module
from fastllm_plugin_uag.drafter import TranslatingDrafter
from fastllm_plugin_uag.relative import relative

LENGTH = 4
PROMPTS = [[1, 2, 3], [7], [5] * 20, [9, 8], [4, 11, 6, 60, 33, 2, 1]]
Loads = Callable[..., Pipeline]
modes = pytest.mark.parametrize("mode", ["string", "token", "auto"])


def small(seed: int = 0, **settings: Any) -> PreTrainedModel:
    return tiny_model(seed=seed, num_hidden_layers=2, **settings)


@pytest.fixture
def uag(tmp_path: Path) -> Iterator[Loads]:
    """Composes a pipeline with a draft model in a folder, as a user's would be."""
    made: list[Pipeline] = []

    def build(
        target: PreTrainedModel,
        draft: PreTrainedModel | None = None,
        merged: int = 6,
        config: Mapping[str, Any] | None = None,
        size: int = 64,
        **options: Any,
    ) -> Pipeline:
        settings = {**(config or {}), **{key: options.pop(key) for key in [*options] if "." in key}}
        settings = {"draft.controller": "fixed", "draft.length": LENGTH, "forward": "eager", **settings}
        folder = relative(draft or target, tiny_tokenizer(size), tmp_path / str(len(made)), merged)
        made.append(
            fastllm_core.load(
                target, "uag", tokenizer=tiny_tokenizer(size), config=settings, draft_model=folder, **options
            )
        )
        return made[-1]

    yield build
    for pipeline in made:
        pipeline.close()


def plain(model: PreTrainedModel, **settings: Any) -> list[tuple[int, ...]]:
    with fastllm_core.load(model, "plain", tokenizer=tiny_tokenizer(), config={"forward": "eager"}) as pipeline:
        return [result.token_ids for result in pipeline.generate(PROMPTS, **settings)]


def drafter_of(pipeline: Pipeline) -> TranslatingDrafter:
    return cast("TranslatingDrafter", pipeline.drafter)


@modes
@pytest.mark.parametrize("rows", [1, 5])
def test_a_drafter_that_thinks_as_the_target_is_always_right(uag: Loads, mode: str, rows: int) -> None:
    """Its ids are others, so every one of them is translated, and nothing that its cache holds is wrong."""
    pipeline = uag(small(), merged=0, mode=mode, **{"engine.max_rows": rows})
    results = pipeline.generate(PROMPTS, max_new_tokens=30)
    assert [result.token_ids for result in results] == plain(small(), max_new_tokens=30)
    for result in results:
        assert result.report.tokens_per_round == LENGTH + 1
        assert result.report.accepted == result.report.drafted == 24


@pytest.mark.parametrize("rule", ["rejection", "block"])
def test_sampled_drafts_of_one_that_thinks_as_the_target_are_all_accepted(uag: Loads, rule: str) -> None:
    pipeline = uag(small(), merged=0, **{"acceptance.rule": rule})
    for result in pipeline.generate(PROMPTS, max_new_tokens=30, temperature=1.0, top_k=20, seed=3):
        assert result.report.tokens_per_round == LENGTH + 1
        assert result.report.accepted == result.report.drafted


@modes
def test_greedy_text_is_the_targets_whatever_is_drafted(uag: Loads, mode: str) -> None:
    results = uag(small(), small(1), mode=mode).generate(PROMPTS, max_new_tokens=20)
    assert [result.token_ids for result in results] == plain(small(), max_new_tokens=20)
    assert sum(result.report.drafted for result in results) > sum(result.report.accepted for result in results)


def test_exact_mode_writes_the_same_in_any_format(uag: Loads) -> None:
    """Bit for bit: in bfloat16, beside others, whatever is drafted."""
    target = small().to(torch.bfloat16)
    config = {"exact": True, "engine.max_rows": 3, "draft.length": LENGTH}
    with fastllm_core.load(target, "plain", tokenizer=tiny_tokenizer(), config=config) as pipeline:
        expected = [result.token_ids for result in pipeline.generate(PROMPTS, max_new_tokens=20)]
    results = uag(target, merged=0, config=config).generate(PROMPTS, max_new_tokens=20)
    assert [result.token_ids for result in results] == expected
    assert sum(result.report.accepted for result in results) > 30


def test_string_mode_under_sampling_is_plain_decoding_for_the_same_seed(uag: Loads) -> None:
    """Match makes the text a function of the seed alone."""
    settings: dict[str, Any] = {"max_new_tokens": 20, "temperature": 1.0, "seed": 4}
    results = uag(small(), merged=0, mode="string").generate(PROMPTS, **settings)
    assert [result.token_ids for result in results] == plain(small(), **settings)
    assert sum(result.report.accepted for result in results) > 20


def test_a_greedy_round_drafts_text_and_a_sampling_one_shared_tokens(
    uag: Loads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under auto; so a greedy row beside one that samples drafts tokens too, and its text stays what it is."""
    pipeline = uag(small())
    rounds: list[str] = []
    for name in ("_draft_text", "_draft_tokens"):
        inner = getattr(TranslatingDrafter, name)

        def noted(*given: Any, inner: Any = inner, name: str = name) -> Any:
            rounds.append(name)
            return inner(*given)

        monkeypatch.setattr(TranslatingDrafter, name, noted)
    pipeline.generate(PROMPTS, max_new_tokens=9)
    assert {*rounds} == {"_draft_text"}
    rounds.clear()
    engine, texts = pipeline.engine, dict[int, list[int]]()
    for index, prompt in enumerate(PROMPTS):
        texts[engine.add(pipeline.request(prompt, max_new_tokens=12, temperature=float(index % 2), seed=1))] = []
    while not engine.idle:
        for event in engine.step():
            texts[event.row] += event.tokens
    assert {*rounds} == {"_draft_tokens"}
    assert [tuple(text) for text in texts.values()][::2] == plain(small(), max_new_tokens=12)[::2]


def test_the_drafters_own_number_format(uag: Loads) -> None:
    pipeline = uag(small(), merged=0, **{"options.uag.dtype": "bfloat16"})
    model: Any = drafter_of(pipeline).model
    assert model.dtype is torch.bfloat16
    results = pipeline.generate(PROMPTS, max_new_tokens=20)
    assert [result.token_ids for result in results] == plain(small(), max_new_tokens=20)
    assert sum(result.report.accepted for result in results) > 30


# -- the cache ---------------------------------------------------------------------------------------------------------


def test_what_is_taken_for_stored_is_what_a_fresh_reading_would_store(uag: Loads) -> None:
    """After any verdict, with tokens that merge with later ones, and rows that come and go."""
    assert stored_wrongly(few_letters(uag)) == (0, True)


def test_a_cache_that_is_not_cut_is_noticed(uag: Loads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafter_module, "agreement", lambda old, new: min(len(old), len(new)))
    assert stored_wrongly(few_letters(uag))[0] > 0


@pytest.mark.parametrize("parity", [0, 1])
def test_a_cut_that_is_off_by_one_is_noticed(uag: Loads, monkeypatch: pytest.MonkeyPatch, parity: int) -> None:
    def late(old: list[int], new: list[int]) -> int:
        shorter = min(len(old), len(new))
        return next((i for i in range(shorter) if old[i] != new[i] and i % 2 == parity), shorter)

    monkeypatch.setattr(drafter_module, "agreement", late)
    assert stored_wrongly(few_letters(uag))[0] > 0


def test_a_row_that_rests_and_is_written_over_is_noticed(uag: Loads) -> None:
    pipeline = few_letters(uag)
    model = drafter_of(pipeline)._model
    right, starting = model.start, list[int]()
    stored = model.stored

    def start(texts: Mapping[int, list[int]], rows: int, count: int) -> Advance:
        """As if each row that does not draft had nothing stored."""
        starting.append(rows)
        model.stored = lambda slot: stored(slot) if slot in texts else 0  # type: ignore[method-assign]
        try:
            return right(texts, rows, count)
        finally:
            model.stored = stored  # type: ignore[method-assign]

    model.start = start  # type: ignore[method-assign]
    assert stored_wrongly(pipeline)[0] > 0
    assert max(starting) == 3


def few_letters(uag: Loads) -> Pipeline:
    """Seven of them, of which every two neighbours are one token of the drafter's, so that tokens change afterwards."""
    return uag(small(vocab_size=8), small(1, vocab_size=8), size=8, **{"engine.max_rows": 3})


def stored_wrongly(pipeline: Pipeline) -> tuple[int, bool]:
    """How often the cache was wrong over some rounds of random verdicts, and whether it was ever used."""
    model = drafter_of(pipeline)._model
    right, wrong, used = model.start, list[int](), list[int]()

    def start(texts: Mapping[int, list[int]], rows: int, count: int) -> Advance:
        for slot, tokens in texts.items():
            used.append(model.stored(slot))
            assert model.stored(slot) < len(tokens)
            wrong.append(_differs(model.network, model.cache, slot, tokens[: model.stored(slot)]))
        return right(texts, rows, count)

    model.start = start  # type: ignore[method-assign]
    engine, rng = pipeline.engine, random.Random(1)
    engine.parts = replace(engine.parts, acceptor=AnyVerdict())
    controller: Any = engine.parts.controller
    controller.lengths = lambda rows: [rng.choice([0, LENGTH, LENGTH]) for _ in rows]  # some rest while others draft
    assert not engine.parts.drafter_caches
    assert [*engine.parts.foreign_caches] == [model.cache]
    for prompt in [[1, 2, 3], [7], [5] * 20, [2, 4], [4, 1, 6, 6, 3, 2, 1]] * 2:
        engine.add(pipeline.request(prompt, max_new_tokens=25))
    while not engine.idle:
        engine.step()
    assert not any(model.cache.lengths)
    return sum(wrong), max(used) > 20


@torch.inference_mode()
def _differs(network: Network, cache: Any, slot: int, tokens: list[int]) -> bool:
    if not tokens:
        return False
    fresh = SlotCache(network)
    fresh.reserve(1, len(tokens))
    network.forward(chain(torch.tensor([tokens]), torch.zeros(1, dtype=torch.long), fresh.capacity),
                    fresh.layers(slice(0, 1), fresh.capacity))  # fmt: skip
    ours, theirs = (
        which.layers(slice(row, row + 1), which.extent(len(tokens))) for which, row in ((cache, slot), (fresh, 0))
    )
    return any(
        bool(((one - other)[:, :, : len(tokens)].abs() > 1e-3).any())
        for mine, fresh_ones in zip(ours, theirs, strict=True)
        for one, other in zip(mine, fresh_ones, strict=True)
    )


def test_a_drafter_with_a_shorter_context_reads_the_end_of_the_text(uag: Loads) -> None:
    target, draft = small(max_position_embeddings=256), small(1, max_position_embeddings=32)
    pipeline = uag(target, draft, merged=0)
    model, longest = drafter_of(pipeline)._model, list[int]()
    right = model.start

    def start(texts: Mapping[int, list[int]], rows: int, count: int) -> Advance:
        longest.extend(len(tokens) + count for tokens in texts.values())
        return right(texts, rows, count)

    model.start = start  # type: ignore[method-assign]
    results = pipeline.generate(PROMPTS, max_new_tokens=90)
    assert [result.token_ids for result in results] == plain(target, max_new_tokens=90)
    assert 30 <= max(longest) <= 32
    assert len(longest) > 60  # and it goes on drafting


def test_the_end_that_is_read_moves_by_half_a_context(uag: Loads) -> None:
    model = drafter_of(uag(small(max_position_embeddings=32)))._model
    starts = [model.window(list(range(size)), 4)[0] for size in range(1, 64)]
    assert starts == [0] * 28 + [16] * 16 + [32] * 16 + [48] * 3


def test_neither_model_is_changed(uag: Loads) -> None:
    target = small()
    pipeline = uag(target, small(1))
    draft: Any = drafter_of(pipeline).model
    models: tuple[Any, ...] = (target, draft)
    before = [({k: v.clone() for k, v in m.state_dict().items()}, m.config.to_dict(), {*vars(m)}) for m in models]
    pipeline.generate(PROMPTS, max_new_tokens=12)
    pipeline.generate(PROMPTS, max_new_tokens=12, temperature=1.0, seed=1)
    for model, (weights, config, attributes) in zip(models, before, strict=True):
        assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
        assert (model.config.to_dict(), {*vars(model)}) == (config, attributes)


# -- real tokenizers ---------------------------------------------------------------------------------------------------

STORIES = [
    "Once upon a time",
    'The cat said: "Hello!"\n\n',
    "A 🙂 happy 你好 dog\twas",
    "</s><s> Lily  and Tom",
]


@pytest.mark.parametrize("mode", ["string", "token"])
def test_the_demo_tells_its_stories_with_a_drafter_of_512_tokens(mode: str) -> None:
    expect_plain("demo", mode, new=24)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["string", "token"])
def test_a_larger_model_tells_its_stories_with_a_drafter_of_512_tokens(mode: str) -> None:
    expect_plain("demo-100m", mode, new=60)


def expect_plain(model: str, mode: str, new: int) -> None:
    pytest.importorskip("fastllm_plugin_demo")
    config = {"draft.controller": "fixed", "dtype": "float32", "device": "cpu", "forward": "eager"}
    with fastllm_core.load(model, "plain", config=config) as pipeline:
        expected = pipeline.generate(STORIES, max_new_tokens=new, temperature=0.0)
        target = pipeline.target
    options = {"draft_model": "demo-drafter-512", "mode": mode}
    with fastllm_core.load(target.model, "uag", tokenizer=target.tokenizer, config=config, **options) as pipeline:
        results = pipeline.generate(STORIES, max_new_tokens=new, temperature=0.0)
    assert [result.token_ids for result in results] == [result.token_ids for result in expected]
    assert sum(result.report.accepted for result in results) > new
