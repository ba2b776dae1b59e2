"""Exact mode: the same bits from every method, in any company, in float32 and in bfloat16."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from fastllm_core import ConfigError, Draft, Engine, Proposal, Request, SamplingParams, load
from fastllm_core.exact import ExactVerifier, batch_experts, steady_width
from fastllm_core.models import load_model
from fastllm_core.network import Network
from fastllm_core.protocols import Drafter, Scores
from fastllm_core.testing import Branching, Scripted, TableDrafter, tiny_model
from fastllm_core.testing.engines import decode, make_engine

DTYPES = [torch.float32, torch.bfloat16]
PROMPTS = [(5, 6, 7), (1,), tuple(range(3, 40)), (9, 8, 7, 6, 5), (2, 4), tuple(range(60, 30, -1))]


class Recorder:
    """The logits behind which each token was chosen, by row and position."""

    def __init__(self) -> None:
        self.logits: dict[tuple[tuple[int, ...], int], torch.Tensor] = {}

    def observe(self, batch: Any, draft: Draft, scores: Scores, verdict: Any) -> None:
        for index, row in enumerate(batch.rows):
            for step in range(int(verdict.accepted[index]) + 1):
                self.logits[row.request.prompt, batch.lengths[index] + step] = scores.logits[index, step].clone()


def requests(prompts: Sequence[tuple[int, ...]] = PROMPTS, **sampling: Any) -> list[Request]:
    return [Request(prompt, 20, SamplingParams(**sampling), seed=3) for prompt in prompts]


def guess(row: Any, count: int) -> list[int]:
    """Right now and then, and of changing length."""
    return [(row.tokens[-1] * 5 + row.length + i) % 7 for i in range((row.length * 3) % (count + 1))]


def engine(dtype: torch.dtype, drafter: Drafter | None = None, rows: int = 4, **more: Any) -> tuple[Engine, Recorder]:
    recorder = Recorder()
    made = make_engine(
        tiny_model("llama", sharpness=2.0).to(dtype), drafter, exact=True, max_rows=rows, observers=[recorder], **more
    )
    return made, recorder


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_logit_is_the_same_bits_whatever_is_drafted_and_beside_whom(dtype: torch.dtype) -> None:
    plain, base = engine(dtype)
    expected = decode(plain, requests())
    for drafter, order, every in (
        (Scripted(guess), PROMPTS, 0),
        (Scripted(guess), PROMPTS[::-1], 3),
        (None, PROMPTS[::-1], 2),
        (Scripted(lambda row, count: [0] * count), PROMPTS[2:4], 1),
    ):
        other, seen = engine(dtype, drafter)
        texts = dict(zip(order, decode(other, requests(order), every=every), strict=True))
        assert all(texts[prompt] == text for prompt, text in zip(PROMPTS, expected, strict=True) if prompt in texts)
        assert len(seen.logits) >= 20 * len(order)
        for key, logits in seen.logits.items():
            if key in base.logits:  # the last round may look beyond the end
                assert torch.equal(logits, base.logits[key]), key


def test_without_fixed_shapes_the_bits_do_change() -> None:
    """Or the test above would prove nothing."""
    texts = []
    for drafter in (None, Scripted(guess)):
        recorder = Recorder()
        decode(make_engine(tiny_model("llama"), drafter, max_rows=4, observers=[recorder]), requests())
        texts.append(recorder.logits)
    shared = texts[0].keys() & texts[1].keys()
    assert any(not torch.equal(texts[0][key], texts[1][key]) for key in shared)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sampled_texts_are_the_same_too(dtype: torch.dtype) -> None:
    plain, base = engine(dtype)
    expected = decode(plain, requests(temperature=1.3, top_p=0.95))
    probs = torch.full((64,), 1 / 64)
    for drafter in (Scripted(guess), TableDrafter(probs)):
        other, seen = engine(dtype, drafter, acceptance="match")
        assert decode(other, requests(temperature=1.3, top_p=0.95), every=2) == expected
        assert all(torch.equal(base.logits[key], seen.logits[key]) for key in base.logits.keys() & seen.logits.keys())


def test_a_round_beside_a_prompt_that_is_being_read_leaves_it_alone() -> None:
    """Slots without a live row take part in the forward and write: never over what is stored."""
    long = tuple(range(1, 60)) * 3
    alone, _ = engine(torch.float32, prefill_chunk=16)
    expected = decode(alone, requests([long]))
    together, _ = engine(torch.float32, prefill_chunk=16)
    assert decode(together, requests([(5, 6), long]))[1] == expected[0]


def test_trees_are_refused() -> None:
    made, _ = engine(torch.float32, Branching(lambda row, count: [1] * count))
    with pytest.raises(ConfigError, match=r"exact: bits are promised for chains.*set exact = false"):
        decode(made, requests())


def test_a_mixture_of_experts_is_batched_or_refused() -> None:
    network = Network(load_model(tiny_model("mixtral", num_local_experts=4)))
    try:  # some processors sum a token's experts alike, however many tokens chose them
        assert steady_width(network, 3, 5) >= 5
    except ConfigError as error:
        assert re.match(r"exact: model '.*' on cpu in float32 does not give the same bits", str(error))  # noqa: PT017
    batch_experts(network)
    assert steady_width(network, 3, 5) >= 5
    assert network.loaded.model.config._experts_implementation != "batched_mm", "the user's model is not changed"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_width_is_found_for_any_number_of_threads(dtype: torch.dtype, slots: int, threads: int) -> None:
    """With two threads and one slot, six rows of this model are not alike on some processors, and eight are."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert 6 <= steady_width(Network(load_model(tiny_model("qwen3").to(dtype))), slots, 6) <= 24
    finally:
        torch.set_num_threads(before)


