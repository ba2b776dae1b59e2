"""Drafting by double early exiting: what is drafted, where drafts end, what the adapter's cache holds."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import fastllm_core
from fastllm_core import Batch, ConfigError, Draft, Head, ModelError, Network, Pipeline, Row, Scores, Verdict
from fastllm_core.programs import ProgramFolder
from fastllm_core.testing import Subject, tiny_model, tiny_tokenizer
from fastllm_core.testing.checks.cache import AnyVerdict, CacheWatch
from fastllm_core.testing.unrolled import Unrolled
from fastllm_plugin_kangaroo.adapter import Mode, random_head

PROMPTS = [[5, 9, 33, 2], [7] * 9, [1]]
NEW = 24
LENGTH = 4


@cache
def model() -> Any:
    return tiny_model()


def saved(head: Head, folder: Path) -> str:
    head.save(folder)
    return str(folder)


def load(adapter: str, of: Any = None, config: dict[str, Any] | None = None, **options: Any) -> Pipeline:
    settings = {"draft.controller": "fixed", "draft.length": LENGTH, "forward": "eager", **(config or {})}
    given = {"adapter": adapter, "threshold": 0.0, **options}
    return fastllm_core.load(
        of or model(), "kangaroo", tokenizer=tiny_tokenizer(), config=settings, dtype="float32", **given
    )


def plain_texts(of: Any, **settings: Any) -> list[tuple[int, ...]]:
    with fastllm_core.load(of, "plain", config={"forward": "eager", **settings}, dtype="float32") as pipeline:
        return [text.token_ids for text in pipeline.generate(PROMPTS, max_new_tokens=NEW)]


class Watch:
    """Remembers rounds."""

    def __init__(self) -> None:
        self.rounds: list[tuple[list[int], Draft, Scores, Verdict]] = []

    def observe(self, batch: Batch, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        self.rounds.append(([*batch.lengths], draft, scores, verdict))


def watch(pipeline: Pipeline, *observers: Any) -> None:
    pipeline.engine.parts = replace(pipeline.engine.parts, observers=observers)


@pytest.fixture
def adapter(tmp_path: Path) -> str:
    return saved(random_head(model(), 2, "attention"), tmp_path / "adapter")


def silent_above(exit_layer: int) -> tuple[Any, Head]:
    """A model whose layers above the exit add nothing, and the adapter that then drafts exactly what it says."""
    target = tiny_model(seed=3)
    with torch.no_grad():
        for layer in target.model.layers[exit_layer:]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    head = random_head(target, exit_layer, "attention")
    weights = {name: tensor.clone() for name, tensor in head.weights.items()}
    weights["layers.0.self_attn.o_proj.weight"].zero_()
    weights["norm.weight"] = target.model.norm.weight.detach().clone()
    return target, replace(head, weights=weights)


@pytest.mark.parametrize("exit_layer", [1, 2, 3])
def test_an_adapter_that_is_right_is_accepted_whole(exit_layer: int, tmp_path: Path) -> None:
    target, head = silent_above(exit_layer)
    with load(saved(head, tmp_path / "head"), target) as pipeline:
        text = pipeline.generate([5, 9, 33, 2], max_new_tokens=1 + 4 * (LENGTH + 1))
    assert text.report.accepted == text.report.drafted
    assert text.report.accepted_at[:LENGTH] == [4] * LENGTH  # the root of the first round is the prompt's last token


@pytest.mark.parametrize("mode", ["attention", "layer"])
@pytest.mark.parametrize("exit_layer", [1, 3])
@pytest.mark.parametrize("exact", [False, True])
def test_texts_are_those_of_plain_decoding(mode: Mode, exit_layer: int, exact: bool, tmp_path: Path) -> None:
    head = saved(random_head(model(), exit_layer, mode), tmp_path / "head")
    wanted = plain_texts(model(), exact=exact, **{"draft.length": LENGTH})
    with load(head, config={"exact": exact}) as pipeline:
        assert [text.token_ids for text in pipeline.generate(PROMPTS, max_new_tokens=NEW)] == wanted


def test_features_are_those_of_the_whole_model(adapter: str) -> None:
    """What drafting hands on, and what the adapter learned from: the same hidden states."""
    seen = Watch()
    with load(adapter) as pipeline:
        watch(pipeline, seen)
        text = pipeline.generate(PROMPTS[0], max_new_tokens=NEW)
        tokens = torch.tensor([[*PROMPTS[0], *text.token_ids]])
    hidden = model()(tokens, output_hidden_states=True).hidden_states[2]
    for (length,), draft, scores, verdict in seen.rounds:
        if draft.resume is None:
            continue
        kept = int(verdict.accepted[0]) + 1
        wanted = hidden[0, length - 1 : length - 1 + kept]
        kept = len(wanted)
        assert torch.allclose(draft.resume.hidden[0, :kept], wanted, atol=1e-5)
        assert torch.allclose(scores.hidden[2][0, :kept], wanted, atol=1e-5)


class Moody:
    """A controller whose rows draft by chance, and often not at all."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def lengths(self, rows: Sequence[int]) -> list[int]:
        return [self.rng.choice([0, 0, 0, 1, 3, LENGTH]) for _ in rows]

    def thresholds(self, rows: Sequence[int], sampled: Sequence[bool]) -> list[float]:
        return [0.0] * len(rows)

    def observe(self, round_: Any) -> None: ...

    def release(self, row: int) -> None: ...

    def state(self, row: int) -> dict[str, float]:
        return {}


