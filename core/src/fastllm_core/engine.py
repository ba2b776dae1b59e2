"""The decode loop: a stepper that rows join and leave between rounds.

    while any row is live:
        draft   = drafter.propose(batch)
        scores  = verifier.score(batch, draft)
        verdict = acceptor.decide(batch, draft, scores)
        commit: caches, tokens, stop rules, drafter.observe, events

Not thread-safe: one thread at a time may call it (`Pipeline` holds a lock around each call).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import torch

from . import joining, logprobs, strides
from .batch import Batch
from .clock import Clock
from .company import Company
from .controllers import Controller, Round
from .deciding import Decision, decide
from .errors import RequestError
from .inference import without_gradients
from .outcome import outcome_of
from .processors import absorbed, refuse_sharing
from .protocols import Acceptor, Draft, Drafter, KVCache, Observer, Scores, Verifier, has_own
from .randomness import fresh_seed, sample_seed
from .report import Levels, RunReport, nodes_by_level
from .request import Request
from .rows import Event, LiveRow, SharedPrompt, ending
from .slots import Slots
from .steering import Steering

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .network import Network

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Parts:
    """What an engine is made of."""

    network: Network
    cache: KVCache
    verifier: Verifier
    acceptor: Acceptor
    controller: Controller
    clock: Clock
    drafter: Drafter | None = None
    drafter_caches: Sequence[KVCache] = ()
    """Caches of the drafter's networks, whose rows follow the target's."""
    foreign_caches: Sequence[KVCache] = ()
    """Those whose rows hold other tokens than the target's: moved and released with them, and never cut."""
    observers: Sequence[Observer] = ()
    tokenizer: PreTrainedTokenizerBase | None = None
    lossy: tuple[str, ...] = ()
    """What changes the text or its distribution, for the reports."""


