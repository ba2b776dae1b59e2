"""Reports count what really happened and account for all of the time."""

from __future__ import annotations

import json
import random
import time
from collections import Counter, defaultdict
from functools import cache

import pytest
import torch
from transformers import PreTrainedModel

from fastllm_core.batch import Batch, Row
from fastllm_core.clock import PHASES, Clock
from fastllm_core.protocols import Draft, Observer, Scores, Verdict
from fastllm_core.report import RunReport, nodes_by_level
from fastllm_core.request import Request
from fastllm_core.rows import Event
from fastllm_core.testing import Branching, Scripted, tiny_model
from fastllm_core.testing.engines import make_engine

V = 64
RNG = random.Random(2)
REQUESTS = [
    Request(tuple(RNG.randrange(V) for _ in range(size)), new) for size, new in ((3, 9), (10, 14), (1, 5), (6, 1))
]


@cache
def model() -> PreTrainedModel:
    return tiny_model()


def guesses(row: Row, count: int) -> list[int]:
    """The model's own token, spoilt here and there."""
    with torch.inference_mode():
        ids = list(row.tokens)
        for _ in range(random.Random(row.length).randrange(count + 1)):
            ids.append(int(model()(torch.tensor([ids])).logits[0, -1].argmax()))
    return [(token + (i % 3 == 2)) % V for i, token in enumerate(ids)][row.length :]


