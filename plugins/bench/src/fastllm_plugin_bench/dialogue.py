"""Conversations: the prompt of each turn, which sees what was answered before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from transformers.utils import logging as transformers_logging

from .plan import Group, Plan
from .suite import Question

if TYPE_CHECKING:
    from fastllm_core import Pipeline

Asked = list[tuple[Question, tuple[int, ...]]]
"""Who asks in a turn, and the tokens of the prompt."""


class Dialogue:
    """The conversations of a group.

    Every arm sees plain decoding's answers in later turns, its own being the same or not: all have the same work.
    """

    def __init__(self, pipeline: Pipeline, plan: Plan, group: Group) -> None:
        """pipeline: plain decoding, whose tokenizer and context hold for all."""
        self.pipeline, self.plan, self.group = pipeline, plan, group
        self.answers: dict[str, list[str]] = {question.id: [] for question in group.questions}
        tokenizer: Any = pipeline.target.tokenizer
        template = getattr(tokenizer, "chat_template", None) is not None
        self.chat = template if plan.chat is None else plan.chat

    def ask(self, turn: int) -> Asked:
        """The prompts of a turn, of those questions that have one and fit; the others are noted in `plan.skipped`."""
        asked = []
        for question in self.group.questions:
            if turn < len(question.turns) and question.id not in self.plan.skipped:
                ids = self._prompt(question, turn)
                if self._fits(len(ids)):
                    asked.append((question, ids))
                else:
                    self.plan.skipped[question.id] = len(ids)
        return asked

    def answered(self, asked: Asked, tokens: list[tuple[int, ...]]) -> None:
        """Note what plain decoding answered."""
        tokenizer: Any = self.pipeline.target.tokenizer
        for (question, _), answer in zip(asked, tokens, strict=True):
            text = tokenizer.decode(list(answer), skip_special_tokens=True)
            self.answers[question.id].append(text)

    def _fits(self, prompt: int) -> bool:
        limit = self.pipeline.target.context_length
        return limit is None or prompt + self.plan.max_new_tokens <= limit

    def _prompt(self, question: Question, turn: int) -> tuple[int, ...]:
        with _quietly():
            return self._encoded(question, turn, self.answers[question.id])

    def _encoded(self, question: Question, turn: int, answers: Sequence[str]) -> tuple[int, ...]:
        if not self.chat:
            said = [f"{text}{answer}\n\n" for text, answer in zip(question.turns, answers, strict=False)]
            return self.pipeline.request("".join([*said, question.turns[turn]])).prompt
        messages: list[dict[str, str]] = []
        for text, answer in zip(question.turns, answers, strict=False):
            messages += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
        return self.pipeline.request([*messages, {"role": "user", "content": question.turns[turn]}]).prompt


@contextmanager
def _quietly() -> Iterator[None]:
    """Tokenizers warn of a text that is longer than the context; here it is skipped and counted."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
