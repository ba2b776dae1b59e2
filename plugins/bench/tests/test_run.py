"""A whole run: fairness, counting, equality, exposure of what is wrong or slow, and going on after an interruption."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fastllm_core import ConfigError, RequestError
from fastllm_plugin_bench import measure
from fastllm_plugin_bench.record import read
from fastllm_plugin_bench.session import Wishes, session

FIXED = {"draft.controller": "fixed", "draft.length": 3, "device": "cpu", "dtype": "float32"}


def wishes(model: str, folder: Path, methods: str, **more: Any) -> Wishes:
    overrides = {**FIXED, "model": model, **more.pop("overrides", {})}
    given = {"limit": 3, "repeats": 2, "max_new_tokens": 16, **more}
    return Wishes(methods=methods, output=folder, overrides=overrides, **given)


def arms(report: dict[str, Any], case: int = 0) -> dict[str, Any]:
    return {arm["label"]: arm for arm in report["cases"][case]["arms"]}


def untimed(value: Any) -> Any:
    """A report without what a clock or a memory meter says."""
    timed = (
        "seconds", "tokens_per_s", "prompt_s", "ratio", "whole_ratio", "by_repeat", "time", "forward_time", "cost",
        "predicted", "memory", "limit", "created", "against", "load_at_start",
    )  # fmt: skip
    if isinstance(value, dict):
        return {key: untimed(item) for key, item in value.items() if key not in timed}
    return [untimed(item) for item in value] if isinstance(value, list) else value


def test_counters_agree_with_an_independent_recount(model: str, methods: list[str], tmp_path: Path) -> None:
    """From the lines of the record, with none of the plugin's counting code."""
    report = session(wishes(model, tmp_path / "out", "echo", batches=(1, 2)))
    lines = [json.loads(line) for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines()[1:]]
    for case in (0, 1):
        for label, arm in arms(report, case).items():
            rows = [
                row for line in lines if (line["case"], line["arm"]) == (case, label) for row in line["run"]["rows"]
            ]
            steps = [step for row in rows for step in row["steps"]]
            assert arm["speed"]["overall"]["tokens"] == sum(len(tokens) for _, tokens, _, _ in steps) == 16 * len(rows)
            assert arm["row_rounds"] == len(steps)
            drafted: Counter[int] = Counter()
            accepted: Counter[int] = Counter()
            for _, _, levels, kept in steps:
                drafted.update(dict(enumerate(levels)))
                accepted.update(range(kept))
            assert arm["drafted_at"] == [drafted[i] for i in range(len(arm["drafted_at"]))]
            assert arm["accepted_at"] == [accepted[i] for i in range(len(arm["drafted_at"]))]
            assert arm["speed"]["overall"]["per_round"] == pytest.approx(16 * len(rows) / len(steps))
    assert sum(arms(report)["echo"]["accepted_at"]) > 0


def test_every_job_is_measured_in_turn_by_every_method(model: str, methods: list[str], tmp_path: Path) -> None:
    session(wishes(model, tmp_path / "out", "echo,echo:draft.length=1", limit=4))
    done = read(tmp_path / "out" / "events.jsonl")
    labels = ["plain", "echo", "echo:draft.length=1"]
    trios = [done[i : i + 3] for i in range(0, len(done), 3)]
    assert all({job.arm for job in trio} == set(labels) for trio in trios)
    assert all(len({(job.repeat, job.group, job.turn) for job in trio}) == 1 for trio in trios)
    assert all(len({job.prompt_tokens for job in trio}) == 1 for trio in trios)
    assert {trio[0].arm for trio in trios} == set(labels)
    assert {job.turn for job in done} == {0, 1}


def test_a_method_that_drops_a_token_is_exposed(model: str, methods: list[str], tmp_path: Path) -> None:
    report = session(wishes(model, tmp_path / "out", "echo,dropping"))
    found = arms(report)
    assert found["echo"]["status"] == "identical"
    assert found["dropping"]["status"] == "FAILED"
    first = found["dropping"]["equality"]["first"]
    assert not first["near_tie"]
    assert first["other"][0] == first["plain"][1]  # the text goes on one token too early
    for form in ("report.md", "report.html"):
        text = (tmp_path / "out" / form).read_text()
        assert "FAILED" in text
        assert f"token {first['position'] + 1}" in text


def test_a_slow_method_is_exposed_with_its_reason(model: str, methods: list[str], tmp_path: Path) -> None:
    slow = arms(session(wishes(model, tmp_path / "out", "slow", repeats=3)))["slow"]
    ratio = slow["speed"]["overall"]["ratio"]
    assert ratio["high"] < 1
    assert slow["status"] == "identical"
    assert slow["limit"].startswith("Slower than plain decoding")
    assert slow["cost"]["draft"] > 1


