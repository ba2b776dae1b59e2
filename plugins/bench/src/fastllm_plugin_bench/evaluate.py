"""From raw events to a report: speeds with intervals, equality, costs and reasons."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from .arm import Arm
from .choice import PLAIN
from .cost import Cost, Rounds, cost_of, limit_of
from .equality import Decode, Equality
from .measure import Bench
from .plan import Case
from .record import Measured
from .recount import Counts, Limit
from .report import FORMAT, OVERALL, ArmReport, CaseReport, Speed
from .statistics import Pair, Ratio, quotient, speed_ratio

OURS: Final = "fastllm"
"""The kind of arm that promises plain decoding's text."""

Where = tuple[int, int, int]
"""Repeat, group and turn of a job."""


def build(bench: Bench, about: Mapping[str, Any], absent: Mapping[str, str], decode: Decode) -> dict[str, Any]:
    """The report of what has been recorded so far, ready for JSON.

    about: model, hardware, versions.  absent: why an arm could not be made, by label.
    """
    plan = bench.plan
    cases = [_case(bench, number, case, decode) for number, case in enumerate(plan.cases)]
    return {
        "format": FORMAT,
        **about,
        "suite": {
            "name": plan.suite.name,
            "hash": plan.suite.hash,
            "questions": len(plan.suite.questions),
            "skipped": dict(plan.skipped),
        },
        "plan": {
            "repeats": plan.repeats,
            "max_new_tokens": plan.max_new_tokens,
            "seed": plan.seed,
            "ignore_eos": plan.ignore_eos,
        },
        "absent": dict(absent),
        "cases": [_plain_data(case) for case in cases],
    }


def _plain_data(case: CaseReport) -> dict[str, Any]:
    data = asdict(case)
    for arm in data["arms"]:
        if arm["equality"] is not None:
            arm["equality"]["unexplained"] = arm["equality"]["differing"] - arm["equality"]["near_ties"]
    return data


def _case(bench: Bench, number: int, case: Case, decode: Decode) -> CaseReport:
    jobs: dict[str, dict[Where, Measured]] = defaultdict(dict)
    for done in bench.record.done.values():
        if done.case == number:
            jobs[done.arm][done.repeat, done.group, done.turn] = done
    categories = {group.index: group.category for group in bench.plan.groups(case)}
    reports = [_Arm(bench, case, arm, jobs, categories, decode).report() for arm in bench.arms]
    sizes = [len(job.questions) for job in jobs[PLAIN].values()]
    return CaseReport(case.batch, case.temperature, sum(sizes) / max(len(sizes), 1), reports)


