"""Drafting on the target's own cache: what is drafted, where drafts end, and what is left behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

import fastllm_core
from fastllm_core import Batch, Draft, Pipeline, Resume, SamplingParams, Scores, UnsupportedModel, Verdict
from fastllm_core.request import Request
from fastllm_core.testing import Subject, tiny_model, tiny_tokenizer
from fastllm_core.testing.checks.cache import check_rollback
from fastllm_core.testing.families import family
from fastllm_plugin_self_speculative.drafter import SkippingDrafter

PROMPTS = [[5, 9, 33, 2], [7] * 9, [1]]
NEW = 20


@cache
def model() -> Any:
    return tiny_model()


def load(config: dict[str, Any] | None = None, of: Any = None, **options: Any) -> Pipeline:
    settings = {"draft.controller": "fixed", "draft.length": 4, "forward": "eager", **(config or {})}
    return fastllm_core.load(
        of or model(), "self-speculative", tokenizer=tiny_tokenizer(), config=settings, dtype="float32", **options
    )


class Watch:
    """Remembers drafts and verdicts."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.seen: list[tuple[Batch, Draft, Verdict]] = []
        engine = pipeline.engine
        engine.parts = replace(engine.parts, observers=(self,))

    def observe(self, batch: Batch, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        self.seen.append((batch, draft, verdict))


@pytest.mark.parametrize(("sampled", "ends", "drafted"), [(False, True, 1), (True, True, 1), (False, False, 4)])
def test_nothing_is_drafted_behind_a_token_that_ends_the_text(sampled: bool, ends: bool, drafted: int) -> None:
    final = frozenset(range(64)) if ends else frozenset()  # whatever is drafted ends the text, and stays in the draft
    sampling = SamplingParams(temperature=1.0 if sampled else 0.0)
    with load(exit_layer=2) as pipeline:
        watch = Watch(pipeline)
        pipeline.engine.add(Request((5, 9), 8, sampling=sampling, seed=3, eos_token_ids=final))
        pipeline.engine.step()
    draft = watch.seen[0][1]
    assert (draft.width, draft.lengths.tolist()) == (drafted, [drafted])


def silenced(attention: set[int], mlp: set[int]) -> Any:
    """An unmodified model whose sub-layers compute everything and then answer 0."""
    import copy

    made = copy.deepcopy(model())

    def zero(part: Any, given: Any, answer: Any) -> Any:
        return (torch.zeros_like(answer[0]), *answer[1:]) if isinstance(answer, tuple) else torch.zeros_like(answer)

    for layer in attention:
        made.model.layers[layer].self_attn.register_forward_hook(zero)
    for layer in mlp:
        made.model.layers[layer].mlp.register_forward_hook(zero)
    return made


@pytest.mark.parametrize(("attention", "mlp"), [({2}, {1}), (set(), {0, 3}), ({0, 1}, set())])
@torch.inference_mode()
def test_the_first_draft_is_the_silenced_models(attention: set[int], mlp: set[int]) -> None:
    """A prompt of one token has no stored keys, so the whole draft is that of a model without these sub-layers.

    An index that is off by anything, MLP by the number of layers for one, drafts something else.
    """
    with load(skip_attention=sorted(attention), skip_mlp=sorted(mlp)) as pipeline:
        watch = Watch(pipeline)
        pipeline.generate([9], max_new_tokens=6)
    ids = [9]
    for _ in range(4):
        ids.append(int(silenced(attention, mlp)(torch.tensor([ids])).logits[0, -1].argmax()))
    assert watch.seen[0][1].tokens[0].tolist() == ids[1:]
    whole = [9]
    for _ in range(4):
        whole.append(int(model()(torch.tensor([whole])).logits[0, -1].argmax()))
    assert whole != ids, "skipping changed nothing, so this shows nothing"


@torch.inference_mode()
def test_an_early_exit_drafts_with_the_first_layers_and_resumes_behind_them() -> None:
    with load(exit_layer=2) as pipeline:
        watch = Watch(pipeline)
        pipeline.generate([9], max_new_tokens=6)
        network = pipeline.engine.parts.network
        resumed = pipeline.engine.parts.drafter.resume_layer
    _, draft, _ = watch.seen[0]
    assert resumed == 2
    assert draft.resume is not None
    states = model().model(torch.tensor([[9, *draft.tokens[0].tolist()]]), output_hidden_states=True).hidden_states
    torch.testing.assert_close(draft.resume.hidden, states[2], rtol=1e-4, atol=1e-4)
    assert network.layers == 4
    logits = model().lm_head(model().model.norm(states[2]))
    assert draft.tokens[0].tolist() == logits[0, :-1].argmax(-1).tolist()


def test_whole_upper_layers_are_an_early_exit_however_they_are_named() -> None:
    with load(skip_attention=[3, 2], skip_mlp=[2, 3]) as pipeline:
        assert pipeline.drafter.resume_layer == 2  # type: ignore[union-attr]
    with load(skip_attention=[3, 2], skip_mlp=[3]) as pipeline:
        assert pipeline.drafter.resume_layer is None  # type: ignore[union-attr]


OPTIONS = [{"skip_attention": [1], "skip_mlp": [0]}, {"exit_layer": 2}]


@pytest.mark.parametrize("options", OPTIONS, ids=["skip", "exit"])
def test_rows_end_their_drafts_where_each_is_unsure(options: dict[str, Any]) -> None:
    """With a threshold drafts have different lengths, and texts stay plain decoding's, greedy and ragged."""
    with load({"draft.controller": "threshold", "draft.threshold": 0.3}, **options) as pipeline:
        watch = Watch(pipeline)
        texts = pipeline.generate(PROMPTS, max_new_tokens=NEW)
        plain = pipeline.generate(PROMPTS, max_new_tokens=NEW, speculate=False)
    assert [text.token_ids for text in texts] == [text.token_ids for text in plain]
    lengths = [draft.lengths.tolist() for _, draft, _ in watch.seen if draft.width]
    assert len({length for line in lengths for length in line}) > 1
    assert any(len(set(line)) > 1 for line in lengths), "rows of one round ended alike, so this shows nothing"
    for text in texts:
        assert set(text.report.controller) == {"threshold", "acceptance"}
        assert "controller: threshold 0." in text.report.summary()


def test_a_threshold_of_one_drafts_one_token_and_of_zero_all() -> None:
    for threshold, expected in ((1.0, {1}), (0.0, {4})):
        settings = {"draft.controller": "threshold", "draft.threshold": threshold, "draft.acceptance": 0.5}
        with load(settings, skip_attention=[1]) as pipeline:
            watch = Watch(pipeline)
            pipeline.generate([3, 4], max_new_tokens=5)
        assert {int(watch.seen[0][1].lengths)} == expected


def test_nothing_skipped_drafts_nothing() -> None:
    from fastllm_plugin_self_speculative.skipset import SkipSet

    with load(skip_attention=[1]) as pipeline:
        watch = Watch(pipeline)
        drafter = pipeline.engine.parts.drafter
        drafter.skipped = SkipSet()  # type: ignore[union-attr]
        pipeline.generate([3, 4], max_new_tokens=5)
    assert {draft.width for _, draft, _ in watch.seen} == {0}


def test_exact_mode_writes_the_same_bits() -> None:
    config = {"exact": True, "engine.max_rows": 2}
    texts = []
    for options in OPTIONS:
        with load(config, **options) as pipeline:
            texts.append([text.token_ids for text in pipeline.generate(PROMPTS, max_new_tokens=NEW)])
    with fastllm_core.load(model(), "plain", tokenizer=tiny_tokenizer(), config=config, dtype="float32") as pipeline:
        texts.append([text.token_ids for text in pipeline.generate(PROMPTS, max_new_tokens=NEW)])
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.filterwarnings("ignore")
def test_a_family_whose_sublayers_cannot_be_skipped_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="cannot skip sub-layers"):
        load(of=family("bloom").model(), skip_attention=[1])


