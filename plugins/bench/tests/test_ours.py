"""fastllm's own arms, memory, and the judgement of two texts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

import fastllm_core
from fastllm_core import Pipeline
from fastllm_core.testing import tiny_model, tiny_tokenizer
from fastllm_plugin_bench.arm import Job, RowRun, Step
from fastllm_plugin_bench.device import watched
from fastllm_plugin_bench.equality import Equality
from fastllm_plugin_bench.ours import Ours
from fastllm_plugin_bench.recount import Limit, tokens_of

PROMPT = (5, 6, 7)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pipeline() -> Iterator[Pipeline]:
    config = {"method": "plain", "device": "cpu", "dtype": "float32", "engine.max_rows": 4}
    with fastllm_core.load(tiny_model(), tokenizer=tiny_tokenizer(), config=config) as loaded:
        yield loaded


def job(pipeline: Pipeline, *prompts: tuple[int, ...], seed: int = 3, temperature: float = 1.0) -> Job:
    return Job(prompts, 12, pipeline.request([1], temperature=temperature).sampling, seed, frozenset())


def test_every_row_of_a_batch_has_its_own_seed(pipeline: Pipeline) -> None:
    arm = Ours("plain", pipeline)
    both = [tokens_of(row) for row in arm.run(job(pipeline, PROMPT, PROMPT)).rows]
    alone = [tokens_of(arm.run(job(pipeline, PROMPT, seed=seed)).rows[0]) for seed in (3, 4)]
    assert both == alone
    assert both[0] != both[1]


def test_the_split_of_a_job_is_the_job_s_own(pipeline: Pipeline) -> None:
    arm = Ours("plain", pipeline)
    for _ in range(2):
        run = arm.run(job(pipeline, PROMPT, temperature=0.0))
        assert run.rounds == 12
        assert sum(run.time.values()) <= run.seconds
        assert all(0 <= run.forward_time[phase] <= run.time[phase] for phase in run.time)


def test_a_batch_that_does_not_fit_is_refused(pipeline: Pipeline) -> None:
    assert Ours("plain", pipeline).unable(4, 0.0) is None
    assert Ours("plain", pipeline).unable(5, 0.0) == "engine.max_rows is 4"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak of a process cannot be reset")
def test_memory_is_what_a_job_needed_above_what_was_in_use() -> None:
    """In a process of its own: what other tests freed may be given back, or used again, while this one measures."""
    job = """
import mmap, torch
from fastllm_plugin_bench.SOURCE import watched
cpu = torch.device("cpu")
with watched(cpu) as needed, mmap.mmap(-1, 96 << 20) as fresh:
    for start in range(0, len(fresh), 4096):
        fresh[start] = 1
with watched(cpu) as nothing:
    pass
print(needed.grown >> 20, nothing.grown >> 20)
"""
    code = job.replace("SOURCE", watched.__module__.rpartition(".")[2])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    needed, nothing = (int(word) for word in done.stdout.split())
    assert 86 <= needed <= 144
    assert nothing < 16


def row(*tokens: int, ties: tuple[int, ...] = ()) -> RowRun:
    return RowRun([Step(1.0, tokens)], ties)


def test_near_ties_are_told_apart_and_the_worst_is_shown() -> None:
    equality, limit = Equality(), Limit({0}, 9)
    plain = row(1, 2, 3, 4, ties=(1,))
    equality.add("same", 0, plain, row(1, 2, 3, 4), limit, str)
    equality.add("tie", 0, plain, row(1, 9, 9, 9), limit, str)
    assert (equality.differing, equality.near_ties, equality.unexplained) == (1, 1, 0)
    assert equality.first is not None
    assert (equality.first.question, equality.first.near_tie) == ("tie", True)
    equality.add("wrong", 1, plain, row(1, 2, 9, 9), limit, str)
    assert (equality.compared, equality.differing, equality.unexplained) == (3, 2, 1)
    assert (equality.first.question, equality.first.turn, equality.first.position) == ("wrong", 1, 2)


def test_what_comes_after_the_end_is_no_difference_and_a_missing_end_is() -> None:
    equality, limit = Equality(), Limit({0}, 9)
    equality.add("after", 0, row(1, 0), row(1, 0, 5), limit, str)
    assert equality.differing == 0
    equality.add("short", 0, row(1, 2, 3), row(1, 2), limit, str)
    assert equality.first is not None
    assert equality.first.position == 2
