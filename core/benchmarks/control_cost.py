"""What a decision costs in milliseconds, with the greedy reading of the logits that is part of every round.

python core/benchmarks/control_cost.py --vocabulary 151936 --text 1000
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from transformers import RepetitionPenaltyLogitsProcessor

from fastllm_core import Batch, Controls, Draft, Request, Sampling, Scores
from fastllm_core.acceptor import ExactAcceptor
from fastllm_core.deciding import decide
from fastllm_core.history import History
from fastllm_core.protocols import Proposal
from fastllm_core.rows import LiveRow
from fastllm_core.ties import best_of

DRAFTED = 5
CASES = {
    "none": Controls(),
    "repetition penalty": Controls(repetition_penalty=1.2),
    "frequency and presence penalty": Controls(frequency_penalty=0.5, presence_penalty=0.5),
    "no repeated 4-gram": Controls(no_repeat_ngram_size=4),
    "100 bad words of 2 tokens": Controls(bad_words=tuple((token, token + 1) for token in range(100))),
    "a least length": Controls(min_new_tokens=10**6),
    "a called processor (repetition penalty)": Controls(processors=(RepetitionPenaltyLogitsProcessor(1.2),)),
}


def milliseconds(work: Callable[[], object]) -> float:
    """The median of some runs, after two."""
    times = []
    for _ in range(12):
        began = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - began))
    return median(times[2:])


def round_of(controls: Controls, rows: int, length: int, vocabulary: int) -> Callable[[], object]:
    """A round whose drafts are all accepted, over and over."""
    tokens = torch.randint(vocabulary, (rows, length), generator=torch.Generator().manual_seed(0))
    logits = torch.randn(rows, DRAFTED + 1, vocabulary, generator=torch.Generator().manual_seed(1))
    drafted = torch.arange(DRAFTED).expand(rows, -1)
    logits.scatter_(2, torch.arange(DRAFTED + 1).expand(rows, -1)[:, :, None], 50.0)
    draft = Draft(drafted, torch.full((rows,), DRAFTED))

    def run() -> object:
        live = [
            LiveRow(i, Request((text[0],), 10**6, eos_token_ids=frozenset({3}), controls=controls), text, 0, i)
            for i, text in enumerate(tokens.tolist())
        ]
        for row, history in zip(live, histories, strict=True):
            row.history = history
            history.length = length  # what a walk appends is forgotten
        sampling = Sampling.of([row.request.sampling for row in live], "cpu")
        batch = Batch(tuple(live), (DRAFTED,) * rows, torch.device("cpu"), sampling)
        scores = Scores(logits, best=best_of(logits, torch.float32))  # every round's verifier does that
        return decide(ExactAcceptor(Proposal.ONE_HOT), batch, live, draft, scores, torch.float32)

    histories = []
    for text in tokens.tolist():
        history = History(text[:1], length + 8 * DRAFTED * 20)
        for token in text[1:]:
            history.append(token)
        histories.append(history)
    return run


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--text", type=int, default=1000, help="tokens of each row")
    asked = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; vocabulary {asked.vocabulary}, "
          f"{asked.text} tokens, {DRAFTED} drafted\n")  # fmt: skip
    print("| control | 1 row | 8 rows |\n| --- | ---: | ---: |")
    with torch.inference_mode():
        for name, controls in CASES.items():
            times = [milliseconds(round_of(controls, rows, asked.text, asked.vocabulary)) for rows in (1, 8)]
            print(f"| {name} | {times[0]:.1f} | {times[1]:.1f} |", flush=True)


if __name__ == "__main__":
    main()