# -- wrong drafters, which the kit must find ---------------------------------------------------------------------------


def stale(propose: Callable[..., Draft]) -> Callable[..., Draft]:
    """Says that its rows are the target's own, so that they stay in the cache."""

    def wrong(drafter: SkippingDrafter, batch: Batch) -> Draft:
        draft = propose(drafter, batch)
        hidden = drafter.network.forward(
            _rows(drafter, batch, draft), _layers(drafter, batch), stop=1, skip_attention=frozenset({0})
        ).hidden[1]
        return draft._replace(resume=Resume(1, hidden))

    return wrong


def early(propose: Callable[..., Draft]) -> Callable[..., Draft]:
    """Begins one slot too early, where a committed token's keys stand."""

    def wrong(drafter: SkippingDrafter, batch: Batch) -> Draft:
        draft = propose(drafter, batch)
        rows = _rows(drafter, batch, draft)
        rows = rows._replace(slots=(rows.slots - 1).clamp(min=0))
        drafter.network.forward(rows, _layers(drafter, batch), skip_mlp=frozenset({0}))
        return draft

    return wrong


def _rows(drafter: SkippingDrafter, batch: Batch, draft: Draft) -> Any:
    tokens = torch.cat([batch.roots[:, None], draft.tokens], dim=1)
    return fastllm_core.chain(tokens, batch.starts, _extent(drafter, batch))


def _layers(drafter: SkippingDrafter, batch: Batch) -> Any:
    return drafter.cache.layers(slice(0, len(batch)), _extent(drafter, batch))


def _extent(drafter: SkippingDrafter, batch: Batch) -> int:
    return drafter.cache.extent(max(batch.lengths) + max(batch.draft_lengths))


@pytest.mark.parametrize("spoil", [stale, early])
def test_rows_that_stay_in_the_cache_are_found(spoil: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SkippingDrafter, "propose", spoil(SkippingDrafter.propose))
    with pytest.raises(AssertionError, match="the target's cache differs from a fresh reading"):
        check_rollback(Subject("self-speculative"))


def test_an_early_exit_that_forgets_its_last_token_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last draft has not been through the first layers while drafting; its row would be another's."""
    resume = SkippingDrafter._resume

    def wrong(drafter: SkippingDrafter, last: Any, early: list[torch.Tensor], layers: Any) -> Any:
        return resume(drafter, last._replace(tokens=last.tokens * 0), early, layers)

    monkeypatch.setattr(SkippingDrafter, "_resume", wrong)
    with pytest.raises(AssertionError):
        check_rollback(Subject("self-speculative", {"exit_layer": 2}))