class _Arm:
    """One arm's jobs of a case, beside plain decoding's."""

    def __init__(
        self,
        bench: Bench,
        case: Case,
        arm: Arm,
        jobs: Mapping[str, Mapping[Where, Measured]],
        categories: Mapping[int, str],
        decode: Decode,
    ) -> None:
        self.bench, self.case, self.arm, self.categories, self.decode = bench, case, arm, categories, decode
        self.all_jobs, self.jobs, self.plain = jobs, jobs.get(arm.label, {}), jobs.get(PLAIN, {})
        self.limit: Limit = bench.limit

    def report(self) -> ArmReport:
        about = self.arm.describe()
        unable = self.arm.unable(self.case.batch, self.case.temperature)
        if unable is not None:
            return ArmReport(self.arm.label, self.arm.kind, about, "not applicable", unable)
        error = next((job.error for job in self.jobs.values() if job.error), None)
        if error is not None:
            return ArmReport(self.arm.label, self.arm.kind, about, "FAILED", f"failed: {error}")
        if not self.jobs:
            return ArmReport(self.arm.label, self.arm.kind, about, "not run", "not run yet")
        return self._measured(about)

    def _measured(self, about: Mapping[str, Any]) -> ArmReport:
        names = list(dict.fromkeys(self.categories[key[1]] for key in self.jobs))
        speed = {name: self._speed(name) for name in (*names, OVERALL)}
        counts = self._counts(self.jobs)
        rounds, plain = _rounds(self.jobs), _rounds(self.plain)
        cost = None if self.arm.label == PLAIN else cost_of(counts, rounds, plain)
        equality = None if self.arm.label == PLAIN else self._equality()
        status, verdict = self._verdict(equality, about)
        return ArmReport(
            self.arm.label,
            self.arm.kind,
            about,
            status,
            verdict,
            speed=speed,
            by_repeat=self._by_repeat(),
            equality=equality,
            drafted_at=counts.drafted_at,
            accepted_at=counts.accepted_at,
            row_rounds=counts.row_rounds,
            rounds=rounds.count if rounds else None,
            time=_sum_time([job.run.time for job in self.jobs.values() if job.run]),
            forward_time=_sum_time([job.run.forward_time for job in self.jobs.values() if job.run]),
            against=self._against(),
            resumed=_resumed(self.jobs),
            cost=cost,
            predicted=None if cost is None else cost.predicted,
            memory=self._memory(),
            limit="" if self.arm.label == PLAIN else self._limit(cost, speed[OVERALL].ratio),
        )

    def _limit(self, cost: Cost | None, ratio: Ratio | None) -> str:
        draft = self.arm.describe().get("config", {}).get("draft", {})
        controlled = draft.get("controller") != "fixed"
        return limit_of(cost, ratio.value if ratio else None, controlled=controlled)

    def _against(self) -> dict[str, Ratio]:
        """A method of fastllm beside every peer, job by job."""
        if self.arm.kind != OURS:
            return {}
        peers = [arm.label for arm in self.bench.arms if arm.kind != OURS]
        ratios = {label: speed_ratio(self._pairs(self.jobs, self.all_jobs.get(label, {}))[0]) for label in peers}
        return {label: ratio for label, ratio in ratios.items() if ratio is not None}

    def _in(self, category: str) -> dict[Where, Measured]:
        return {key: job for key, job in self.jobs.items() if category in (OVERALL, self.categories[key[1]])}

    def _counts(self, jobs: Mapping[Where, Measured]) -> Counts:
        counts = Counts()
        for job in jobs.values():
            if job.run is not None:
                counts.add(job.run, self.limit)
        return counts

    def _speed(self, category: str) -> Speed:
        jobs = self._in(category)
        counts = self._counts(jobs)
        decode, whole = self._pairs(jobs, self.plain)
        plain = self.arm.label == PLAIN
        return Speed(
            len(jobs),
            counts.tokens,
            counts.tokens_per_s,
            counts.prompt_seconds / len(jobs),
            counts.per_round,
            None if plain else speed_ratio(decode),
            None if plain else speed_ratio(whole),
        )

    def _pairs(self, jobs: Mapping[Where, Measured], others: Mapping[Where, Measured]) -> tuple[list[Pair], list[Pair]]:
        """Jobs beside another arm's of the same prompt and repeat: after the prompt, and in whole."""
        decode, whole = [], []
        for key, job in jobs.items():
            base = others.get(key)
            if base is None or base.run is None or job.run is None:
                continue
            mine, yours = self._counts({key: job}), self._counts({key: base})
            unit = key[1:]
            decode.append(
                Pair(unit, mine.decode_tokens, mine.decode_seconds, yours.decode_tokens, yours.decode_seconds)
            )
            whole.append(Pair(unit, mine.tokens, mine.seconds, yours.tokens, yours.seconds))
        return decode, whole

    def _by_repeat(self) -> list[float]:
        found = []
        for repeat in sorted({key[0] for key in self.jobs}):
            jobs = {key: job for key, job in self.jobs.items() if key[0] == repeat}
            ratio = quotient(self._pairs(jobs, self.plain)[0])
            found += [ratio] if ratio is not None and self.arm.label != PLAIN else []
        return found

    def _equality(self) -> Equality:
        equality = Equality()
        for key, job in sorted(self.jobs.items(), key=lambda pair: pair[0]):
            base = self.plain.get(key)
            if base is None or base.run is None or job.run is None:
                continue
            for question, plain, other in zip(job.questions, base.run.rows, job.run.rows, strict=True):
                equality.add(question, key[2], plain, other, self.limit, self.decode)
        return equality

    def _verdict(self, equality: Equality | None, about: Mapping[str, Any]) -> tuple[str, str]:
        """Status and what to say of the texts."""
        if equality is None:
            return "reference", "the reference"
        differs = f"{equality.differing} of {equality.compared} texts differ"
        if not equality.differing:
            lossy = f", though it is lossy: {', '.join(about['lossy'])}" if about.get("lossy") else ""
            return "identical", f"all {equality.compared} texts identical{lossy}"
        if about.get("lossy"):
            return "lossy", f"{differs}; it is lossy: {', '.join(about['lossy'])}"
        if self.case.temperature > 0:
            return "sampled", f"{differs}: other draws, of which equality says nothing"
        ties = f"{equality.near_ties} at near-ties" if equality.near_ties else "none at a near-tie"
        if not equality.unexplained:
            return "near-ties", f"{differs}, all at near-ties, where rounding decides"
        if self.arm.kind != OURS:
            return "differs", f"{differs} from fastllm's plain decoding, {ties}"
        return "FAILED", f"{differs}, {ties}"

    def _memory(self) -> int:
        notes = self.bench.notes
        return notes.weights + notes.loaded.get(self.arm.label, 0) + max(job.memory for job in self.jobs.values())


def _rounds(jobs: Mapping[Where, Measured]) -> Rounds | None:
    runs = [job.run for job in jobs.values() if job.run is not None and job.run.rounds and job.run.time]
    return Rounds.of(sum(run.rounds or 0 for run in runs), _sum_time([run.time for run in runs]))


def _resumed(jobs: Mapping[Where, Measured]) -> float | None:
    runs = [job.run for job in jobs.values() if job.run is not None]
    resumed = sum(run.resumed_rows for run in runs)
    return resumed / sum(run.verified_rows for run in runs) if resumed else None


def _sum_time(times: Sequence[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = defaultdict(float)
    for time in times:
        for phase, seconds in time.items():
            total[phase] += seconds
    return dict(total)