class Recount(Observer):
    """Counts the same by itself, from what the roles hand to each other."""

    def __init__(self) -> None:
        self.rounds: Counter[int] = Counter()
        self.drafted: Counter[tuple[int, int]] = Counter()
        self.accepted: Counter[tuple[int, int]] = Counter()
        self.batches = 0

    def observe(self, batch: Batch, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        self.batches += 1
        for b, row in enumerate(batch.rows):
            self.rounds[row.id] += 1
            depth: list[int] = []
            for node in range(int(draft.lengths[b])):
                parent = node - 1 if draft.parents is None else int(draft.parents[b, node])
                depth.append(0 if parent < 0 else depth[parent] + 1)
                self.drafted[row.id, depth[-1]] += 1
            for node in verdict.path[b, : int(verdict.accepted[b])].tolist():
                self.accepted[row.id, depth[node]] += 1


@pytest.mark.parametrize("drafter", [Scripted(guesses), Branching(guesses, branches=2)], ids=["chain", "tree"])
def test_counters_equal_an_independent_recount(drafter: Scripted | Branching) -> None:
    recount = Recount()
    engine = make_engine(model(), drafter, observers=[recount], max_rows=3)
    ids = {engine.add(request): request for request in REQUESTS}
    tokens: Counter[int] = Counter()
    told: defaultdict[int, list[Event]] = defaultdict(list)
    reports: dict[int, RunReport] = {}
    while not engine.idle:
        for event in engine.step():
            tokens[event.row] += len(event.tokens)
            told[event.row].append(event)
            assert (event.report is None) == (event.finish_reason is None)
            if event.report:
                reports[event.row] = event.report
    for row, request in ids.items():
        report = reports[row]
        assert sum(sum(event.drafted) for event in told[row]) == report.drafted
        levels = range(len(report.accepted_at))
        assert [sum(event.accepted > level for event in told[row]) for level in levels] == report.accepted_at
        assert (report.tokens, report.prompt_tokens) == (tokens[row], len(request.prompt))
        assert report.rounds == recount.rounds[row]
        assert report.drafted_at == [recount.drafted[row, i] for i in range(len(report.drafted_at))]
        assert report.accepted_at == [recount.accepted[row, i] for i in range(len(report.drafted_at))]
        assert report.drafted == sum(n for (r, _), n in recount.drafted.items() if r == row)
        assert report.tokens_per_round == tokens[row] / recount.rounds[row]
    total = engine.report
    assert total.rounds == recount.batches < sum(recount.rounds.values())
    assert total.tokens == sum(tokens.values())
    assert total.prompt_tokens == sum(len(request.prompt) for request in REQUESTS)
    assert total.drafted == sum(recount.drafted.values()) > 0
    assert total.accepted == sum(recount.accepted.values()) > 0


def test_time_is_accounted_for() -> None:
    engine = make_engine(model(), Scripted(guesses))
    engine.add(REQUESTS[1])
    start = time.perf_counter()
    reports = []
    while not engine.idle:
        reports += [event.report for event in engine.step() if event.report]
    wall = time.perf_counter() - start
    (report,) = reports
    for one in (report, engine.report):
        assert set(one.time) == set(one.forward_time) == set(PHASES)
        assert one.seconds <= wall
        assert sum(one.time.values()) == pytest.approx(one.seconds, rel=0.05, abs=2e-3)
        assert sum(one.time.values()) == pytest.approx(wall, rel=0.1, abs=5e-3)
        assert all(0 <= one.forward_time[phase] <= one.time[phase] for phase in PHASES)
        assert one.time["draft"] > 0
        assert one.forward_time["verify"] > 0
        assert one.forward_time["prefill"] > 0
        assert 0 < one.outside_forwards < 1


def test_a_slow_reader_of_events_costs_no_phase() -> None:
    engine = make_engine(model())
    engine.add(REQUESTS[2])
    while not engine.idle:
        engine.step()
        time.sleep(0.05)
    assert engine.report.seconds < 5 * 0.05
    assert sum(engine.report.time.values()) == pytest.approx(engine.report.seconds)


def test_nodes_by_level() -> None:
    lengths = torch.tensor([3, 0, 5])
    tokens = torch.zeros(3, 5, dtype=torch.long)
    assert nodes_by_level(Draft(tokens, lengths), [3, 0, 5]) == [(1,) * 3, (), (1,) * 5]
    parents = torch.tensor([[-1, -1, 0, -1, -1], [-1] * 5, [-1, 0, 0, 2, -1]])
    assert nodes_by_level(Draft(tokens, lengths, parents), [3, 0, 5]) == [(2, 1), (), (2, 2, 1)]


def test_counting_and_figures() -> None:
    report = RunReport(seconds=2.0, rounds=2)
    report.count([1, 1, 1], 2, 3)
    report.count([1], 0, 1)
    assert (report.drafted_at, report.accepted_at) == ([2, 1, 1], [1, 1, 0])
    assert (report.drafted, report.accepted, report.tokens) == (4, 2, 4)
    assert (report.tokens_per_s, report.tokens_per_round) == (2.0, 2.0)
    report.time.update(prefill=5.0, verify=3.0, rest=1.0)
    report.forward_time.update(prefill=4.0, verify=2.0)
    assert report.outside_forwards == 0.5
    assert report.summary() == (
        "4 tokens in 2.00 s (2 tokens/s); 2.00 tokens/round; 2 of 4 drafted tokens accepted; "
        "seconds: prefill 5.00, verify 3.00, rest 1.00"
    )
    assert json.loads(json.dumps(report.to_dict()))["accepted_at"] == [1, 1, 0]
    assert (report.verified_rows, report.resumed_rows, report.resumed_share) == (6, 0, 0)
    report.count([1, 1], 0, 1, resumed=True)
    assert (report.verified_rows, report.resumed_rows, report.resumed_share) == (9, 3, 3 / 9)
    assert "; 33% of verified rows resumed behind the first layers; " in report.summary()


def test_what_is_lossy_is_called_so() -> None:
    report = RunReport(tokens=4, seconds=2.0, lossy=("typical acceptance",))
    assert report.summary() == "4 tokens in 2.00 s (2 tokens/s); lossy: typical acceptance"
    assert report.to_dict()["lossy"] == ["typical acceptance"]
    assert RunReport().to_dict()["lossy"] == []


def test_an_empty_report_divides_by_nothing() -> None:
    report = RunReport()
    assert (report.tokens_per_s, report.tokens_per_round, report.outside_forwards) == (0, 0, 0)
    assert report.resumed_share == 0
    assert report.summary() == "0 tokens in 0.00 s (0 tokens/s)"


def test_inner_phases_take_their_time_away_from_outer_ones() -> None:
    clock = Clock()
    with clock.phase("draft"):
        time.sleep(0.01)
        with clock.phase("prefill"), clock.forward():
            time.sleep(0.02)
    phases, forwards = clock.snapshot()
    assert phases["draft"] == pytest.approx(0.01, abs=0.008)
    assert phases["prefill"] == pytest.approx(0.02, abs=0.01)
    assert forwards["prefill"] == pytest.approx(0.02, abs=0.01)
    assert forwards["draft"] == 0
