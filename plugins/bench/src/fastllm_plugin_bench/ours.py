"""fastllm's own arms: a pipeline each, all around one copy of the target's weights."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from fastllm_core import Request, load

from .arm import Job, JobRun, RowRun, Step
from .device import synchronize

if TYPE_CHECKING:
    from fastllm_core import Config, Pipeline, RunReport


class Ours:
    """A method of fastllm."""

    kind = "fastllm"

    def __init__(self, label: str, pipeline: Pipeline) -> None:
        """label: what tables call it.  pipeline: what decodes; closed with the arm."""
        self.label = label
        self.pipeline = pipeline

    @classmethod
    def sharing(cls, label: str, config: Config, owner: Pipeline, *, trust_remote_code: bool = False) -> Ours:
        """An arm over the weights that another pipeline holds. Raises what `fastllm_core.load` raises."""
        target = owner.target
        pipeline = load(target.model, tokenizer=target.tokenizer, config=config, trust_remote_code=trust_remote_code)
        return cls(label, pipeline)

    def unable(self, batch: int, temperature: float) -> str | None:
        """Rows beyond the engine's would wait for each other, which is no batch."""
        rows = self.pipeline.config.engine.max_rows
        return f"engine.max_rows is {rows}" if batch > rows else None

    @torch.inference_mode()  # entered once for all steps, as by `Pipeline.generate`
    def run(self, job: Job) -> JobRun:
        """Drive the engine, noting each event."""
        engine = self.pipeline.engine
        report: RunReport = engine.report
        before, split, inside = report.rounds, dict(report.time), dict(report.forward_time)
        verified, resumed = report.verified_rows, report.resumed_rows
        requests = [
            Request(prompt, job.max_new_tokens, job.sampling, job.seed + index, job.eos)
            for index, prompt in enumerate(job.prompts)
        ]
        synchronize(self.pipeline.device.device)
        start = time.perf_counter()
        rows = {engine.add(request): RowRun() for request in requests}
        try:
            while not engine.idle:
                events = engine.step()
                now = time.perf_counter() - start
                for event in events:
                    row = rows[event.row]
                    row.steps.append(Step(now, event.tokens, event.drafted, event.accepted))
                    if event.report is not None:
                        row.near_ties_at = tuple(event.report.near_ties_at)
        finally:
            for row_id in rows:
                engine.cancel(row_id)
        synchronize(self.pipeline.device.device)
        seconds = time.perf_counter() - start
        return JobRun(
            list(rows.values()),
            seconds,
            report.rounds - before,
            {phase: report.time[phase] - split.get(phase, 0.0) for phase in report.time},
            {phase: report.forward_time[phase] - inside.get(phase, 0.0) for phase in report.forward_time},
            report.verified_rows - verified,
            report.resumed_rows - resumed,
        )

    def describe(self) -> Mapping[str, Any]:
        """Method, what is configured beyond the defaults, roles, and what is lossy."""
        pipeline = self.pipeline
        return {
            "method": pipeline.method,
            "config": pipeline.config.model_dump(exclude_defaults=True),
            "roles": dict(pipeline.roles),
            "lossy": list(pipeline.lossy),
        }

    def close(self) -> None:
        """Close the pipeline."""
        self.pipeline.close()