class Engine:
    """Decodes many requests at once. Rows in slots `0..ready-1` take part in rounds, later ones are being prefilled."""

    def __init__(
        self,
        parts: Parts,
        *,
        draft_length: int,
        context_length: int | None,
        max_rows: int = 16,
        prefill_chunk: int = 256,
        exact: bool = False,
    ) -> None:
        """parts: the roles and their surroundings.  draft_length: the most tokens a round drafts.

        context_length: tokens of prompt and output together that the model can take; None if unlimited.
        max_rows: rows that are live at once, the others wait.  prefill_chunk: prompt tokens that one forward reads.
        exact: rounding cannot change a text, so near-ties need not be counted.
        """
        self.draft_length = draft_length
        self._report = RunReport(lossy=parts.lossy)
        self.parts = parts
        self.context_length = context_length
        self.max_rows = max_rows
        self.prefill_chunk = prefill_chunk
        self.exact = exact
        self._waiting: deque[LiveRow] = deque()
        self._slots = Slots((parts.cache, *parts.drafter_caches, *parts.foreign_caches))
        self._ids = 0
        self._stepping = False
        self._cancelled: list[int] = []
        self._company: Company | None = None
        # A round may write rows beyond the last token: its padding, and rejected nodes.
        self._margin = draft_length + 2

    @property
    def parts(self) -> Parts:
        """The roles. May be exchanged while the engine is idle."""
        return self._parts

    @parts.setter
    def parts(self, parts: Parts) -> None:
        self._parts, self._steering, self._company = parts, Steering(parts.controller, self.draft_length), None
        self._observers = (*([parts.drafter] if parts.drafter else []), *parts.observers)
        self._strides = strides.possible(parts)
        self._foretells = has_own("expected_acceptance", parts.drafter, Drafter)
        parts.clock.restart()  # the time until now was nobody's
        self._learned = parts.clock.of_rounds()
        # The clock's own, so that they need not be copied in every step.
        self._report.time, self._report.forward_time = parts.clock.phases, parts.clock.forwards

    @property
    def report(self) -> RunReport:
        """Figures of everything that this engine has done; asked again, the seconds are those until then."""
        self._report.seconds = sum(self._report.time.values())
        return self._report

    @property
    def idle(self) -> bool:
        """No row is live or waiting."""
        return not self._slots.rows and not self._waiting

    def add(self, request: Request) -> int:
        """Queue a request; it joins at the next step that has room. Returns the row's id.

        Raises ContextLengthError if prompt and new tokens do not fit, before any work is done.
        """
        return self.add_samples(request, 1)[0]

    def add_samples(self, request: Request, count: int) -> list[int]:
        """Queue several rows of one prompt, which is read once as long as one of them is there to copy from.

        The first has the request's seed, so it is what `add` would give, and the others each another (`sample_seed`).
        Returns their ids. Raises as `add` does.
        """
        if count < 1:
            raise RequestError(f"n must be at least 1, not {count}")
        self.check(request)
        if count > 1:
            refuse_sharing([replace(request) for _ in range(count)], self.parts.network.vocab_size)
        seed = fresh_seed() if request.seed is None else request.seed
        request = replace(request, controls=absorbed(request))
        shared = SharedPrompt(unread=count) if count > 1 else None
        rows = [self._new_row(request, sample_seed(seed, index), shared) for index in range(count)]
        self._waiting += rows
        return [row.id for row in rows]

    def holds(self, row_id: int) -> bool:
        """Whether a row is live or waiting."""
        return any(row.id == row_id for row in (*self._slots.rows, *self._waiting))

    @torch.inference_mode()
    def cancel(self, row_id: int) -> None:
        """Drop a row, wherever it is; an unknown or finished id is fine.

        Called within a step (by an observer, or by the garbage collector that closes a stream) it waits for its end.
        """
        if self._stepping:
            self._cancelled.append(row_id)
            return
        for row in [row for row in self._waiting if row.id == row_id]:
            self._waiting.remove(row)
            self._steering.release(row_id)
        for row in [row for row in self._slots.rows if row.id == row_id]:
            self._release(row)

    def step(self) -> list[Event]:
        """Let rows join, read a bounded piece of their prompts, and run one round over all that are ready.

        If a plugin raises, or the person interrupts, the rows at work are freed, the engine stays usable, and the
        exception goes on to the caller.
        """
        if self._stepping:
            raise RuntimeError("a step was asked for within a step: plugins must not drive the engine that calls them")
        try:
            self._stepping = True  # within the try: an interrupt must not leave it set
            self._parts.clock.restart()
            return self._step()
        finally:
            self._stepping = False
            while self._cancelled:
                self.cancel(self._cancelled.pop())
            self._parts.clock.stop()

    @without_gradients
    def _step(self) -> list[Event]:
        if self._waiting:
            self._admit()
        company = self._company
        if company is None or len(company.rows) < len(self._slots.rows):  # else it is last round's, to a row
            self._prefill()
            ready = self._slots.ready()
            if not ready:
                return []
            company = self._company_of(ready)
        try:
            return self._round(company)
        except BaseException:
            self._free(company.rows)
            raise

    # -- joining ---------------------------------------------------------------------------------------------------

    def check(self, request: Request) -> None:
        """Raise RequestError if the request can never be served."""
        joining.check(request, self.parts, self.context_length)
        others = [row.request for row in (*self._slots.rows, *self._waiting)]
        refuse_sharing([request, *others], self.parts.network.vocab_size)

    def _new_row(self, request: Request, seed: int, shared: SharedPrompt | None) -> LiveRow:
        self._ids += 1
        if request.controller is not None:
            self._steering.assign(self._ids, request.controller)
        return joining.new_row(self._ids, request, seed, shared, self.parts)

    def _admit(self) -> None:
        """Give waiting rows the next free slots."""
        while self._waiting and len(self._slots.rows) < self.max_rows:
            row = self._waiting.popleft()
            self._slots.join(row)
            row.joined, row.clock_at_join = time.perf_counter(), self.parts.clock.snapshot()
            row.report.prompt_tokens = row.prompt_length
            self._report.prompt_tokens += row.prompt_length
            length = row.prompt_length + row.request.max_new_tokens + self._margin
            self._guarded([row], partial(self._slots.reserve, row, length))

    def _prefill(self) -> None:
        """Read prompts, first come first served; at most two chunks a step, so that running rows never wait long."""
        budget = 2 * self.prefill_chunk
        for row in [row for row in self._slots.rows if not row.ready]:
            source = self._slots.sibling(row)
            if source is not None:
                self._guarded([row], partial(joining.copy_prompt, source, row, self.parts))
            while not row.ready and budget > 0:
                budget -= self._guarded([row], partial(joining.read_chunk, row, self.prefill_chunk, self.parts))

    # -- a round ---------------------------------------------------------------------------------------------------

    def _round(self, company: Company) -> list[Event]:
        at_once = self._strides and strides.fits(company, self._parts.network)
        events = strides.run(company, self._parts, self._report) if at_once else self._one_round(company)
        for event in events:
            if event.finish_reason:
                self._finish(event)
        return events

    def _one_round(self, company: Company) -> list[Event]:
        parts, clock = self._parts, self._parts.clock
        lengths = self._draft_lengths(company)
        limits = self._thresholds(company, lengths)
        batch = Batch(company.rows, lengths, parts.network.device, company.sampling, thresholds=limits)
        draft = self._propose(batch, company)
        clock.switch("verify")
        scores = parts.verifier.score(batch, draft)
        clock.switch("accept")
        decision = (
            decide(parts.acceptor, batch, company.rows, draft, scores, parts.network.dtype)
            if company.controlled
            else Decision(scores, parts.acceptor.decide(batch, draft, scores))
        )
        drafted, committed, ties = outcome_of(batch, draft, decision, None if self.exact else parts.network.dtype)
        clock.switch("rest")
        levels = nodes_by_level(draft, drafted)
        events = self._commit(company, batch, draft, scores, decision, levels, committed)
        if company.asks:
            events = logprobs.told(events, batch, scores, decision)
        self._count(company, levels, committed, ties, events, resumed=scores.resumed)
        if parts.drafter is not None and self._steering.learns:
            self._learn(company, levels, committed)
        return events

    def _company_of(self, rows: list[LiveRow]) -> Company:
        """What is known of the rows, found anew only when they change."""
        if self._company is None or self._company.rows != tuple(rows):
            self._company = Company.of(rows, self.parts.network.device)
        return self._company

    def _draft_lengths(self, company: Company) -> tuple[int, ...]:
        """What the controller wants, within each row's limits: the extra token needs room as well."""
        if self._parts.drafter is None:
            return (0,) * len(company.rows)
        wanted = self._steering.lengths(company.ids, self._expected(company))
        return tuple(
            [
                min(length, row.remaining - 1) if may else 0
                for length, row, may in zip(wanted, company.rows, company.speculates, strict=True)
            ]
        )

    def _expected(self, company: Company) -> list[float] | None:
        """What the drafter expects of each row, if the controller wants to know and the drafter can tell."""
        drafter = self._parts.drafter
        if drafter is None or not (self._foretells and self._steering.weighs):
            return None
        drafting = company.drafting
        if not drafting:
            return None
        self._parts.clock.switch("draft")
        said = drafter.expected_acceptance(drafting)
        self._parts.clock.switch("rest")
        if said is None:
            return None
        expected = dict(zip((row.id for row in drafting), said, strict=True))
        return [expected.get(row, 0.0) for row in company.ids]

    def _thresholds(self, company: Company, lengths: Sequence[int]) -> tuple[float, ...]:
        """Where the controller wants each row's draft to end."""
        if not self._steering.ends_drafts or not any(lengths):
            return ()
        return tuple(self._steering.thresholds(company.ids, company.draws))

    def _propose(self, batch: Batch, company: Company) -> Draft:
        drafter = self._parts.drafter
        if drafter is None or not any(batch.draft_lengths):
            return company.nothing
        self._parts.clock.switch("draft")
        return drafter.propose(batch)

    def _commit(
        self,
        company: Company,
        batch: Batch,
        draft: Draft,
        scores: Scores,
        decision: Decision,
        levels: Sequence[Levels],
        committed: list[list[int]],
    ) -> list[Event]:
        """Append each row's tokens, cut where its text ends, and keep exactly their cache rows."""
        events, counts, verdict = [], [], decision.verdict
        for index, (row, drafted, tokens) in enumerate(zip(company.rows, levels, committed, strict=True)):
            judged = index in decision.ended
            kept, reason = (len(tokens), decision.ended[index]) if judged else ending(row, tokens)
            row.tokens += tokens[:kept]
            report = row.report if reason else None
            events.append(Event(row.id, tuple(tokens[:kept]), reason, report, drafted, len(tokens) - 1))
            counts.append(kept)
        decision.settle(counts)
        nodes = [kept - 1 for kept in counts]
        self._parts.cache.commit(batch.root_positions, nodes, None if draft.parents is None else verdict.path)
        for cache in self._parts.drafter_caches:
            for row in company.rows:
                cache.lengths[row.slot] = min(cache.lengths[row.slot], len(row.tokens) - 1)
        for observer in self._observers:
            observer.observe(batch, draft, scores, verdict)
        return events

    def _count(
        self,
        company: Company,
        levels: Sequence[Levels],
        committed: list[list[int]],
        ties: list[list[bool]],
        events: list[Event],
        *,
        resumed: bool,
    ) -> None:
        """Add the round to every row's report and to the engine's."""
        self._report.rounds += 1
        for row, drafted, tokens, close, event in zip(company.rows, levels, committed, ties, events, strict=True):
            kept, near = len(event.tokens), 0
            row.report.rounds += 1
            if any(close):
                first = row.length - row.prompt_length - kept
                at = [first + index for index, tie in enumerate(close[:kept]) if tie]
                row.report.near_ties_at += at
                near = len(at)
            for report in (row.report, self._report):
                report.count(drafted, len(tokens) - 1, kept, near_ties=near, resumed=resumed)

    def _learn(
        self,
        company: Company,
        levels: Sequence[Levels],
        committed: list[list[int]],
    ) -> None:
        """Tell the controller what the round cost, with what has been done for rounds since the last, and gave."""
        before, self._learned = self._learned, self._parts.clock.of_rounds()
        draft, verify, rest = self._learned
        self._steering.observe(
            Round(
                rows=company.ids,
                drafted=tuple([len(nodes) for nodes in levels]),
                accepted=tuple([len(tokens) - 1 for tokens in committed]),
                draft_seconds=draft - before[0],
                verify_seconds=verify - before[1],
                rest_seconds=rest - before[2],
            )
        )

    # -- leaving ---------------------------------------------------------------------------------------------------

    def _finish(self, event: Event) -> None:
        row = next(row for row in self._slots.rows if row.id == event.row)
        phases, forwards = self.parts.clock.snapshot()
        row.report.seconds = time.perf_counter() - row.joined
        row.report.time = {phase: phases[phase] - row.clock_at_join[0][phase] for phase in phases}
        row.report.forward_time = {phase: forwards[phase] - row.clock_at_join[1][phase] for phase in forwards}
        row.report.controller = self._steering.state(row.id)
        self._release(row)

    def _release(self, row: LiveRow) -> None:
        """Free a row's slot and close the gap, so that ready rows stay in slots 0..ready-1."""
        if row not in self._slots.rows:
            return
        self._company = None
        try:
            if self.parts.drafter:
                self.parts.drafter.release(row)
        finally:
            self._steering.release(row.id)
            self._slots.leave(row)

    def _guarded(self, rows: Sequence[LiveRow], work: Callable[[], T]) -> T:
        """Do some work for rows; if it fails, for whatever reason, free them."""
        try:
            return work()
        except BaseException:
            self._free(rows)
            raise

    def _free(self, rows: Sequence[LiveRow]) -> None:
        with ExitStack() as leaving:  # goes on to the next row if the drafter fails again while it lets one go
            for row in rows:
                leaving.callback(self._release, row)
