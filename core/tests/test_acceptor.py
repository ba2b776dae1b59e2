"""Run: PYTHONPATH=core/src pytest core/tests/test_acceptor.py"""

from __future__ import annotations

import typing

import pytest
import torch
from torch import Tensor

from fastllm_core.acceptor import ExactAcceptor, Rule
from fastllm_core.batch import Batch, Row
from fastllm_core.errors import ConfigError
from fastllm_core.protocols import Acceptor, Draft, Guarantee, Proposal, Scores, Verdict
from fastllm_core.request import Request, SamplingParams
from fastllm_core.sampling import Sampling, draw, warp

V = 5
WARM = SamplingParams(temperature=1.0)
GREEDY = SamplingParams()


def batch_of(*params: SamplingParams, seed: int = 1, length: int = 3) -> Batch:
    rows = [
        Row(id=i, request=Request((1,), 9, sampling), tokens=[1] * (length + i), seed=seed + i, slot=i)
        for i, sampling in enumerate(params)
    ]
    device = torch.device("cpu")
    return Batch(tuple(rows), (2,) * len(rows), device, Sampling.of(params, device))


def scores_of(rows: int, width: int, seed: int = 0) -> Scores:
    return Scores(torch.randn(rows, width, V, generator=torch.Generator().manual_seed(seed)))


def draft_of(tokens: list[list[int]], lengths: list[int], **extra: Tensor | None) -> Draft:
    return Draft(torch.tensor(tokens).view(len(lengths), -1), torch.tensor(lengths), **extra)  # type: ignore[arg-type]


def committed(verdict: Verdict) -> list[list[int]]:
    return [row[: kept + 1] for row, kept in zip(verdict.tokens.tolist(), verdict.accepted.tolist(), strict=True)]


def test_is_an_exact_acceptor() -> None:
    acceptor: Acceptor = ExactAcceptor(Proposal.ONE_HOT)
    assert acceptor.guarantee is Guarantee.EXACT


def test_greedy_keeps_what_argmax_says_and_computes_no_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("fastllm_core.acceptor.warp")
    scores = scores_of(2, 3)
    best = scores.logits.argmax(-1).tolist()
    draft = draft_of([[best[0][0], best[0][1]], [best[1][0], (best[1][1] + 1) % V]], [2, 2])
    for proposal in Proposal:
        verdict = ExactAcceptor(proposal).decide(batch_of(GREEDY, GREEDY), draft, scores)
        assert committed(verdict) == [best[0], best[1][:2]]
        assert verdict.path.tolist() == [[0, 1], [0, -1]]
        assert verdict.tokens.shape == (2, 3)


def test_match_gives_the_same_text_whatever_is_drafted() -> None:
    """The choice at a position is a function of the seed: chain, tree and no draft agree."""
    batch, scores = batch_of(WARM, WARM), scores_of(2, 1)
    scores = Scores(scores.logits.expand(2, 4, V))  # the same distribution everywhere
    choices = draw(warp(scores.logits, batch.sampling), batch.position_uniforms(4)).tolist()
    acceptor = ExactAcceptor(Proposal.ONE_HOT)
    chain = draft_of([row[:3] for row in choices], [3, 3])
    assert committed(acceptor.decide(batch, chain, scores)) == choices
    tree = draft_of([[9, row[0], row[1]] for row in choices], [3, 3], parents=torch.tensor([[-1, -1, 1]] * 2))
    verdict = acceptor.decide(batch, tree, scores)
    assert committed(verdict) == [row[:3] for row in choices]
    assert verdict.path.tolist() == [[1, 2, -1]] * 2
    empty = draft_of([[], []], [0, 0])
    assert committed(acceptor.decide(batch, empty, Scores(scores.logits[:, :1]))) == [row[:1] for row in choices]


@pytest.mark.parametrize(
    ("proposal", "rule", "tree"),
    [
        (Proposal.SAMPLED, "rejection", False),
        (Proposal.SAMPLED, "block", False),
        (Proposal.SAMPLED, "match", False),
        (Proposal.INDEPENDENT, "rejection", False),
        (Proposal.INDEPENDENT, "rejection", True),
        (Proposal.INDEPENDENT, "match", True),
        (Proposal.WITHOUT_REPLACEMENT, "auto", False),
        (Proposal.WITHOUT_REPLACEMENT, "auto", True),
    ],
)
def test_greedy_rows_beside_sampling_rows_stay_greedy(proposal: Proposal, rule: Rule, tree: bool) -> None:
    batch, scores = batch_of(WARM, GREEDY, GREEDY), scores_of(3, 3)
    best = scores.logits.argmax(-1).tolist()
    wrong = (best[2][0] + 1) % V
    tokens = torch.tensor([[0, 1], best[1][:2], [wrong, 0]])
    q = torch.nn.functional.one_hot(torch.cat([tokens, tokens[:, :1]], 1), V).float()
    parents = torch.tensor([[-1, 0]] * 3) if tree else None
    draft = Draft(tokens, torch.tensor([2, 2, 1]), parents, q)
    verdict = ExactAcceptor(proposal, rule).decide(batch, draft, scores)
    assert committed(verdict)[1:] == [best[1], best[2][:1]]


