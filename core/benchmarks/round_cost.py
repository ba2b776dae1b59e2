"""What a round costs outside its forwards, in microseconds of processor time.

The forwards compute nothing here: they hand out answers that were made before. But they read as much memory as their
weights take, which is what a forward of a few rows is bound by: so they take about as long, and after that a round's
own code and data are as far away as they are in a run.

python core/benchmarks/round_cost.py --rows 1 4 16
python core/benchmarks/round_cost.py --rows 1 --case auto --profile
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time
from collections.abc import Mapping
from types import SimpleNamespace

import torch
from torch import Tensor

import fastllm_core
from fastllm_core import clock
from fastllm_core.clock import PHASES
from fastllm_core.network import Network
from fastllm_core.pipeline import Pipeline
from fastllm_core.port import Advance, Answer, Inputs, Passage, advanced, in_turn, last_only
from fastllm_core.slot_layers import CacheLayers
from fastllm_core.ties import Best

CASES: dict[str, tuple[str, str]] = {
    "plain": ("plain", "fixed"),
    "fixed": ("speculative", "fixed"),
    "auto": ("speculative", "auto"),
}
"""Method and controller of each case."""
USUAL, RARE = 5, 6
EVERY = 10
"""The drafter always says the usual token; at every so many positions the target says another."""


class FreeRunner:
    """Forwards whose answers are there already. Implements `Runner`."""

    def __init__(self, network: Network, every: int) -> None:
        """every: see `EVERY`; 0 is never."""
        self.vocabulary = network.vocab_size
        self.weights = torch.zeros(sum(part.numel() for part in network.model.parameters()))
        self.usual = torch.full((1 << 14,), USUAL)
        if every:
            self.usual[::every] = RARE
        self._logits: dict[tuple[int, int], Tensor] = {}

    def forward(self, passage: Passage, inputs: Inputs, cache: CacheLayers) -> Answer:
        """Logits that do not know the rare token, what is best, and behind one row the next, as a program answers."""
        self.weights.sum()
        rows = inputs.positions[:, -1:] if passage.last_logits_only else inputs.positions
        best = Best(self.usual[rows], torch.zeros(rows.shape, dtype=torch.bool))
        logits = self._logits_of(*rows.shape)
        behind = advanced(logits, inputs, best=best).next if inputs.positions.shape[1] == 1 else None
        return Answer(logits, (), best, behind)

    def advance(self, passage: Passage, inputs: Inputs, cache: CacheLayers, steps: int = 1) -> Advance:
        """The same of the last row, and of those behind it."""
        if steps > 1:
            return in_turn(steps, inputs, lambda rows: self.advance(passage, rows, cache))
        logits, _, best, _ = self.forward(last_only(passage), inputs, cache)
        assert logits is not None
        return advanced(logits, inputs, best=best)

    def at_once(self, passage: Passage, texts: int, rows: int, steps: int) -> bool:
        """As if there were a program for everything."""
        return steps > 1

    def _logits_of(self, batch: int, rows: int) -> Tensor:
        if (batch, rows) not in self._logits:
            self._logits[batch, rows] = torch.zeros(batch, rows, self.vocabulary)
            self._logits[batch, rows][..., USUAL] = 1.0
        return self._logits[batch, rows]


def pipeline_of(case: str, rows: int) -> Pipeline:
    """`demo`, alone or with its drafter, without its forwards."""
    method, controller = CASES[case]
    settings = {"draft.controller": controller, "draft.length": 5, "engine.max_rows": rows, "forward": "eager"}
    made = fastllm_core.load("demo", method, device="cpu", dtype="float32", config=settings)
    network = made.engine.parts.network
    network.runner = FreeRunner(network, EVERY)
    if made.drafter is not None:
        drafting = made.drafter.network  # type: ignore[attr-defined]
        drafting.runner = FreeRunner(drafting, 0)
    return made


@torch.inference_mode()  # entered once for all steps, as by `Pipeline.generate`
def microseconds(pipeline: Pipeline, rows: int, tokens: int) -> tuple[Mapping[str, float], float]:
    """Of one round outside forwards, by phase, and the tokens that a round of one text commits."""
    engine = pipeline.engine
    for row in range(rows):
        prompt = [USUAL] * (EVERY + 2 + row % 5)  # each somewhere else, and the first rounds go well
        engine.add(pipeline.request(prompt, max_new_tokens=tokens, temperature=0.0, ignore_eos=True))
    engine.step()
    report = engine.report
    rounds, before, inside, written = report.rounds, dict(report.time), dict(report.forward_time), report.tokens
    while not engine.idle:
        engine.step()
    count = report.rounds - rounds
    spent = {
        phase: 1e6 * (report.time[phase] - before[phase] - report.forward_time[phase] + inside[phase]) / count
        for phase in PHASES
        if phase != "prefill"
    }
    return spent, (report.tokens - written) / count / rows


def measure(case: str, rows: int, tokens: int, repeats: int, profile: bool) -> None:
    """Print the best of some repeats."""
    with pipeline_of(case, rows) as pipeline:
        microseconds(pipeline, rows, tokens)
        found = [microseconds(pipeline, rows, tokens) for _ in range(repeats)]
        spent, written = min(found, key=lambda one: sum(one[0].values()))
        phases = "  ".join(f"{phase} {value:5.0f}" for phase, value in spent.items())
        print(f"{case:6} {rows:3} rows  {sum(spent.values()):6.0f} us a round:  {phases}  ({written:.2f} tokens)")
        if profile:
            with cProfile.Profile() as watched:
                microseconds(pipeline, rows, tokens)
            pstats.Stats(watched).sort_stats("tottime").print_stats(45)


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--case", choices=CASES, nargs="+", default=list(CASES))
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--profile", action="store_true", help="where it goes, by function")
    options = parser.parse_args()
    torch.set_num_threads(1)
    clock.time = SimpleNamespace(perf_counter=time.thread_time)  # type: ignore[assignment]
    for case in options.case:
        for rows in options.rows:
            measure(case, rows, options.tokens, options.repeats, options.profile)


if __name__ == "__main__":
    main()
