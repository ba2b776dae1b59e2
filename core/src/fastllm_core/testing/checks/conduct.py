"""Checks of manners: what a draft looks like, and that nothing leaks between rows, pipelines and runs."""

from __future__ import annotations

import gc
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch

from ...batch import Batch, Row
from ...engine import Engine
from ...pipeline import Pipeline
from ...protocols import Draft, Proposal, Scores, Verdict
from ...request import Request
from .. import situations
from ..situations import drafters, expect_same, greedy, plain_texts, prompts, sampled
from ..subject import Subject, TinyTarget


class DraftWatch:
    """Looks at every draft, and remembers each row's."""

    def __init__(self, proposal: Proposal, vocab_size: int) -> None:
        """proposal: what the drafter says of itself."""
        self.proposal, self.vocab_size = proposal, vocab_size
        self.seen: dict[tuple[tuple[int, ...], int], list[int]] = {}
        """Drafted tokens by prompt and committed length."""

    def observe(self, batch: Batch, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        """Check form and range."""
        rows, width = len(batch), draft.width
        assert draft.tokens.shape == (rows, width), (
            f"a draft's tokens have shape {tuple(draft.tokens.shape)}, not (B, N)"
        )
        assert draft.tokens.dtype == draft.lengths.dtype == torch.long, "a draft's tokens and lengths must be int64"
        assert draft.lengths.shape == (rows,), f"a draft's lengths have shape {tuple(draft.lengths.shape)}, not (B,)"
        assert draft.tokens.device == batch.device, f"a draft lies on {draft.tokens.device}, not on {batch.device}"
        depths = self._depths(draft, rows)
        for index, row in enumerate(batch.rows):
            count = int(draft.lengths[index])
            assert 0 <= count <= width, f"a draft of {width} columns says that {count} of them are drafted"
            tokens = draft.tokens[index, :count].tolist()
            assert all(0 <= token < self.vocab_size for token in tokens), (
                f"drafted ids outside the vocabulary: {tokens}"
            )
            deepest = max(depths[index][:count], default=0)
            assert deepest <= batch.draft_lengths[index], (
                f"{deepest} tokens were drafted in a row where at most {batch.draft_lengths[index]} were asked for"
            )
            self.seen[row.request.prompt, batch.lengths[index]] = tokens
        self._check_probs(batch, draft)

    def _depths(self, draft: Draft, rows: int) -> list[list[int]]:
        if draft.parents is None:
            return [list(range(1, draft.width + 1))] * rows
        assert draft.parents.shape == draft.tokens.shape, "parents and tokens of a tree must have the same shape"
        made = []
        for parents in draft.parents.tolist():
            depths: list[int] = []
            for node, parent in enumerate(parents):
                assert -1 <= parent < node, (
                    f"node {node} of a tree has parent {parent}: parents come before their children"
                )
                depths.append(1 if parent < 0 else depths[parent] + 1)
            made.append(depths)
        return made

    def _check_probs(self, batch: Batch, draft: Draft) -> None:
        if draft.probs is None or self.proposal is Proposal.ONE_HOT:
            assert draft.probs is None or self.proposal is not Proposal.ONE_HOT, "a one-hot drafter must give no probs"
            return
        rows = draft.probs.shape[1]
        assert draft.probs.shape[0] == len(batch), f"probs have shape {tuple(draft.probs.shape)}, not (B, N or W, V)"
        assert rows in (draft.width, draft.width + 1), f"probs have {rows} rows for {draft.width} drafted tokens"
        assert draft.probs.shape[2] == self.vocab_size, f"probs are {draft.probs.shape[2]} wide, not {self.vocab_size}"
        for index in range(len(batch)):
            count = int(draft.lengths[index])
            if draft.parents is None:
                total = draft.probs[index, :count].sum(-1)
                assert torch.allclose(total, torch.ones_like(total), atol=1e-3), (
                    f"probs sum to {total.tolist()}, not to 1"
                )
                drawn = draft.probs[index, range(count), draft.tokens[index, :count]]
                assert bool((drawn > 0).all()), "a token was drafted to which probs gives no chance: q is not its law"


def check_drafts(subject: Subject) -> None:
    """Every draft has the promised shapes, types and ranges, greedy and sampling, at several lengths."""
    target = subject.target()
    for length in (1, 4):
        _watched(subject, target, _mixed(target), {"draft.length": length, "engine.max_rows": 4})


def check_rows_are_independent(subject: Subject) -> None:
    """What is drafted for a row is the same alone and in company, so nothing of a neighbour leaks into it."""
    target = subject.target()
    requests = greedy(prompts(6, target.vocab_size), 16)
    alone = _watched(subject, target, requests, {"engine.max_rows": 1})
    together = _watched(subject, target, requests, {"engine.max_rows": 6})
    for key in alone.seen.keys() & together.seen.keys():
        assert alone.seen[key] == together.seen[key], (
            f"after {key[1]} tokens of prompt {list(key[0][:6])} it drafts {together.seen[key]} beside other rows and "
            f"{alone.seen[key]} alone"
        )


def check_pipelines_are_independent(subject: Subject) -> None:
    """Two pipelines of one process, stepped in turn, each draft and write what they do alone."""
    target = subject.target()
    halves = [greedy(prompts(3, target.vocab_size, seed=seed), 20) for seed in (1, 2)]
    expected = [plain_texts(subject, target, requests) for requests in halves]
    alone = [_watched(subject, target, requests, {}).seen for requests in halves] if subject.drafts else [{}, {}]
    both = zip(
        *(drafters(subject, requests, texts) for requests, texts in zip(halves, expected, strict=True)), strict=True
    )
    for toys in both:
        with ExitStack() as stack:
            pipelines = [stack.enter_context(subject.pipeline(target, beside=toy)) for toy in toys]
            watches = [_watch(pipeline, target) for pipeline in pipelines] if subject.drafts else []
            texts = _in_turn([pipeline.engine for pipeline in pipelines], halves)
        for index, requests in enumerate(halves):
            expect_same(texts[index], expected[index], requests, "beside another pipeline")
        for index, watch in enumerate(watches):
            for key, drafted in watch.seen.items():
                assert drafted == alone[index].get(key, drafted), (
                    f"beside another pipeline it drafts {drafted} after {key[1]} tokens, and {alone[index][key]} alone"
                )


def _in_turn(engines: list[Engine], halves: list[list[Request]]) -> list[situations.Texts]:
    """What each engine writes, a step of one and then of the other."""
    tokens = [
        {engine.add(request): list[int]() for request in half} for engine, half in zip(engines, halves, strict=True)
    ]
    while not all(engine.idle for engine in engines):
        for engine, texts in zip(engines, tokens, strict=True):
            for event in engine.step():
                texts[event.row] += event.tokens
    return [[*texts.values()] for texts in tokens]


def check_model_is_untouched(subject: Subject) -> None:
    """The user's model is the same before, during and after: weights, configuration, modules and hooks."""
    target = subject.target()
    before = _state(target)
    requests = greedy(prompts(2, target.vocab_size), 8)
    expected = plain_texts(subject, target, requests)
    toy = next(drafters(subject, requests, expected))
    with subject.pipeline(target, beside=toy) as pipeline:
        situations.texts(pipeline, requests)
        during = _state(target)
    for state, when in ((during, "while the pipeline is open"), (_state(target), "after it is closed")):
        changed = [key for key in before.keys() | state.keys() if before.get(key) != state.get(key)]
        assert not changed, f"the user's model is changed {when}: {', '.join(sorted(changed)[:5])}"


def check_nothing_is_left(subject: Subject) -> None:
    """When rows have ended or were cancelled, and the pipeline is closed and used again elsewhere, nothing remains."""
    target = subject.target()
    requests = greedy(prompts(5, target.vocab_size), 16)
    expected = plain_texts(subject, target, requests)
    for toy in drafters(subject, requests, expected):
        with subject.pipeline(target, config={"engine.max_rows": 3}, beside=toy) as pipeline:
            before = _live_rows()
            cancelled = [pipeline.engine.add(request) for request in requests]
            for _ in range(3):
                pipeline.engine.step()
            for row in cancelled:
                pipeline.engine.cancel(row)
            again = situations.texts(pipeline, requests)
            expect_same(again, expected, requests, "after rows were cancelled")
            held = _live_rows() - before
            assert held <= 0, f"{held} rows that have left are still held: forget them in `release`"
        with subject.pipeline(target, beside=toy) as pipeline:
            expect_same(situations.texts(pipeline, requests), expected, requests, "in a second pipeline after a first")


def _mixed(target: TinyTarget) -> list[Request]:
    asked = prompts(8, target.vocab_size)
    return [*greedy(asked[:4], 12), *sampled(asked[4:], 12)]


def _watched(subject: Subject, target: TinyTarget, requests: list[Request], config: dict[str, Any]) -> DraftWatch:
    with subject.pipeline(target, config=config) as pipeline:
        watch = _watch(pipeline, target)
        situations.texts(pipeline, requests)
    return watch


def _watch(pipeline: Pipeline, target: TinyTarget) -> DraftWatch:
    """Look at every draft of a pipeline."""
    drafter = pipeline.drafter
    assert drafter is not None, "it makes no drafter although it implements fastllm_make_drafter"
    watch = DraftWatch(drafter.proposal, target.vocab_size)
    engine = pipeline.engine
    engine.parts = replace(engine.parts, observers=(*engine.parts.observers, watch))
    return watch


def _state(target: TinyTarget) -> dict[str, object]:
    """Everything about a model that somebody may have changed, by name."""
    model = target.model
    state: dict[str, object] = {"config": str(model.config.to_dict()), "training": model.training}
    state |= {f"weight {name}": (tensor.data_ptr(), tensor.sum().item()) for name, tensor in model.state_dict().items()}
    for name, module in model.named_modules():
        hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
        state[f"module {name}"] = (id(module), type(module), hooks, sorted(vars(module)))
    return state


def _live_rows() -> int:
    gc.collect()
    return sum(issubclass(type(thing), Row) for thing in gc.get_objects())
