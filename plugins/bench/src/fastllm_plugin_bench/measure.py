"""Running a plan: every arm on every prompt, one after the other, each job recorded as soon as it is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fastllm_core import FastllmError

from .arm import Arm, Job
from .choice import PLAIN
from .device import used, watched
from .dialogue import Asked, Dialogue
from .plan import Case, Group, Plan, rotated
from .record import Measured, Notes, Record
from .recount import Limit, tokens_of

if TYPE_CHECKING:
    from fastllm_core import Pipeline

Listener = Callable[[Measured], None]
"""Told of each job, those of an earlier run included."""


class Bench:
    """A plan, the arms that carry it out, and the record of what came of it."""

    def __init__(self, plan: Plan, arms: Sequence[Arm], owner: Pipeline, record: Record, notes: Notes) -> None:
        """arms: plain decoding first.  owner: its pipeline, which has the tokenizer and the weights."""
        self.plan, self.arms, self.owner, self.record, self.notes = plan, arms, owner, record, notes
        self.eos = frozenset[int]() if plan.ignore_eos else owner.target.eos_token_ids
        self.limit = Limit(self.eos, plan.max_new_tokens)
        self.broken = {(done.case, done.arm) for done in record.done.values() if done.error}
        self._warm: set[tuple[Case, str]] = set()

    def run(self, listener: Listener = lambda measured: None, until: Callable[[], bool] = lambda: False) -> None:
        """Carry out what the record does not have yet. until: asked between groups, whether to stop here."""
        for number, case in enumerate(self.plan.cases):
            able = [arm for arm in self.arms if arm.unable(case.batch, case.temperature) is None]
            for repeat, group in self.plan.passes(case):
                if until():
                    return
                self._talk(number, repeat, group, able, listener)

    def _talk(self, number: int, repeat: int, group: Group, arms: Sequence[Arm], listener: Listener) -> None:
        """One group's conversations, by every arm."""
        dialogue = Dialogue(self.owner, self.plan, group)
        for turn in range(group.turns):
            asked = dialogue.ask(turn)
            if not asked:
                return
            for arm in rotated(arms, repeat + group.index):
                if (number, arm.label) not in self.broken:
                    listener(self._measured(number, repeat, group, turn, arm, asked))
            plain = self.record.done[number, repeat, group.index, turn, PLAIN].run
            assert plain is not None
            dialogue.answered(asked, [self.limit.cut(tokens_of(row)) for row in plain.rows])

    def _measured(self, number: int, repeat: int, group: Group, turn: int, arm: Arm, asked: Asked) -> Measured:
        key = (number, repeat, group.index, turn, arm.label)
        if key in self.record.done:
            return self.record.done[key]
        measured = self._job(key, arm, asked)
        self.record.add(measured)
        if measured.error is not None:
            self.broken.add((number, arm.label))
        return measured

    def _job(self, key: tuple[int, int, int, int, str], arm: Arm, asked: Asked) -> Measured:
        """One arm's turn. Whatever it raises is its failure and not the benchmark's, unless it is plain decoding."""
        case = self.plan.cases[key[0]]
        job = Job(
            tuple(ids for _, ids in asked),
            self.plan.max_new_tokens,
            self.owner.request([0], temperature=case.temperature).sampling,
            self.plan.seed + key[2] * case.batch,
            self.eos,
        )
        who = tuple(question.id for question, _ in asked)
        lengths = tuple(len(prompt) for prompt in job.prompts)
        device = self.owner.device.device
        try:
            self._warm_up(case, arm, job)
            with watched(device) as memory:
                run = arm.run(job)
        except Exception as error:
            if arm.label == PLAIN:
                raise
            return Measured(*key, who, lengths, None, error=told(error))
        return Measured(*key, who, lengths, run, memory.grown)

    def _warm_up(self, case: Case, arm: Arm, job: Job) -> None:
        """The first job of each arm is run before it counts: caches are cold, kernels unprepared, lengths unlearnt."""
        if (case, arm.label) in self._warm:
            return
        self._warm.add((case, arm.label))
        device = self.owner.device.device
        before = used(device)
        arm.run(job)
        kept = max(0, used(device) - before)
        self.notes.loaded[arm.label] = self.notes.loaded.get(arm.label, 0) + kept


def told(error: Exception) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, FastllmError) else f"{type(error).__name__}: {text}"
