"""The draft model inside a pipeline: what it drafts, what it keeps in its cache, and the law of what comes out."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import fastllm_core
from fastllm_core import Batch, Draft, Pipeline, Purpose, Sampling, SlotCache, chain, compiled, draw, warp
from fastllm_core.rehearsal import rehearse
from fastllm_core.testing import tiny_model, tiny_tokenizer
from fastllm_core.testing.unrolled import Unrolled
from fastllm_plugin_speculative import drafter as drafter_module
from fastllm_plugin_speculative.drafter import DraftModel

LENGTH = 4
PROMPTS = [[1, 2, 3], [7], [5] * 20, [9, 8], [4, 11, 6, 60, 33, 2, 1]]
Loads = Callable[..., Pipeline]
Watch = Callable[[Batch, Draft], None]
small = partial(tiny_model, num_hidden_layers=2)


@pytest.fixture
def speculative(tmp_path: Path) -> Iterator[Loads]:
    """Composes a pipeline of two models in memory; the drafter goes through a folder, as a user's would."""
    made: list[Pipeline] = []

    def build(target: PreTrainedModel, draft: PreTrainedModel, size: int = 64, **settings: Any) -> Pipeline:
        folder = tmp_path / str(len(made))
        draft.save_pretrained(folder)
        tiny_tokenizer(size).save_pretrained(folder)
        options = {name: settings.pop(name) for name in ("dtype", "sample") if name in settings}
        config = {"draft.controller": "fixed", "draft.length": LENGTH, **settings}
        config |= {f"options.speculative.{name}": value for name, value in options.items()}
        tokenizer = tiny_tokenizer(size)
        made.append(
            fastllm_core.load(target, "speculative", tokenizer=tokenizer, config=config, draft_model=str(folder))
        )
        return made[-1]

    yield build
    for pipeline in made:
        pipeline.close()


def plain(model: PreTrainedModel, prompts: list[list[int]] = PROMPTS, **settings: Any) -> list[tuple[int, ...]]:
    with fastllm_core.load(model, "plain", tokenizer=tiny_tokenizer(), config={}) as pipeline:
        return [result.token_ids for result in pipeline.generate(prompts, **settings)]


def drafter_of(pipeline: Pipeline) -> DraftModel:
    return cast("DraftModel", pipeline.drafter)


def watch(pipeline: Pipeline, look: Watch) -> None:
    """Call `look` after each round that drafted, when caches and rows are committed."""
    pipeline.drafter.observe = lambda batch, draft, scores, verdict: look(batch, draft)  # type: ignore[union-attr, method-assign]


# -- what comes out ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompts", [[[1, 2, 3, 4]], [[1, 2, 3, 4], [7]]], ids=["one", "two"])
def test_the_last_draft_may_fill_what_a_forward_reads(speculative: Loads, prompts: list[list[int]]) -> None:
    """Drafts of one token, all accepted: the row behind two that were read stands behind the extent at times."""
    model = small()
    settings: dict[str, Any] = {"max_new_tokens": 140, "temperature": 0.0, "ignore_eos": True}
    pipeline = speculative(model, model, **{"draft.length": 1})
    assert [result.token_ids for result in pipeline.generate(prompts, **settings)] == plain(model, prompts, **settings)


@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS[1:2], PROMPTS], ids=["one", "one token", "five ragged"])
def test_a_drafter_that_is_the_target_is_always_right(speculative: Loads, prompts: list[list[int]]) -> None:
    pipeline = speculative(small(), small())
    expected = plain(small(), prompts, max_new_tokens=30)
    for result, tokens in zip(pipeline.generate(prompts, max_new_tokens=30), expected, strict=True):
        assert result.token_ids == tokens
        assert result.report.tokens_per_round == LENGTH + 1
        assert result.report.accepted == result.report.drafted == 24


