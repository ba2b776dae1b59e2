"""Near-ties are found where the two best logits are within rounding, and noted at the tokens that were committed."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import torch

from fastllm_core import Draft, Generation, Request, RunReport, SamplingParams, Scores, Verdict
from fastllm_core.protocols import Drafter
from fastllm_core.testing import Branching, Scripted, tiny_model
from fastllm_core.testing.engines import make_engine
from fastllm_core.ties import NOISE, best_of, of_committed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_gap_counts_up_to_the_noise_of_the_dtype(dtype: torch.dtype, sign: int) -> None:
    largest = 16.0
    noise = NOISE[dtype] * torch.finfo(dtype).eps * largest
    logits = torch.tensor([[[4.0, 4.0 - 0.9 * noise, -largest * sign], [4.0, 4.0 - 1.2 * noise, -largest * sign]]])
    logits[..., 2] = -largest  # the largest by size, and no candidate
    assert best_of(logits, dtype).close.tolist() == [[True, False]]


def test_equal_logits_are_a_tie_and_one_token_is_none() -> None:
    assert best_of(torch.tensor([[[1.0, 1.0, 0.0]]]), torch.float32).close.tolist() == [[True]]
    assert best_of(torch.tensor([[[1.0]]]), torch.float32).close.tolist() == [[False]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_first_of_equals_is_best(dtype: torch.dtype) -> None:
    """As `argmax` has it, which plain decoding elsewhere takes."""
    logits = torch.randint(0, 6, (7, 5, 300), generator=torch.Generator().manual_seed(1)).to(dtype)
    best = best_of(logits, dtype)
    assert torch.equal(best.tokens, logits.argmax(-1))
    assert torch.equal(best.tokens, (logits == logits.amax(-1, keepdim=True)).long().argmax(-1))
    top = logits.topk(2).values
    assert torch.equal(best.close, top[..., 0] == top[..., 1])


def test_rows_are_those_behind_which_the_committed_tokens_were_chosen() -> None:
    rows = torch.tensor([[True, False, False, True], [False, True, True, False]])
    path = torch.tensor([[2, -1, -1], [0, 1, -1]])
    verdict = Verdict(torch.tensor([1, 2]), path, torch.zeros(2, 4, dtype=torch.long))
    assert [line[:2] for line in of_committed(rows, verdict).tolist()] == [[True, True], [False, True]]


class Recount:
    """Finds the ties by itself, from what the roles hand to each other."""

    def __init__(self) -> None:
        self.at: dict[int, list[int]] = defaultdict(list)

    def observe(self, batch: Any, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        for index, row in enumerate(batch.rows):
            accepted = int(verdict.accepted[index])
            rows = [0, *(int(node) + 1 for node in verdict.path[index, :accepted])]
            for step, at in enumerate(rows):
                position = batch.lengths[index] + step - row.prompt_length
                best = scores.logits[index, at].topk(2).values
                if (
                    best[0] == best[1]
                    and position < row.request.max_new_tokens
                    and not row.request.sampling.temperature
                ):
                    self.at[row.id].append(position)


def guess(row: Any, count: int) -> list[int]:
    return [(row.tokens[-1] + row.length + i) % 4 for i in range(count)]


@pytest.mark.parametrize("drafter", [None, Scripted(guess), Branching(guess)])
def test_the_report_counts_them_as_an_independent_recount_does(drafter: Drafter | None) -> None:
    model = tiny_model("llama", vocab_size=8, sharpness=2.0)
    with torch.no_grad():  # tokens 0 and 1, 2 and 3, ... have the same logit
        weights = model.get_output_embeddings().weight
        weights[1::2] = weights[::2]
    recount = Recount()
    engine = make_engine(model, drafter, observers=[recount])
    sampled = engine.add(Request((3,), 20, SamplingParams(temperature=1.0), seed=1))
    rows = [engine.add(Request(prompt, 20)) for prompt in ((5, 6, 7), (1,), (2, 2))]
    reports: dict[int, RunReport] = {}
    while not engine.idle:
        reports |= {event.row: event.report for event in engine.step() if event.report}
    assert {row: reports[row].near_ties_at for row in rows} == {row: recount.at[row] for row in rows}
    assert engine.report.near_ties == sum(reports[row].near_ties for row in rows) > 20
    assert "near-ties" in engine.report.summary()
    assert reports[sampled].near_ties == 0
    assert engine.report.near_ties_at == []


def generation(tokens: tuple[int, ...], ties: list[int]) -> Generation:
    return Generation("", tokens, "length", (1,), RunReport(near_ties_at=ties, near_ties=len(ties)))


def test_a_difference_is_explained_by_a_near_tie_at_its_first_token() -> None:
    plain = generation((1, 2, 3, 4), [2])
    assert plain.difference(generation((1, 2, 3, 4), [])) is None
    explained = plain.difference(generation((1, 2, 9, 4), []))
    assert explained is not None
    assert (explained.position, explained.near_tie) == (2, True)
    bug = plain.difference(generation((1, 7, 9, 4), []))
    assert bug is not None
    assert (bug.position, bug.near_tie) == (1, False)
    short = plain.difference(generation((1, 2), []))
    assert short is not None
    assert short.position == 2
