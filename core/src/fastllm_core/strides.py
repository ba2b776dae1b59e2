"""Plain rounds of which a back end runs several in one call, where nobody wants to see each of them.

The way through Python between two rounds takes a tenth of the time of a small model's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .acceptor import ExactAcceptor
from .batch import Batch
from .outcome import on_host
from .rows import Event, ending
from .verifier import TargetVerifier

if TYPE_CHECKING:
    from .company import Company
    from .engine import Parts
    from .network import Network
    from .report import RunReport


STRIDE: Final = 4
"""Plain rounds that are one call."""


def possible(parts: Parts) -> bool:
    """Whether an engine's verifier and acceptor are the core's own, and nobody drafts or observes."""
    watched = parts.drafter is not None or bool(parts.observers)
    return not watched and type(parts.verifier) is TargetVerifier and type(parts.acceptor) is ExactAcceptor


def fits(company: Company, network: Network) -> bool:
    """Whether the next rounds may be one call: rows want only their most likely tokens, and do not end before."""
    if not company.unwatched or not network.at_once(len(company.rows), STRIDE):
        return False
    return all(row.remaining >= STRIDE for row in company.rows)


def run(company: Company, parts: Parts, report: RunReport) -> list[Event]:
    """Some rounds in one call. What has been written behind a text's end is dropped.

    report: the engine's, to which they are added, as to each row's.
    """
    verifier, clock = parts.verifier, parts.clock
    assert isinstance(verifier, TargetVerifier)
    batch = Batch(company.rows, (0,) * len(company.rows), parts.network.device, company.sampling)
    clock.switch("verify")
    said = verifier.go_on(batch, STRIDE)
    clock.switch("accept")
    assert said.close is not None, "a back end that strides says which tokens were close"
    written, ties = on_host(said.likely, said.close)
    clock.switch("rest")
    events = []
    for row, tokens, close in zip(company.rows, written, ties, strict=True):
        kept, reason = ending(row, tokens)
        near = [n for n, tie in enumerate(close[:kept], row.length - row.prompt_length) if tie]
        row.tokens += tokens[:kept]
        row.report.rounds += kept
        row.report.near_ties_at += near
        for each in (row.report, report):
            each.count_plain(kept, len(near))
        events.append(Event(row.id, tuple(tokens[:kept]), reason, row.report if reason else None))
    report.rounds += STRIDE
    parts.cache.commit(batch.root_positions, [len(event.tokens) - 1 for event in events], None)
    return events