@pytest.mark.parametrize("rule", ["match", "rejection", "block"])
def test_rows_do_not_depend_on_their_company(rule: Rule) -> None:
    scores = scores_of(2, 3)
    q = warp(scores_of(2, 2, seed=1).logits, Sampling.of([WARM, WARM], "cpu"))
    for seed in range(20):
        acceptor = ExactAcceptor(Proposal.SAMPLED, rule)
        both = acceptor.decide(batch_of(WARM, WARM, seed=seed), draft_of([[0, 1], [2, 3]], [2, 1], probs=q), scores)
        alone = draft_of([[0, 1]], [2], probs=q[:1])
        verdict = acceptor.decide(batch_of(WARM, seed=seed), alone, Scores(scores.logits[:1]))
        assert committed(verdict) == committed(both)[:1]


@pytest.mark.parametrize("proposal", [Proposal.SAMPLED, Proposal.INDEPENDENT, Proposal.WITHOUT_REPLACEMENT])
@pytest.mark.parametrize("probs", [None, torch.zeros(2, 0, V), torch.full((2, 1, V), 1 / V)])
def test_draftless_rounds(proposal: Proposal, probs: Tensor | None) -> None:
    batch = batch_of(WARM, GREEDY)
    scores = scores_of(2, 1)
    for parents in (None, torch.zeros(2, 0, dtype=torch.int64)):
        draft = draft_of([[], []], [0, 0], parents=parents, probs=probs)
        verdict = ExactAcceptor(proposal).decide(batch, draft, scores)
        assert verdict.accepted.tolist() == [0, 0]
        assert verdict.path.shape == (2, 0)
        assert verdict.tokens.shape == (2, 1)
        assert verdict.tokens[1].item() == scores.logits[1, 0].argmax().item()


@pytest.mark.parametrize("rule", typing.get_args(Rule))
@pytest.mark.parametrize("tree", [False, True])
def test_a_row_without_a_draft_draws_what_plain_decoding_draws(rule: Rule, tree: bool) -> None:
    """Beside a row that has a draft, and in a round where none has."""
    proposal = Proposal.INDEPENDENT if tree and rule != "block" else Proposal.SAMPLED
    parents = torch.tensor([[-1, -1]] * 2) if tree and rule != "block" else None
    acceptor, q = ExactAcceptor(proposal, rule), torch.full((2, 3, V), 1 / V)
    for seed in range(20):
        batch, scores = batch_of(WARM, WARM, seed=seed), scores_of(2, 3, seed)
        verdict = acceptor.decide(batch, draft_of([[0, 1], [-1, 99]], [2, 0], parents=parents, probs=q), scores)
        plain = ExactAcceptor(Proposal.ONE_HOT).decide(batch, draft_of([[], []], [0, 0]), Scores(scores.logits[:, :1]))
        assert committed(verdict)[1] == committed(plain)[1]
        for probs in (None, q[:, :1], q[:, :0]):
            nobody = draft_of([[], []], [0, 0], parents=None if parents is None else parents[:, :0], probs=probs)
            alone = acceptor.decide(batch, nobody, Scores(scores.logits[:, :1]))
            assert committed(alone) == committed(plain)


@pytest.mark.parametrize("rule", typing.get_args(Rule))
def test_a_draft_that_comes_without_its_distribution_is_matched(rule: Rule) -> None:
    for seed in range(20):
        batch, scores = batch_of(WARM, WARM, seed=seed), scores_of(2, 3, seed)
        draft = draft_of([[0, 1], [2, 3]], [2, 2])
        matched = ExactAcceptor(Proposal.ONE_HOT).decide(batch, draft, scores)
        assert committed(ExactAcceptor(Proposal.SAMPLED, rule).decide(batch, draft, scores)) == committed(matched)


@pytest.mark.parametrize(
    ("proposal", "rule"),
    [
        (Proposal.ONE_HOT, "rejection"),
        (Proposal.ONE_HOT, "block"),
        (Proposal.INDEPENDENT, "block"),
        (Proposal.WITHOUT_REPLACEMENT, "block"),
        (Proposal.SAMPLED, "typical"),
    ],
)
def test_refuses_rules_that_do_not_fit(proposal: Proposal, rule: Rule) -> None:
    with pytest.raises(ConfigError, match=rf"^acceptance\.rule: .*{rule}"):
        ExactAcceptor(proposal, rule)
