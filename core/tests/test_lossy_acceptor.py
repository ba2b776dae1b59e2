"""The lossy acceptance role: mixed batches, greedy rows, rows without drafts, defaults."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastllm_core.acceptance import match
from fastllm_core.acceptor import ExactAcceptor
from fastllm_core.batch import Batch, Row
from fastllm_core.lossy_acceptor import LossyAcceptor, LossyRule
from fastllm_core.protocols import Acceptor, Draft, Guarantee, Proposal, Scores, Verdict
from fastllm_core.request import Request, SamplingParams
from fastllm_core.sampling import Sampling

V = 5
WARM, GREEDY = SamplingParams(temperature=1.0), SamplingParams()


def random(rows: int, width: int, seed: int, sharpness: float = 2.0) -> Tensor:
    return torch.randn(rows, width, V, generator=torch.Generator().manual_seed(seed)) * sharpness


def batch_of(*params: SamplingParams, seed: int = 1) -> Batch:
    rows = [Row(i, Request((1,), 9, each), [1] * (3 + i), seed + i, i) for i, each in enumerate(params)]
    return Batch(tuple(rows), (2,) * len(rows), torch.device("cpu"), Sampling.of(params, "cpu"))


def decided(acceptor: Acceptor, batch: Batch, scores: Tensor, draft: Draft) -> list[list[int]]:
    return kept_tokens(acceptor.decide(batch, draft, Scores(scores)))


def kept_tokens(verdict: Verdict) -> list[list[int]]:
    return [row[: kept + 1] for row, kept in zip(verdict.tokens.tolist(), verdict.accepted.tolist(), strict=True)]


def some(draft: Draft, rows: slice) -> Draft:
    parts = [None if value is None else value[rows] for value in (draft.parents, draft.probs)]
    return Draft(draft.tokens[rows], draft.lengths[rows], *parts)


RULES: list[tuple[LossyRule, Proposal]] = [
    (rule, proposal) for rule in ("typical", "lenient") for proposal in (Proposal.ONE_HOT, Proposal.SAMPLED)
]


def drafts(proposal: Proposal, tree: bool, rows: int = 3, seed: int = 0) -> Draft:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, V, (rows, 3), generator=generator)
    parents = torch.tensor([(-1, -1, 0)] * rows) if tree else None
    q = None if proposal is Proposal.ONE_HOT else random(rows, 4, seed + 1).softmax(-1)
    return Draft(tokens, torch.tensor([3, 3, 2][:rows]), parents, q)


@pytest.mark.parametrize("tree", [False, True])
@pytest.mark.parametrize(("rule", "proposal"), RULES)
def test_rows_do_not_depend_on_their_company(rule: LossyRule, proposal: Proposal, tree: bool) -> None:
    """Greedy rows beside sampling ones included."""
    acceptor = LossyAcceptor(proposal, rule, **({"lenience": 0.3} if rule == "lenient" else {}))
    for seed in range(20):
        scores, draft = random(3, 4, seed, 1.0), drafts(proposal, tree, seed=seed)
        settings = [WARM, GREEDY, SamplingParams(temperature=0.5, top_k=2)]
        together = decided(acceptor, batch_of(*settings, seed=seed), scores, draft)
        batch = batch_of(settings[0], seed=seed)
        assert decided(acceptor, batch, scores[:1], some(draft, slice(1)))[0] == together[0]
        greedy = batch_of(GREEDY, GREEDY, seed=seed)
        assert decided(acceptor, greedy, scores[:2], some(draft, slice(2)))[1] == together[1]


@pytest.mark.parametrize("tree", [False, True])
def test_typical_acceptance_at_temperature_0_is_greedy(tree: bool) -> None:
    acceptor, mixed = LossyAcceptor(Proposal.ONE_HOT, "typical"), batch_of(GREEDY, GREEDY, WARM)
    accepted = 0
    for seed in range(30):
        scores, draft = random(3, 4, seed), drafts(Proposal.ONE_HOT, tree, seed=seed)
        if seed % 2:
            draft.tokens[:, 0] = scores[:, 0].argmax(-1)
        verdict = match(draft.tokens, draft.lengths, draft.parents, scores.argmax(-1))
        accepted += int(verdict.accepted[:2].sum())
        expected = kept_tokens(verdict)
        assert decided(acceptor, batch_of(GREEDY, GREEDY, GREEDY), scores, draft) == expected
        assert decided(acceptor, mixed, scores, draft)[:2] == expected[:2]
    assert accepted > 20


@pytest.mark.parametrize(("rule", "proposal"), RULES)
def test_a_row_without_a_draft_draws_what_plain_decoding_draws(rule: LossyRule, proposal: Proposal) -> None:
    for seed in range(20):
        scores, draft = random(2, 4, seed), drafts(proposal, tree=False, rows=2, seed=seed)
        ragged = Draft(draft.tokens, torch.tensor([3, 0]), None, draft.probs)
        nothing = Draft(draft.tokens[:, :0], torch.tensor([0, 0]))
        batch = batch_of(WARM, WARM, seed=seed)
        plain = decided(ExactAcceptor(Proposal.ONE_HOT), batch, scores[:, :1], nothing)
        assert decided(LossyAcceptor(proposal, rule), batch, scores, ragged)[1] == plain[1]
        assert decided(LossyAcceptor(proposal, rule), batch, scores[:, :1], nothing) == plain


def test_defaults_and_names() -> None:
    one: dict[str, Any] = {"epsilon": 0.09, "delta": 0.3}
    scores, draft = random(3, 4, 5, 1.0), drafts(Proposal.ONE_HOT, tree=False)
    batch = batch_of(WARM, WARM, WARM)
    for given, default in ((one, {}), ({"epsilon": 0.25, "delta": 0.5}, {"epsilon": 0.25})):
        said, unsaid = (LossyAcceptor(Proposal.ONE_HOT, "typical", **settings) for settings in (given, default))
        assert vars(said) == vars(unsaid)
        assert decided(said, batch, scores, draft) == decided(unsaid, batch, scores, draft)
    lenient = LossyAcceptor(Proposal.ONE_HOT, "lenient", lenience=0.5)
    assert vars(LossyAcceptor(Proposal.ONE_HOT, "lenient")) == vars(lenient)
    assert LossyAcceptor(Proposal.ONE_HOT, "typical").label == "typical acceptance"
    assert LossyAcceptor.guarantee is Guarantee.LOSSY
