"""What heads learn: the loss by hand, packed documents, ranks; and a target that learns with them."""

from __future__ import annotations

from dataclasses import replace
from math import log
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from fastllm_core import Lesson, ModelError, Network, TargetIdentity, load_model
from fastllm_core.testing import tiny_model
from fastllm_plugin_medusa import trainer as module
from fastllm_plugin_medusa.heads import random_head
from fastllm_plugin_medusa.recipe import MedusaRecipe, float_weights
from fastllm_plugin_medusa.trainer import MedusaTrainer

TEXTS = ([5, 9, 33, 2, 8, 1, 17], [7, 7, 3, 20, 41])
HEADS = 3


@pytest.fixture(scope="module")
def target() -> Any:
    return tiny_model()


def trainer_of(target: Any, seed: int | None = 4, **options: Any) -> MedusaTrainer:
    """Random heads, or, without a seed, those that training begins with."""
    recipe = MedusaRecipe(heads=HEADS, **options)
    made = MedusaTrainer(recipe, Network(load_model(target)))
    if seed is not None:
        shape = made.heads.shape
        made.load(random_head(target, HEADS, shape.blocks, shape.output, shape.rank, shape.vocab_size, seed))
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
        hidden={4: padded([one.hidden_states[4] for one in read])},
        logits=padded([one.logits for one in read]),
    )


def said(trainer: MedusaTrainer, lesson: Lesson) -> Tensor:
    """float[K, S, V]: log probabilities."""
    return trainer.heads(lesson.hidden[4]).float().log_softmax(-1)[:, 0].detach()


def pairs(head: int, answers: list[bool] | None = None) -> list[tuple[int, int]]:
    """Places of the two documents and what a head says there: the token `head + 2` on, within the document."""
    found = []
    start = 0
    for text in TEXTS:
        for place in range(start, start + len(text) - head - 2):
            if answers is None or answers[place + head + 2]:
                found.append((place, place + head + 2))
        start += len(text)
    return found


def test_heads_begin_as_the_targets_own_head(target: Any) -> None:
    trainer = trainer_of(target, seed=None)
    lesson = lesson_of(target, TEXTS[0])
    for spoken in said(trainer, lesson):
        assert torch.allclose(spoken[:-1], lesson.logits[0, :-1].log_softmax(-1), atol=1e-4)


@pytest.mark.parametrize("output", ["own", "shared", "low-rank", "delta"])
def test_the_loss_is_that_of_the_paper(target: Any, output: Any) -> None:
    """Head k at place t is asked for token t + 2 + k, and counts 0.8^k."""
    trainer = trainer_of(target, output=output, rank=8, blocks=2)
    answers = [False] * 3 + [True] * 9 + [False]
    lesson = lesson_of(target, *TEXTS, answers=answers)
    spoken, tokens = said(trainer, lesson), lesson.tokens[0]
    wanted = sum(
        -(0.8**head) * float(spoken[head, place, tokens[there]])
        for head in range(HEADS)
        for place, there in pairs(head, answers)
    )
    loss, count = trainer.loss(lesson)
    assert float(loss.detach()) == pytest.approx(wanted, rel=1e-4)
    assert int(count) == int(lesson.counted().sum())


def test_labels_and_distributions_of_the_target(target: Any) -> None:
    """They are what the target says one place before the token that is asked for."""
    lesson = lesson_of(target, *TEXTS)
    hard = soft = 0.0
    trainer = trainer_of(target, labels="target", soft=0.25, weights="1,2,0.5")
    spoken = said(trainer, lesson)
    for head, weight in enumerate((1.0, 2.0, 0.5)):
        for place, there in pairs(head):
            p = lesson.logits[0, there - 1].softmax(-1)
            hard -= weight * float(spoken[head, place, p.argmax()])
            soft -= weight * float((p * spoken[head, place]).sum())
    loss, _ = trainer.loss(lesson)
    assert float(loss.detach()) == pytest.approx(0.75 * hard + 0.25 * soft, rel=1e-4)