@pytest.mark.parametrize("exact", [False, True])
def test_rows_that_draft_now_and_then_keep_their_caches(adapter: str, exact: bool) -> None:
    """Plain rounds leave features unread: the adapter's cache holds them as soon as its row drafts again."""
    watching = CacheWatch(every=1)
    with load(adapter, config={"exact": exact, "engine.max_rows": 4}) as pipeline:
        watching.pipeline = pipeline  # type: ignore[assignment]
        pipeline.engine.parts = replace(
            pipeline.engine.parts, controller=Moody(1), acceptor=AnyVerdict(2), observers=(watching,)
        )
        prompts = [[3 + i, 9, 2 * i + 1] for i in range(6)]
        pipeline.generate(prompts, max_new_tokens=80)
        caught_up = [cache.lengths for cache in pipeline.engine.parts.drafter_caches]
    assert watching.rounds > 60
    assert caught_up


class LayerCount:
    """Counts the rows that rounds put through the target's first layer, where the forwards happen."""

    def __init__(self, network: Network) -> None:
        self.alone = self.whole = 0
        self.runner, network.runner = network.runner, self
        self.layers = network.layers

    def forward(self, passage: Any, inputs: Any, cache: Any) -> Any:
        if passage.start == 0 and not passage.last_logits_only:  # prompts are read for the cache alone
            rows = inputs.positions.numel()
            self.whole += rows if passage.stop == self.layers else 0
            self.alone += rows if passage.stop < self.layers else 0
        return self.runner.forward(passage, inputs, cache)

    def advance(self, *arguments: Any) -> Any:
        raise AssertionError("kangaroo drafts row by row")


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS], ids=["one text", "several"])
def test_what_is_resumed_is_counted(adapter: str, prompts: list[list[int]], exact: bool) -> None:
    """The report's share, against the rows that were seen to go through the first layer."""
    seen = Watch()
    with load(adapter, config={"exact": exact}) as pipeline:
        parts = replace(pipeline.engine.parts, controller=Moody(3), observers=(seen,))
        pipeline.engine.parts = parts
        counted = LayerCount(parts.network)
        texts = pipeline.generate(prompts, max_new_tokens=NEW)
        report = pipeline.engine.report
    needed = sum(len(lengths) + int(draft.lengths.sum()) for lengths, draft, _, _ in seen.rounds)
    drafting = sum(len(lengths) + int(draft.lengths.sum()) for lengths, draft, _, _ in seen.rounds if draft.resume)
    assert report.verified_rows == needed == sum(text.report.verified_rows for text in texts)
    assert report.resumed_rows == sum(text.report.resumed_rows for text in texts)
    assert 0 < drafting < needed, "rounds of both kinds are wanted"
    assert counted.alone >= drafting
    if exact:
        assert report.resumed_rows == 0, "everything was read again"
    else:
        assert report.resumed_rows == drafting
        assert counted.whole == needed - drafting, "rows were read again, or not counted"


def test_long_plain_phases_are_read_in_pieces(adapter: str) -> None:
    """More unread features than a forward takes."""
    lengths = iter([LENGTH] + [0] * 150 + [LENGTH] * 1000)
    controller = Moody(0)
    controller.lengths = lambda rows: [next(lengths)] * len(rows)  # type: ignore[method-assign]
    watching = CacheWatch(every=1)
    with load(adapter) as pipeline:
        watching.pipeline = pipeline  # type: ignore[assignment]
        pipeline.engine.parts = replace(pipeline.engine.parts, controller=controller, observers=(watching,))
        pipeline.generate(PROMPTS[0], max_new_tokens=170)
        drafter: Any = pipeline.drafter
        assert not drafter._unread