def test_a_method_that_crashes_fails_alone(model: str, methods: list[str], tmp_path: Path) -> None:
    found = arms(session(wishes(model, tmp_path / "out", "crashing,echo")))
    assert (found["crashing"]["status"], found["echo"]["status"]) == ("FAILED", "identical")
    assert "out of ideas" in found["crashing"]["verdict"]


def test_a_run_that_was_killed_goes_on_to_the_same_report(
    model: str, methods: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = session(wishes(model, tmp_path / "whole", "echo,crashing", batches=(1, 2)))
    record = measure.Record.add
    left = [13]

    def add(self: Any, measured: Any) -> None:
        if not left[0]:
            with self.path.open("a") as file:
                file.write('{"case":0,"repeat":')  # the line that the kill left half written
            raise KeyboardInterrupt
        left[0] -= 1
        record(self, measured)

    with monkeypatch.context() as patch:
        patch.setattr(measure.Record, "add", add)
        with pytest.raises(KeyboardInterrupt):
            session(wishes(model, tmp_path / "killed", "echo,crashing", batches=(1, 2)))
    before = (tmp_path / "killed" / "events.jsonl").read_bytes()
    resumed = session(wishes(model, tmp_path / "killed", "echo,crashing", batches=(1, 2)))
    after = (tmp_path / "killed" / "events.jsonl").read_bytes()
    assert after.startswith(before[: before.rfind(b"\n") + 1])
    assert untimed(resumed) == untimed(whole)
    keys = [[job.key for job in read(tmp_path / name / "events.jsonl")] for name in ("whole", "killed")]
    assert keys[0] == keys[1]


def test_events_of_another_benchmark_are_not_mixed_in(model: str, methods: list[str], tmp_path: Path) -> None:
    session(wishes(model, tmp_path / "out", "echo", limit=1, repeats=1))
    with pytest.raises(RequestError, match=r"holds the events of another benchmark.*--fresh"):
        session(wishes(model, tmp_path / "out", "echo", limit=1, repeats=2))
    session(wishes(model, tmp_path / "out", "echo", limit=1, repeats=2, fresh=True))


def test_prompts_longer_than_the_context_are_counted_and_skipped(
    model: str, methods: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "mine.jsonl"
    rows = [{"id": "long", "prompt": "x" * 250}, {"id": "short", "turns": ["hello", "y" * 240]}]
    path.write_text("\n".join(map(json.dumps, rows)))
    report = session(wishes(model, tmp_path / "out", "plain", suite=str(path), limit=None, repeats=1))
    assert report["suite"]["skipped"] == {"long": 250, "short": 5 + 16 + 2 + 240}
    assert [job.questions for job in read(tmp_path / "out" / "events.jsonl")] == [("short",)]


def test_sampled_texts_are_repeatable_and_not_called_wrong(model: str, methods: list[str], tmp_path: Path) -> None:
    report = session(wishes(model, tmp_path / "out", "echo", temperatures=(1.0,)))
    assert arms(report)["echo"]["status"] == "identical"  # the match rule: a function of the seed
    done = read(tmp_path / "out" / "events.jsonl")
    texts: dict[Any, set[Any]] = {}
    for job in done:
        assert job.run is not None
        tokens = tuple(token for step in job.run.rows[0].steps for token in step.tokens)
        texts.setdefault((job.group, job.turn), set()).add(tokens)
    assert all(len(same) == 1 for same in texts.values())


def test_methods_that_nobody_named_may_be_impossible(
    model: str, methods: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTLLM_PLUGINS", "echo,speculative")
    report = session(wishes(model, tmp_path / "out", "all", limit=1, repeats=1))
    assert list(arms(report)) == ["plain", "echo"]
    assert "draft_model: must be given" in report["absent"]["speculative"]
    with pytest.raises(ConfigError, match="draft_model: must be given"):
        session(wishes(model, tmp_path / "other", "speculative", limit=1, repeats=1))


def test_a_batch_that_the_engine_cannot_hold_is_not_applicable(model: str, methods: list[str], tmp_path: Path) -> None:
    report = session(wishes(model, tmp_path / "out", "echo,echo:engine.max_rows=1", batches=(2,), limit=2, repeats=1))
    assert arms(report)["echo:engine.max_rows=1"]["status"] == "not applicable"
    assert arms(report)["echo"]["status"] == "identical"
