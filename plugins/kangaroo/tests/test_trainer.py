"""What an adapter learns: the loss by hand, packed documents, and the same adapter in training and generation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fastllm_core
from fastllm_core import Batch, Draft, Lesson, Network, Scores, Verdict, chain, load_model
from fastllm_core.testing import tiny_model, tiny_tokenizer
from fastllm_plugin_kangaroo.adapter import Mode, random_head
from fastllm_plugin_kangaroo.trainer import KangarooRecipe, KangarooTrainer

TEXTS = ([5, 9, 33, 2, 8, 1], [7, 7, 3, 20])
EXIT = 2


@pytest.fixture(scope="module")
def target() -> Any:
    return tiny_model()


def trainer_of(target: Any, mode: Mode = "attention", **options: Any) -> KangarooTrainer:
    made = KangarooTrainer(KangarooRecipe(exit_layer=EXIT, mode=mode, **options), Network(load_model(target)))
    made.load(random_head(target, EXIT, mode, seed=4))
    return made


def lesson_of(target: Any, *texts: list[int], answers: list[bool] | None = None) -> Lesson:
    """A row of documents side by side, and a place of padding; the target reads each alone."""
    read = [target(torch.tensor([text]), output_hidden_states=True) for text in texts]
    size = sum(map(len, texts)) + 1

    def row(parts: list[Any], fill: float) -> Tensor:
        return torch.tensor([[*(value for part in parts for value in part), fill]])

    def padded(parts: list[Tensor]) -> Tensor:
        return torch.nn.functional.pad(torch.cat(parts, dim=1), (0, 0, 0, 1)).detach()

    return Lesson(
        tokens=row([*texts], 0),
        documents=row([[index] * len(text) for index, text in enumerate(texts)], -1),
        positions=row([range(len(text)) for text in texts], 0),
        answers=torch.tensor([answers or [True] * (size - 1) + [False]]),
        hidden={EXIT: padded([one.hidden_states[EXIT] for one in read])},
        logits=padded([one.logits for one in read]),
    )


def said(trainer: KangarooTrainer, lesson: Lesson) -> Tensor:
    return trainer._logits(trainer._features(lesson)).detach()


@pytest.mark.parametrize("mode", ["attention", "layer"])
def test_the_adapter_in_training_is_the_adapter_in_generation(target: Any, mode: Mode, tmp_path: Path) -> None:
    trainer = trainer_of(target, mode)
    trainer.head().save(tmp_path)
    lesson = lesson_of(target, TEXTS[0])
    wanted = said(trainer, lesson)[0, :-1]
    settings = {"forward": "eager"}
    with fastllm_core.load(
        target, "kangaroo", tokenizer=tiny_tokenizer(), config=settings, dtype="float32", adapter=str(tmp_path)
    ) as pipeline:
        drafter: Any = pipeline.drafter
        drafter.cache.reserve(1, 64)
        hidden = lesson.hidden[EXIT][:, :-1]
        inputs = chain(hidden[..., 0], torch.tensor([0]), 64, hidden=hidden)
        given = drafter.adapter.forward(inputs, drafter.cache.layers(slice(0, 1), 64), skip_mlp=drafter._skipped)
    assert torch.allclose(given.logits[0], wanted, atol=1e-4)


class Rounds:
    """Every round: how long each row was and what it held, and the draft."""

    def __init__(self) -> None:
        self.seen: list[tuple[list[list[int]], Draft]] = []

    def observe(self, batch: Batch, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        committed = [[*row.tokens[:length]] for row, length in zip(batch.rows, batch.lengths, strict=True)]
        self.seen.append((committed, draft))


@pytest.mark.parametrize("mode", ["attention", "layer"])
def test_drafting_meets_the_features_of_training_and_says_what_training_said(
    target: Any, mode: Mode, tmp_path: Path
) -> None:
    """In rounds as they come, several texts side by side: not only what the adapter is, but all that it is fed."""
    trainer, rounds = trainer_of(target, mode), Rounds()
    trainer.head().save(tmp_path)
    given: dict[str, Any] = {"adapter": str(tmp_path), "threshold": 0.0}
    settings = {"forward": "eager", "draft.controller": "fixed", "draft.length": 3}
    with fastllm_core.load(
        target, "kangaroo", tokenizer=tiny_tokenizer(), config=settings, dtype="float32", **given
    ) as pipeline:
        drafter: Any = pipeline.drafter
        assert trainer.hidden_layers == drafter.hidden_layers == (EXIT,)
        pipeline.engine.parts = replace(pipeline.engine.parts, observers=(rounds,))
        pipeline.generate([TEXTS[0], TEXTS[1], [4]], max_new_tokens=16, temperature=1.0, seed=1)
    compared = 0
    for committed, draft in rounds.seen:
        for row, tokens in enumerate(committed):
            if draft.resume is None:
                continue
            assert draft.probs is not None
            count, first = int(draft.lengths[row]), len(tokens) - 1
            lesson = lesson_of(target, [*tokens, *draft.tokens[row, :count].tolist()])
            features = lesson.hidden[EXIT][0, first : first + count + 1]
            assert torch.allclose(draft.resume.hidden[row, : count + 1], features, atol=1e-4)
            wanted = said(trainer, lesson)[0, first : first + count].softmax(-1)
            assert torch.allclose(draft.probs[row, :count].float(), wanted, atol=1e-4)
            compared += count
    assert compared > 60


def test_documents_of_a_row_are_read_apart(target: Any) -> None:
    trainer = trainer_of(target)
    packed = said(trainer, lesson_of(target, *TEXTS))[0]
    assert packed.isfinite().all()
    start = 0
    for text in TEXTS:
        alone = said(trainer, lesson_of(target, text))[0, : len(text)]
        assert torch.allclose(packed[start : start + len(text)], alone, atol=1e-4)
        start += len(text)


def by_hand(trainer: KangarooTrainer, lesson: Lesson, places: list[int]) -> tuple[float, float, float]:
    """Soft, hard and refused, summed over some places, token by token."""
    logits, soft, hard, refused = said(trainer, lesson)[0], 0.0, 0.0, 0.0
    for place in places:
        p, q = lesson.logits[0, place].softmax(-1).tolist(), logits[place].softmax(-1).tolist()
        logs = logits[place].log_softmax(-1).tolist()
        soft -= sum(a * b for a, b in zip(p, logs, strict=True))
        hard -= logs[p.index(max(p))]
        refused += 1 - sum(map(min, p, q))
    return soft, hard, refused


@pytest.mark.parametrize(("hard", "overlap"), [(0.0, 0.0), (0.25, 0.0), (1.0, 0.0), (0.25, 0.5)])
def test_the_loss_is_that_of_the_paper_and_its_alternatives(target: Any, hard: float, overlap: float) -> None:
    trainer = trainer_of(target, hard=hard, overlap=overlap)
    # A prompt of three tokens in the first document; the second is all answer, but for what begins it.
    lesson = lesson_of(target, *TEXTS, answers=[False] * 3 + [True] * 7 + [False])
    places = [2, 3, 4, 6, 7, 8]
    loss, count = trainer.loss(lesson)
    soft, sharp, refused = by_hand(trainer, lesson, places)
    assert int(count) == len(places)
    matched = (1 - hard) * soft + hard * sharp
    assert float(loss.detach()) == pytest.approx((1 - overlap) * matched + overlap * refused, rel=1e-4)


def test_only_the_adapter_learns(target: Any) -> None:
    trainer = trainer_of(target)
    loss, _ = trainer.loss(lesson_of(target, *TEXTS))
    loss.backward()
    learning = {name for name, part in trainer.module.named_parameters() if part.grad is not None}
    assert learning == set(trainer.shape.tensors())
    assert all(parameter.grad is None for parameter in target.parameters())


def test_a_judgement_looks_ahead(target: Any) -> None:
    trainer = trainer_of(target)
    lesson = lesson_of(target, *TEXTS)
    judged = trainer.judge(lesson, 3)
    q, p = said(trainer, lesson)[0].softmax(-1), lesson.logits[0].softmax(-1)
    for place in range(10):
        for ahead in range(3):
            if place + ahead < 11:
                assert bool(judged.right[0, place, ahead]) == bool(
                    q[place + ahead].argmax() == p[place + ahead].argmax()
                )
                assert float(judged.chance[0, place, ahead]) == pytest.approx(float(q[place + ahead].max()), rel=1e-4)
        assert float(judged.overlap[0, place]) == pytest.approx(float(torch.minimum(p, q)[place].sum()), rel=1e-4)
