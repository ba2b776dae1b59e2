"""Does generation accept what training foretold? Held-out prompts, written by the target and by the method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

import fastllm_core
from fastllm_core import Network, Pipeline, Trainer

from .acceptance import Foretold, Tree, foretell, foretell_tree
from .data import Text
from .distill import answered
from .rows import packed
from .teacher import Teacher

TOGETHER: Final = 8
PROMPT: Final = 16
"""Tokens of a text without a prompt that are given as one."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What was foretold, and what came."""

    foretold: Foretold
    measured: Foretold
    same_text: int
    """Texts that the method wrote as plain decoding does, of `texts`."""
    texts: int

    def to_json(self) -> dict[str, Any]:
        """Everything."""
        return {
            "texts": self.texts,
            "same_text": self.same_text,
            "foretold": self.foretold.to_dict(),
            "measured": self.measured.to_dict(),
        }


def prove(
    trainer: Trainer,
    method: str,
    head: Path,
    plain: Pipeline,
    held: Sequence[Text],
    *,
    length: int,
    new_tokens: int,
    tree: Tree | None = None,
) -> Proof:
    """Generate from held-out prompts, plainly and with the head, and walk over the same texts.

    length: tokens of a draft; every draft is as long as it may be.  tree: what rounds draft, None for chains.
    """
    prompts = [text.tokens[: text.prompt if text.prompt > 1 else min(PROMPT, len(text.tokens) // 2)] for text in held]
    asked: dict[str, Any] = {"max_new_tokens": new_tokens, "temperature": 0.0, "ignore_eos": True}
    wanted = plain.generate(prompts, **asked)
    teacher = Teacher(plain.engine.parts.network, trainer.hidden_layers)
    foretold = _foretold(trainer, teacher, prompts, [text.token_ids for text in wanted], length, tree)
    with _drafting(method, head, plain, trainer, length) as pipeline:
        given = pipeline.generate(prompts, **asked)
    measured = Foretold()
    for text in given:
        report = text.report
        measured.add(Foretold(report.rounds, report.tokens, [*report.drafted_at], [*report.accepted_at]))
    same = sum(ours.token_ids == theirs.token_ids for ours, theirs in zip(given, wanted, strict=True))
    return Proof(foretold, measured, same, len(prompts))


def _foretold(
    trainer: Trainer,
    teacher: Teacher,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    length: int,
    tree: Tree | None,
) -> Foretold:
    texts = [[answered(prompt, answer)] for prompt, answer in zip(prompts, answers, strict=True)]
    rows = packed(texts, max(len(text.tokens) for (text,) in texts))
    found = Foretold()
    with torch.no_grad():
        for index in torch.split(torch.arange(len(rows)), TOGETHER):
            lesson = teacher.lesson(rows.take(index))
            judgement, counted = trainer.judge(lesson, length), lesson.counted()
            if tree is None or judgement.ranks is None:
                found.add(foretell(counted, judgement, length))
            else:
                found.add(foretell_tree(counted, judgement.ranks, tree))
    return found


def _drafting(method: str, head: Path, plain: Pipeline, trainer: Trainer, length: int) -> Pipeline:
    """The same model with the method, drafting as long as it may in every round."""
    kept = {"forward": "eager", "threads": plain.config.threads}
    settings = {"method": method, "draft.controller": "fixed", "draft.length": length}
    options = {f"options.{method}.{key}": value for key, value in trainer.generating(str(head)).items()}
    target = plain.target
    return fastllm_core.load(target.model, tokenizer=target.tokenizer, config={**kept, **settings, **options})


def network_of(pipeline: Pipeline) -> Network:
    """The target's forward port."""
    return pipeline.engine.parts.network