@pytest.mark.parametrize("rule", ["rejection", "block"])
def test_sampled_drafts_of_the_target_itself_are_all_accepted(speculative: Loads, rule: str) -> None:
    pipeline = speculative(small(), small(), **{"acceptance.rule": rule})
    for result in pipeline.generate(PROMPTS, max_new_tokens=30, temperature=1.0, top_k=20, seed=3):
        assert result.report.tokens_per_round == LENGTH + 1
        assert result.report.accepted == result.report.drafted


@pytest.mark.parametrize("draft", [small(seed=1), small("gpt2", seed=2)], ids=["llama", "gpt2"])
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS], ids=["one", "five ragged"])
def test_greedy_text_is_the_targets_whatever_is_drafted(
    speculative: Loads, draft: PreTrainedModel, prompts: list[list[int]]
) -> None:
    target = small("mistral", sliding_window=8)
    results = speculative(target, draft).generate(prompts, max_new_tokens=20)
    assert [result.token_ids for result in results] == plain(target, prompts, max_new_tokens=20)
    assert sum(result.report.drafted for result in results) > sum(result.report.accepted for result in results)


def nearly(model: PreTrainedModel, noise: float = 0.01) -> PreTrainedModel:
    """A drafter that is often right: the model with a little noise on its weights."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(5)
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    return model


def test_a_good_drafter_of_a_lower_precision(speculative: Loads) -> None:
    pipeline = speculative(small(), nearly(small()), dtype="bfloat16")
    assert next(drafter_of(pipeline).model.parameters()).dtype is torch.bfloat16
    assert pipeline.target.dtype is torch.float32
    results = pipeline.generate(PROMPTS, max_new_tokens=20)
    assert [result.token_ids for result in results] == plain(small(), max_new_tokens=20)
    assert drafter_of(pipeline).cache.layers(slice(0, 1), 1)[0][0].dtype is torch.bfloat16
    assert 0 < sum(result.report.accepted for result in results) < sum(result.report.drafted for result in results)


@pytest.mark.parametrize(("target", "draft"), [(64, 80), (80, 64), (80, 72)])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_padded_vocabularies_may_differ(speculative: Loads, target: int, draft: int, temperature: float) -> None:
    """One tokenizer of 64 entries, embeddings of other sizes. Random weights do use the padding, in prompts as well."""
    models = small(vocab_size=target), small(vocab_size=draft, seed=1)
    prompts = [*PROMPTS, [target - 1] * 3, [target - 1]]
    pipeline = speculative(*models, **{"acceptance.rule": "match"})
    results = pipeline.generate(prompts, max_new_tokens=30, temperature=temperature, seed=2)
    expected = plain(models[0], prompts, max_new_tokens=30, temperature=temperature, seed=2)
    assert [result.token_ids for result in results] == expected


def test_arg_max_drafts_under_sampling_are_matched(speculative: Loads) -> None:
    pipeline = speculative(small(), nearly(small()), sample=False)
    drafts: list[Draft] = []
    watch(pipeline, lambda batch, draft: drafts.append(draft))
    results = pipeline.generate(PROMPTS, max_new_tokens=30, temperature=0.7, seed=4)
    expected = plain(small(), max_new_tokens=30, temperature=0.7, seed=4)
    assert [result.token_ids for result in results] == expected  # the match rule: a function of the seed alone
    assert all(draft.probs is None for draft in drafts if draft.width)
    assert sum(result.report.accepted for result in results) > 0


# -- its cache ---------------------------------------------------------------------------------------------------------


def assert_cache_holds_the_text(pipeline: Pipeline, batch: Batch, draft: Draft) -> None:
    """What the drafter's cache claims to hold is what a fresh prefill of the committed tokens writes."""
    drafter = drafter_of(pipeline)
    fresh = SlotCache(drafter.network)
    for row, wanted in zip(batch.rows, batch.draft_lengths, strict=True):
        have = drafter.cache.lengths[row.slot]
        if draft.width and wanted:
            assert row.length - 2 <= have <= row.length - 1
        if not have:
            continue
        fresh.reserve(1, have)
        tokens = torch.tensor([row.tokens[:have]])
        drafter.network.forward(
            chain(tokens, torch.tensor([0]), fresh.capacity), fresh.layers(slice(0, 1), fresh.capacity)
        )
        mine = drafter.cache.layers(slice(row.slot, row.slot + 1), have)
        for (keys, values), (new_keys, new_values) in zip(mine, fresh.layers(slice(0, 1), have), strict=True):
            torch.testing.assert_close(keys, new_keys, rtol=1e-3, atol=2e-3)
            torch.testing.assert_close(values, new_values, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("noise", [0.0, 0.01, 1.0], ids=["all accepted", "some accepted", "few accepted"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_cache_follows_the_text(speculative: Loads, noise: float, temperature: float) -> None:
    pipeline = speculative(small(), nearly(small(), noise), **{"engine.max_rows": 3})
    accepted: set[int] = set()

    def look(batch: Batch, draft: Draft) -> None:
        assert_cache_holds_the_text(pipeline, batch, draft)
        accepted.update(row.length - before - 1 for row, before in zip(batch.rows, batch.lengths, strict=True))

    watch(pipeline, look)
    pipeline.generate(
        PROMPTS, max_new_tokens=15, temperature=temperature, seed=1
    )  # rows leave, and others take their place
    assert LENGTH in accepted if noise == 0 else len(accepted) > 1 or noise == 1


def test_the_cache_catches_up_after_plain_rounds(speculative: Loads) -> None:
    """A controller may pause drafting for as long as it likes; the drafter then lacks more than one token."""
    pipeline = speculative(small(), small())
    rng, widths = random.Random(1), list[int]()

    def look(batch: Batch, draft: Draft) -> None:
        widths.append(draft.width)
        if draft.width:
            assert_cache_holds_the_text(pipeline, batch, draft)

    watch(pipeline, look)
    controller: Any = pipeline.engine.parts.controller
    controller.lengths = lambda rows: [rng.choice([0, 1, LENGTH]) if len(widths) % 9 > 4 else 0 for _ in rows]
    results = pipeline.generate(PROMPTS, max_new_tokens=20)
    assert [result.token_ids for result in results] == plain(small(), max_new_tokens=20)
    assert {0, LENGTH} <= set(widths)
    assert all(result.report.accepted == result.report.drafted for result in results)  # so nothing was lost


def test_rows_that_decode_plainly_beside_rows_that_do_not(speculative: Loads) -> None:
    pipeline = speculative(small(), small())
    watch(pipeline, lambda batch, draft: assert_cache_holds_the_text(pipeline, batch, draft))
    engine = pipeline.engine
    ids = [
        engine.add(pipeline.request(prompt, max_new_tokens=20, speculate=i % 2 == 0))
        for i, prompt in enumerate(PROMPTS)
    ]
    texts: dict[int, tuple[int, ...]] = dict.fromkeys(ids, ())
    reports = {}
    while not engine.idle:
        for event in engine.step():
            texts[event.row] += event.tokens
            reports[event.row] = event.report
    assert list(texts.values()) == plain(small(), max_new_tokens=20)
    assert [reports[row].rounds for row in ids] == [4, 20, 4, 20, 4]
    assert reports[ids[1]].drafted == 0


# -- what it was drawn from --------------------------------------------------------------------------------------------


@torch.no_grad()
def drafts_by_hand(model: PreTrainedModel, tokens: list[int], draft: list[int]) -> Tensor:
    """float[N, V]: the unmodified draft model's logits for each drafted token."""
    ids = torch.tensor([tokens + draft])
    return cast("Tensor", model(ids, use_cache=False).logits[0, len(tokens) - 1 : -1])


def test_q_is_the_law_that_each_draft_was_drawn_from(speculative: Loads) -> None:
    """In a batch of greedy, truncated and untruncated rows, each row by its own settings."""
    draft_model = small(seed=1, sharpness=3.0)
    pipeline = speculative(small(sharpness=3.0), draft_model)
    settings: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 0.7, "top_k": 5},
        {"temperature": 1.5, "top_p": 0.8},
    ]
    seen = []

    def look(batch: Batch, draft: Draft) -> None:
        assert draft.probs is not None
        assert draft.probs.shape == (3, draft.width, 64)
        torch.testing.assert_close(draft.probs.sum(-1), torch.ones(3, draft.width))
        drawn = draw(draft.probs, batch.uniforms(Purpose.DRAFT, draft.width))
        assert torch.equal(drawn, draft.tokens)
        greedy = draft.probs[0]
        assert torch.equal(greedy, torch.nn.functional.one_hot(draft.tokens[0], 64).float())
        for row, before in zip(batch.rows, batch.lengths, strict=True):
            logits = drafts_by_hand(draft_model, row.tokens[:before], draft.tokens[row.slot].tolist())
            own = Sampling.of([row.request.sampling], "cpu")
            torch.testing.assert_close(draft.probs[row.slot], warp(logits[None], own)[0], rtol=1e-3, atol=1e-5)
        seen.append(draft.width)

    watch(pipeline, look)
    for i, setting in enumerate(settings):
        pipeline.engine.add(pipeline.request(PROMPTS[i], max_new_tokens=200, seed=i, **setting))
    for _ in range(12):
        pipeline.engine.step()
    assert seen == [LENGTH] * 12


def test_a_greedy_batch_drafts_arg_max_without_q(speculative: Loads) -> None:
    draft_model = small(seed=1)
    pipeline = speculative(small(), draft_model)

    def look(batch: Batch, draft: Draft) -> None:
        assert draft.probs is None or not draft.width
        for row, before in zip(batch.rows, batch.lengths, strict=True):
            logits = drafts_by_hand(draft_model, row.tokens[:before], draft.tokens[row.slot].tolist())
            assert logits.argmax(-1).tolist() == draft.tokens[row.slot].tolist()

    watch(pipeline, look)
    pipeline.generate(PROMPTS[:3], max_new_tokens=11)


# -- the law of the text -----------------------------------------------------------------------------------------------

SIZE, SAMPLES, PROMPT = 6, 1200, [1]  # a prompt of one token needs no prefill
MANY_ROWS: dict[str, Any] = {"engine.max_rows": 200, "draft.length": 2}


@torch.no_grad()
def law_of_two(model: PreTrainedModel) -> Tensor:
    """float64[V * V]: the exact probability of each pair of first tokens."""
    first = model(torch.tensor([PROMPT])).logits[0, -1].double().softmax(-1)
    then = model(torch.tensor([[*PROMPT, token] for token in range(SIZE)])).logits[:, -1].double().softmax(-1)
    return (first[:, None] * then).flatten()


def chi_square(counts: Tensor, law: Tensor) -> float:
    """As a standard normal (Wilson and Hilferty 1931), with rare cells put together."""
    order = (law * counts.sum()).sort()
    expected, observed = order.values, counts.double()[order.indices]
    rare = int((expected.cumsum(0) < 10).sum()) + 1
    expected = torch.cat([expected[:rare].sum()[None], expected[rare:]])
    observed = torch.cat([observed[:rare].sum()[None], observed[rare:]])
    degrees = len(expected) - 1
    statistic = float(((observed - expected) ** 2 / expected).sum()) / degrees
    spread = 2 / (9 * degrees)
    return float((statistic ** (1 / 3) - (1 - spread)) / spread**0.5)


def counted(pipeline: Pipeline) -> Tensor:
    """How often each pair of first tokens came."""
    results = pipeline.generate([PROMPT] * SAMPLES, max_new_tokens=3, temperature=1.0, seed=0, ignore_eos=True)
    assert 0.05 < sum(r.report.accepted for r in results) / sum(r.report.drafted for r in results) < 0.95
    pairs = torch.tensor([result.token_ids[0] * SIZE + result.token_ids[1] for result in results])
    return pairs.bincount(minlength=SIZE * SIZE)


@pytest.fixture
def unlike() -> tuple[PreTrainedModel, PreTrainedModel]:
    """A target and a drafter with soft but different distributions over a vocabulary of a few tokens."""
    settings: dict[str, Any] = {"vocab_size": SIZE, "sharpness": 2.0, "num_hidden_layers": 1}
    return tiny_model(**settings), tiny_model(**settings, seed=1)


@pytest.mark.parametrize("rule", ["rejection", "match", "block"])
def test_sampled_text_has_the_targets_law(
    speculative: Loads, unlike: tuple[PreTrainedModel, PreTrainedModel], rule: str
) -> None:
    pipeline = speculative(*unlike, size=SIZE, **MANY_ROWS, **{"acceptance.rule": rule})
    counts = counted(pipeline)
    assert abs(chi_square(counts, law_of_two(unlike[0]))) < 3
    assert chi_square(counts, law_of_two(unlike[1])) > 20  # the drafter's own law is another one


@pytest.mark.parametrize("rule", ["rejection", "block"])
def test_a_q_that_drafts_were_not_drawn_from_is_noticed(
    speculative: Loads, unlike: tuple[PreTrainedModel, PreTrainedModel], rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drafter_module, "draw", lambda probs, u: probs.argmax(-1))  # arg max with a soft q
    pipeline = speculative(*unlike, size=SIZE, **MANY_ROWS, **{"acceptance.rule": rule})
    assert chi_square(counted(pipeline), law_of_two(unlike[0])) > 6


def test_drafts_end_where_the_draft_model_is_unsure(speculative: Loads) -> None:
    """Its cache holds what it has read, and no more, so that the next draft begins in the right place."""
    settings = {"draft.controller": "threshold", "draft.threshold": 0.3, "dtype": "float32"}
    target = tiny_model()
    pipeline = speculative(target, tiny_model(seed=1), **settings)
    texts = pipeline.generate(PROMPTS, max_new_tokens=16)
    assert [text.token_ids for text in texts] == plain(target, max_new_tokens=16)
    drafted = [text.report.drafted / text.report.rounds for text in texts]
    assert 0 < min(drafted) < max(drafted) < LENGTH


def test_every_forward_comes_up_in_a_rehearsal(
    speculative: Loads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no draft is accepted, too: a drafter that has sat out a round reads two rows at once."""
    monkeypatch.setenv("FASTLLM_COMPILED", str(tmp_path / "compiled"))
    monkeypatch.setattr(compiled, "Compiled", Unrolled)
    pipeline = speculative(
        small(), tiny_model(num_hidden_layers=1, seed=9), forward="compiled", **{"engine.max_rows": 2}
    )
    rehearse(pipeline, batch=True)
    assert isinstance(pipeline.backend, Unrolled)
    drafting = f"{drafter_of(pipeline).network.loaded.name}, "
    names = {program.name for program in pipeline.backend.taken if program.name.startswith(drafting)}
    assert names == {
        f"{drafting}{rows}{texts}"
        for texts in ("one text", "several texts")
        for rows in ("", "one row, ", f"{LENGTH} tokens in turn, behind 2 rows, ")
    }


def test_no_step_is_run_behind_a_token_that_ends_the_text(speculative: Loads) -> None:
    """Where each step is a call of its own anyway."""
    pipeline = speculative(small(), tiny_model(num_hidden_layers=1, seed=9), forward="eager")
    widths: list[int] = []
    drafter = drafter_of(pipeline)
    propose = drafter.propose

    def watching(batch: Batch) -> Draft:
        draft = propose(batch)
        widths.append(draft.width)
        return draft

    drafter.propose = watching  # type: ignore[method-assign]
    request = pipeline.request([5, 9], max_new_tokens=8, temperature=0.0)
    pipeline.engine.add(replace(request, eos_token_ids=frozenset(range(64))))
    pipeline.engine.step()
    assert widths == [1]
