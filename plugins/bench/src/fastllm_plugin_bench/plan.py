"""What is measured, in which order: every arm on every prompt, in turn, so that a drifting machine hits all alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TypeVar

from .suite import Question, Suite

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Case:
    """Circumstances under which all arms are compared."""

    batch: int
    """Prompts that are decoded side by side."""
    temperature: float


@dataclass(frozen=True, slots=True)
class Group:
    """Questions of one category that are decoded side by side; one, at batch size 1."""

    index: int
    category: str
    questions: tuple[Question, ...]

    @property
    def turns(self) -> int:
        """Turns of the longest conversation."""
        return max(len(question.turns) for question in self.questions)


@dataclass(frozen=True, slots=True)
class Plan:
    """A benchmark."""

    suite: Suite
    cases: tuple[Case, ...]
    repeats: int
    max_new_tokens: int
    seed: int = 0
    ignore_eos: bool = False
    chat: bool | None = None
    """Whether prompts are messages to a chat model; None: if its tokenizer has a template."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Tokens of the questions that do not fit the context, by id. Filled as they are met."""

    def groups(self, case: Case) -> list[Group]:
        """The suite's questions in groups of the case's batch size, never two categories in one."""
        ordered = sorted(self.suite.questions, key=lambda question: self._place(question.category))
        groups: list[Group] = []
        for category, found in groupby(ordered, key=lambda question: question.category):
            members = list(found)
            for start in range(0, len(members), case.batch):
                groups.append(Group(len(groups), category, tuple(members[start : start + case.batch])))
        return groups

    def _place(self, category: str) -> int:
        return list(dict.fromkeys(question.category for question in self.suite.questions)).index(category)

    def passes(self, case: Case) -> Iterator[tuple[int, Group]]:
        """Repeat and group, in the order in which they are measured."""
        groups = self.groups(case)
        return ((repeat, group) for repeat in range(self.repeats) for group in groups)


def rotated(arms: Sequence[T], by: int) -> list[T]:
    """The arms in turn, each first as often as the others, so that none always follows the same one."""
    at = by % len(arms)
    return [*arms[at:], *arms[:at]]