def test_a_width_whose_rows_are_not_alike_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(load_model(tiny_model()))
    forward = network.forward

    def uneven(inputs: Any, cache: Any, **more: Any) -> Any:
        """With 5 and with 8 rows the last one is off by a little."""
        out = forward(inputs, cache, **more)
        if inputs.positions.shape[1] in (5, 8):
            out.logits[:, -1] += 1e-6
        return out

    monkeypatch.setattr(network, "forward", uneven)
    assert steady_width(network, 4, 5) == 12


@pytest.fixture(scope="module")
def configured() -> list[list[int]]:
    return _texts("plain")


def _texts(method: str, **config: Any) -> list[list[int]]:
    settings = {"exact": True, "engine.max_rows": 2, "draft.length": 3, "dtype": "bfloat16", "device": "cpu", **config}
    prompts = ["Once upon a time", "Tom had a red ball. He", "The sun"]
    with load("demo", method, config=settings) as pipeline:
        answers = pipeline.generate(prompts, max_new_tokens=16, temperature=0.0)
        sampled = pipeline.generate(prompts, max_new_tokens=16, temperature=1.0, seed=4)
        assert all(answer.report.near_ties == 0 for answer in answers)
    return [answer.token_ids for answer in (*answers, *sampled)]


def test_a_configured_pipeline_is_exact(configured: list[list[int]]) -> None:
    assert _texts("speculative") == configured


@pytest.mark.parametrize("rule", ["rejection", "block"])
def test_rules_that_depend_on_the_draft_are_refused(rule: str) -> None:
    with pytest.raises(ConfigError, match=f"exact: under '{rule}' a sampled text depends on the draft"):
        load("demo", "speculative", config={"exact": True, "acceptance.rule": rule})


def test_the_verifier_does_again_what_a_drafter_did_in_another_shape() -> None:
    class Resuming(Scripted):
        proposal = Proposal.ONE_HOT

        def propose(self, batch: Any) -> Draft:
            from fastllm_core.protocols import Resume

            draft = super().propose(batch)
            return draft._replace(resume=Resume(2, torch.full((len(batch), draft.width + 1, 32), torch.nan)))

    made, _ = engine(torch.float32, Resuming(guess))
    assert isinstance(made.parts.verifier, ExactVerifier)
    plain, _ = engine(torch.float32)
    assert decode(made, requests()) == decode(plain, requests())