def test_the_networks_of_a_round_have_no_more_programs_than_needed(tmp_path: Path) -> None:
    """Composing and decoding, with and without drafts, take no others: the first take minutes to compile."""
    subject = Subject("kangaroo")
    backend = Unrolled(ProgramFolder(tmp_path), compiles=True)
    with subject.pipeline(subject.target(), backend=backend) as pipeline:
        for speculate in (True, False):
            pipeline.generate(PROMPTS[0], max_new_tokens=NEW, speculate=speculate)
    assert sorted(program.name.partition(", ")[2] for program in backend.taken) == [
        "1 sub-layers skipped, one text",  # the adapter
        "hidden states 1, one row, one text",  # rounds without a draft
        "hidden states 1, one text",  # prompts
        "layers 0 to 0, hidden states 1, one text",
        "layers 1 to 3, hidden states 1, one text",
    ]
    assert not backend.missing


def test_samples_of_a_prompt_copy_what_the_adapter_has_read(adapter: str) -> None:
    """Those that join late, too, from a row that has drafted since."""
    with load(adapter, config={"engine.max_rows": 3}) as pipeline:
        wanted = pipeline.generate(PROMPTS[0], max_new_tokens=NEW, ignore_eos=True).token_ids
        drafter: Any = pipeline.drafter
        read, starts = drafter._read, []

        def counting(row: Row, features: torch.Tensor, start: int) -> None:
            starts.append((len(row.request.prompt), start))
            read(row, features, start)

        drafter._read = counting
        engine = pipeline.engine
        for prompt in ([7] * 9, [8] * 9):
            engine.add(pipeline.request(prompt, max_new_tokens=3))
        request = pipeline.request(PROMPTS[0], max_new_tokens=NEW, ignore_eos=True)
        texts: dict[int, list[int]] = {row: [] for row in engine.add_samples(request, 3)}
        while not engine.idle:
            for event in engine.step():
                texts.setdefault(event.row, []).extend(event.tokens)
        assert [*texts.values()][:3] == [[*wanted]] * 3
        assert starts.count((len(PROMPTS[0]), 0)) == 1
        assert not drafter._unread


def test_a_draft_ends_behind_the_first_unsure_token(adapter: str) -> None:
    seen = Watch()
    with load(adapter, threshold=0.5) as pipeline:
        watch(pipeline, seen)
        pipeline.generate(PROMPTS, max_new_tokens=NEW)
        drafter: Any = pipeline.drafter
        assert drafter.heeds_thresholds
    lengths = {int(length) for _, draft, _, _ in seen.rounds for length in draft.lengths}
    assert len(lengths) > 1, "no draft was cut short, or all were"
    assert min(lengths) >= 1 or 0 in lengths


def test_a_threshold_of_one_drafts_one_token(adapter: str) -> None:
    seen = Watch()
    with load(adapter, threshold=1.0) as pipeline:
        watch(pipeline, seen)
        pipeline.generate(PROMPTS[0], max_new_tokens=NEW)
    assert {draft.width for _, draft, _, _ in seen.rounds[:-1]} == {1}


def test_the_controllers_threshold_wins(adapter: str) -> None:
    seen = Watch()
    config = {"draft.controller": "threshold", "draft.threshold": 1.0}
    with load(adapter, config=config, threshold=0.0) as pipeline:
        watch(pipeline, seen)
        pipeline.generate(PROMPTS[0], max_new_tokens=NEW)
    assert {draft.width for _, draft, _, _ in seen.rounds[:2]} == {1}


def test_an_adapter_for_another_target_is_refused(adapter: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the hash of the output matrix differs"):
        load(adapter, tiny_model(seed=1))
    with pytest.raises(ModelError, match="hidden size: 48, not 32"):
        load(adapter, tiny_model(hidden_size=48))
    head = random_head(model(), 2, "attention")
    other = saved(replace(head, method="medusa"), tmp_path / "other")
    with pytest.raises(ModelError, match="is a head for 'medusa'"):
        load(other)
    late = saved(replace(head, settings={**head.settings, "exit_layer": 4}), tmp_path / "late")
    with pytest.raises(ModelError, match=r"leave after 1\.\.3"):
        load(late)
    lacking = {name: tensor for name, tensor in head.weights.items() if name != "norm.weight"}
    with pytest.raises(ModelError, match=r"lacks norm\.weight"):
        load(saved(replace(head, weights=lacking), tmp_path / "lacking"))


def test_a_folder_that_is_not_there_is_missed_before_the_model_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"options\.kangaroo\.adapter: there is no folder"):
        load(str(tmp_path / "missing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        load(str(tmp_path / "empty"))


def test_a_head_in_bfloat16_fits_the_same_target(adapter: str) -> None:
    """The identity does not depend on the number format that the target is loaded in."""
    target = tiny_model()
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.copy_(parameter.bfloat16())
    head = random_head(target, 1, "attention")
    assert random_head(target.bfloat16(), 1, "attention").target.head == head.target.head