def test_logits_that_do_not_fit_at_once_give_the_same_gradient(target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lesson = lesson_of(target, *TEXTS)
    found = []
    for most in (module.AT_ONCE, 3 * 64):
        monkeypatch.setattr(module, "AT_ONCE", most)
        trainer = trainer_of(target, labels="target", soft=0.5)
        loss, _ = trainer.loss(lesson)
        loss.backward()
        found.append([part.grad.clone() for part in trainer.module.parameters() if part.grad is not None])
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_truncated_vocabulary_is_asked_for_what_it_has(target: Any) -> None:
    trainer = trainer_of(target, vocabulary=16)
    lesson = lesson_of(target, *TEXTS)
    spoken, tokens = said(trainer, lesson), lesson.tokens[0]
    wanted = sum(
        -(0.8**head) * float(spoken[head, place, tokens[there]])
        for head in range(HEADS)
        for place, there in pairs(head)
        if tokens[there] < 16
    )
    assert float(trainer.loss(lesson)[0].detach()) == pytest.approx(wanted, rel=1e-4)
    assert trainer.head().weights["token_map"].tolist() == [*range(16)]
    assert trainer.judge(lesson, 3).ranks is not None


def test_only_heads_learn_if_the_target_is_frozen(target: Any) -> None:
    trainer = trainer_of(target, output="delta", rank=4)
    loss, _ = trainer.loss(lesson_of(target, *TEXTS))
    loss.backward()
    learning = {name for name, part in trainer.module.named_parameters() if part.grad is not None}
    assert learning == {f"heads.{name}" for name in trainer.head().weights}
    assert all(parameter.grad is None for parameter in target.parameters())


def test_a_judgement_says_what_a_round_would_draft(target: Any) -> None:
    """A round with root s drafts from place s - 1: draft d is token s + 1 + d, which the target chooses at s + d."""
    trainer = trainer_of(target)
    lesson = lesson_of(target, *TEXTS)
    judged = trainer.judge(lesson, 8)
    assert judged.ranks is not None
    assert judged.ranks.shape == (1, 13, HEADS)
    spoken, choices, tokens = said(trainer, lesson), lesson.logits[0].argmax(-1), lesson.tokens[0]
    begins = {0, len(TEXTS[0])}
    ends = [len(TEXTS[0])] * len(TEXTS[0]) + [12] * (len(TEXTS[1]) + 1)
    asked = 0
    for root in range(13):
        for draft in range(HEADS):
            rank = int(judged.ranks[0, root, draft])
            if root in begins or root + 1 + draft >= ends[root]:
                assert rank == -2
                assert judged.figures["loss of each head"][0, root, draft].isnan()
                continue
            asked += 1
            order = spoken[draft, root - 1].argsort(descending=True).tolist()
            place = order.index(int(choices[root + draft]))
            assert rank == (place if place < module.RANKS else -1)
            assert bool(judged.right[0, root, draft]) == (place == 0)
            lost = -spoken[draft, root - 1, tokens[root + 1 + draft]]
            assert float(judged.figures["loss of each head"][0, root, draft]) == pytest.approx(float(lost), rel=1e-4)
    assert asked == (5 + 4 + 3) + (3 + 2 + 1)
    p, drafted = lesson.logits[0, 2].softmax(-1), spoken[0, 1].argmax()
    assert float(judged.overlap[0, 2]) == pytest.approx(float(p[drafted]), rel=1e-4)


def test_the_tree_follows_from_accuracies_and_goes_with_the_heads(target: Any) -> None:
    trainer = trainer_of(target, nodes=4)
    tree = trainer.tree(torch.tensor([[0.5, 0.3, 0.05], [0.4, 0.1, 0.05], [0.3, 0.1, 0.05]]))
    assert tree is not None
    assert {*tree} == {(0,), (1,), (0, 0), (1, 0)}
    assert trainer.head().settings["accuracies"][0] == [0.5, 0.3, 0.05]


@pytest.mark.parametrize(
    ("given", "said"),
    [({"weights": "1,2"}, "3 heads need as many numbers"), ({"weights": "1,a,2"}, "must be numbers")],
)
def test_weights_that_do_not_fit_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        MedusaRecipe(heads=3, **given)
    assert float_weights(MedusaRecipe(heads=2, weights="1,0")) == [1.0, 0.0]


# The target learns as well.


@pytest.mark.parametrize("joint", ["full", "lora"])
def test_a_student_begins_as_its_target_and_leaves_it_alone(target: Any, joint: Any) -> None:
    before = {name: part.clone() for name, part in target.state_dict().items()}
    trainer = trainer_of(target, joint=joint, lora_rank=4)
    lesson = lesson_of(target, *TEXTS)
    hidden, logits = trainer._read(lesson)
    assert torch.allclose(hidden[:, :-1], lesson.hidden[4][:, :-1], atol=1e-4)
    assert torch.allclose(logits[:, :-1], lesson.logits[:, :-1], atol=1e-4)
    step(trainer, replace(lesson, progress=0.5))
    assert not torch.allclose(trainer._read(lesson)[1], logits, atol=1e-4)
    assert all(torch.equal(part, before[name]) for name, part in target.state_dict().items())


def step(trainer: MedusaTrainer, lesson: Lesson, rate: float = 0.05) -> set[str]:
    """One step; returns which parts learned: "heads", "target"."""
    learning = {name: part for name, part in trainer.module.named_parameters() if part.requires_grad}
    optimizer = torch.optim.AdamW(learning.values(), lr=rate, weight_decay=0.0)
    loss, count = trainer.loss(lesson)
    (loss / count).backward()
    optimizer.step()
    return {name.split(".")[0] for name, part in learning.items() if part.grad is not None}


@pytest.mark.parametrize("joint", ["full", "lora"])
def test_the_tuned_model_is_what_was_learned(target: Any, joint: Any) -> None:
    """Adapters are folded in; a frozen target's identity is another."""
    trainer = trainer_of(target, joint=joint, lora_rank=4)
    lesson = lesson_of(target, TEXTS[0])
    for _ in range(2):  # the second step is the first in which both factors of an adapter learn
        assert step(trainer, replace(lesson, progress=0.5)) == {"heads", "target"}
    tuned = trainer.tuned()
    assert tuned is not None
    wanted = trainer._read(lesson)[1][:, :-1]
    assert torch.allclose(tuned(lesson.tokens[:, :-1]).logits, wanted, atol=1e-4)
    assert not torch.allclose(target(lesson.tokens[:, :-1]).logits, wanted, atol=1e-2)
    assert not any("lora" in name for name in tuned.state_dict())
    head = replace(trainer.head(), target=TargetIdentity.of(Network(load_model(tuned)), body=True))
    head.check("medusa", TargetIdentity.of(Network(load_model(tuned)), body=True))
    with pytest.raises(ModelError, match="other weights"):
        head.check("medusa", TargetIdentity.of(Network(load_model(target)), body=True))


def test_heads_enter_with_a_sine_or_learn_alone_first(target: Any) -> None:
    lesson = lesson_of(target, *TEXTS)
    sine = trainer_of(target, joint="full")
    assert [sine._share(progress)[1] for progress in (0.0, 1 / 3, 1.0)] == pytest.approx([0.0, 0.1, 0.2])
    staged = trainer_of(target, joint="lora", warmup="two-stage", alone=0.5)
    assert [staged._share(progress) for progress in (0.0, 0.49, 0.5)] == [(True, 1.0), (True, 1.0), (False, 0.01)]
    assert step(staged, replace(lesson, progress=0.2)) == {"heads"}
    assert step(staged, replace(lesson, progress=0.7)) == {"heads", "target"}
    assert trainer_of(target)._share(0.0) == (False, 1.0)


def test_what_keeps_a_student_what_it_is(target: Any) -> None:
    """The text's own loss, or the divergence from what the target said before, by hand."""
    lesson = lesson_of(target, *TEXTS)
    places = [place for place in range(12) if place not in (6, 11)]
    text = trainer_of(target, joint="full", weights="0,0,0")
    own = -sum(float(lesson.logits[0, p].log_softmax(-1)[lesson.tokens[0, p + 1]]) for p in places)
    assert float(text.loss(lesson)[0].detach()) == pytest.approx(own, rel=1e-4)
    kept = trainer_of(target, joint="full", own="teacher", weights="0,0,0")
    assert float(kept.loss(lesson)[0].detach()) == pytest.approx(0.0, abs=1e-3)
    moved = replace(lesson, logits=torch.zeros_like(lesson.logits))
    p = 1 / lesson.logits.shape[2]
    far = sum(p * float((log(p) - lesson.logits[0, place].log_softmax(-1)).sum()) for place in places)
    assert float(kept.loss(moved)[0].detach()) == pytest.approx(far, rel=1e-3)


def test_heads_learn_faster_than_the_target(target: Any) -> None:
    assert trainer_of(target, joint="full", heads_rate=8.0).rates == {"heads.": 8.0}
    assert trainer_of(target).rates == {}
