"""Typical acceptance and lenience: what they keep, and what they promise all the same."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fastllm_core.acceptance import reject_chain, reject_tree
from fastllm_core.lossy_acceptor import LossyAcceptor
from fastllm_core.lossy_rules import lenient_greedy, typical
from fastllm_core.protocols import Proposal, Verdict
from fastllm_core.randomness import Purpose
from fastllm_core.request import SamplingParams
from fastllm_core.testing.enumeration import PROMPT, Enumeration, TableTree
from fastllm_core.testing.laws import Law, Table, always, is_law_of, varied

V = 5
WARM, GREEDY = SamplingParams(temperature=1.0), SamplingParams()
CHAIN = (-1, 0)
TREE = (-1, -1, 0, 0, 1)
BOUNDS = {"epsilon": 0.09, "delta": 0.3}


def random(rows: int, width: int, seed: int, sharpness: float = 2.0) -> Tensor:
    return torch.randn(rows, width, V, generator=torch.Generator().manual_seed(seed)) * sharpness


def best_path(parents: Sequence[int], passes: Sequence[bool], log_p: Sequence[float]) -> list[int]:
    """By the book: of all paths whose nodes all pass the longest, of these the likeliest, of these the first."""
    paths: dict[int, list[int]] = {-1: []}
    for node, parent in enumerate(parents):
        if passes[node] and parent in paths:
            paths[node] = [*paths[parent], node]
    return max(paths.values(), key=lambda path: (len(path), sum(log_p[node] for node in path)))


@pytest.mark.parametrize("count", [1, 2, 5, 9])
@pytest.mark.parametrize("tree", [False, True])
@pytest.mark.parametrize("rule", ["typical", "lenient"])
def test_the_longest_path_that_passes_is_kept(rule: str, tree: bool, count: int) -> None:
    rows = 100
    generator = torch.Generator().manual_seed(count)
    parents = torch.arange(count).expand(rows, -1) - 1
    if tree:
        parents = (torch.rand(rows, count, generator=generator) * torch.arange(1, count + 1)).long() - 1
    lengths = torch.randint(0, count + 1, (rows,), generator=generator)
    tokens = torch.randint(0, V, (rows, count), generator=generator)
    tokens = tokens.where(torch.arange(count) < lengths[:, None], torch.tensor(99))  # padding may hold anything
    logits, above = random(rows, count + 1, count), parents if tree else None
    p, u = logits.softmax(-1), torch.rand(rows, count + 1, generator=generator, dtype=torch.float64)
    if rule == "typical":
        verdict = typical(tokens, lengths, above, p, u, **BOUNDS)
    else:
        verdict = lenient_greedy(tokens, lengths, above, logits, lenience=0.3)
    for b in range(rows):
        law, path = p[b].double(), []
        floor = [min(0.09, 0.3 * math.exp(float((row * row.log()).sum()))) for row in law]
        if rule == "lenient":
            floor = [0.3 * float(row.max()) for row in law]
        drafted = [(int(parents[b, i]) + 1, int(tokens[b, i])) for i in range(int(lengths[b]))]
        own = [float(law[at]) for at in drafted]
        passes = [value > floor[at] for value, (at, _) in zip(own, drafted, strict=True)]
        path = best_path(parents[b, : len(own)].tolist(), passes, [math.log(value) for value in own])
        extra = law[path[-1] + 1 if path else 0]
        last = int(extra.argmax()) if rule == "lenient" else int((extra.cumsum(0) > u[b, len(path)]).nonzero()[0])
        assert verdict.accepted[b] == len(path)
        assert verdict.path[b].tolist() == path + [-1] * (count - len(path))
        kept = [int(tokens[b, node]) for node in path]
        assert verdict.tokens[b].tolist() == [*kept, last] + [-1] * (count - len(path))


def test_of_equally_long_paths_the_likelier_and_then_the_first_is_kept() -> None:
    p = torch.tensor([0.5, 0.3, 0.2]).expand(3, 6, 3)
    tokens = torch.tensor([[1, 0, 0, 1, 1], [1, 0, 1, 2, 1], [1, 1, 0, 0, 0]])
    verdict = typical(
        tokens, torch.full((3,), 5), torch.tensor([TREE] * 3), p, torch.zeros(3, 6).double(), epsilon=0.1, delta=1.0
    )
    # 0.3 * 0.5 and 0.3 * 0.3 under the first child, 0.5 * 0.3 under the second; then 0.3 * 0.3, 0.3 * 0.2, 0.5 * 0.3
    assert verdict.path[:, :3].tolist() == [[0, 2, -1], [1, 4, -1], [0, 2, -1]]


@pytest.mark.parametrize(
    ("likes", "parents", "first"),
    [
        ((0.1, 0.8, 0.1), (-1,), (0, 1, 0)),
        ((0.1, 0.1, 0.8), (-1,), (0.5, 0.3, 0.2)),
        ((0.1, 0.2, 0.7), (-1, -1), (0, 1, 0)),
        ((0.4, 0.5, 0.1), (-1, -1), (1, 0, 0)),
    ],
)
def test_what_follows_a_typical_path_has_ps_law(
    likes: Sequence[float], parents: Sequence[int], first: Sequence[float]
) -> None:
    """Tokens 0 and 1 are typical, and kept for certain if drafted. Token 2 is not; it may still be drawn."""
    p = always(0.5, 0.3, 0.2)
    acceptor = LossyAcceptor(Proposal.ONE_HOT, "typical", epsilon=0.25, delta=9.0)
    drafter = TableTree(always(*likes), parents, Proposal.ONE_HOT)
    law = Enumeration(p, drafter, acceptor, {Purpose.TARGET: [0.5, 0.8]}, 2, 1).law()
    assert law.flatten().tolist() == pytest.approx(np.outer(first, p(())).flatten().tolist())


def test_thresholds_of_typical_acceptance() -> None:
    """Strictly above min(epsilon, delta * exp(-H)): epsilon where the target is sure, delta where it is not."""
    flat = torch.full((1, 2, 10), 0.1)  # exp(-H) = 0.1
    u = torch.zeros(1, 2, dtype=torch.float64)
    draft = torch.tensor([[3]]), torch.tensor([1]), None
    for epsilon, delta, kept in ((0.09, 0.3, 1), (0.11, 0.3, 1), (0.11, 1.1, 0), (0.2, 0.99, 1), (0.05, 9.0, 1)):
        assert typical(*draft, flat, u, epsilon=epsilon, delta=delta).accepted.item() == kept
    exactly = torch.tensor([0.25, 0.75]).expand(1, 2, 2)
    one = torch.tensor([[0]]), torch.tensor([1]), None
    assert typical(*one, exactly, u, epsilon=0.25, delta=9.0).accepted.item() == 0
    assert typical(*one, exactly, u, epsilon=0.0, delta=0.0).accepted.item() == 1
    never = torch.tensor([0.0, 1.0]).expand(1, 2, 2)
    assert typical(*one, never, u, epsilon=0.0, delta=0.0).accepted.item() == 0


# -- lenience ----------------------------------------------------------------------------------------------------------

P, Q = varied(2), always(1 / 6, 1 / 3, 1 / 2)


def lenient_law(proposal: Proposal, parents: Sequence[int], lenience: float, count: int = 3) -> Law:
    """The law of three tokens, exactly."""
    sixths = [i / 6 for i in range(1, 6)]
    borders = {Purpose.DRAFT: [1 / 6, 1 / 2], Purpose.ACCEPT: [1 / 3, 1 / 2, 2 / 3], Purpose.EXTRA: sixths}
    if proposal is Proposal.ONE_HOT:
        finer = sorted({*sixths, 1 / 5, 1 / 4, 2 / 5, 3 / 5, 3 / 4, 4 / 5})
        borders = {Purpose.ACCEPT: finer, Purpose.EXTRA: finer}
    q = Q
    if proposal is Proposal.WITHOUT_REPLACEMENT:
        q = always(1 / 6, 1 / 6, 2 / 3)
        borders |= {Purpose.DRAFT: [1 / 6, 1 / 5, 1 / 3, 1 / 2], Purpose.ACCEPT: [1 / 4, 1 / 2, 2 / 3, 3 / 4]}
    acceptor = LossyAcceptor(proposal, "lenient", lenience=lenience)
    last = {(Purpose.TARGET, len(PROMPT) + count - 1, 0): sixths}
    return Enumeration(P, TableTree(q, parents, proposal), acceptor, {**borders, **last}, count, 2).law()


CASES = [
    (Proposal.SAMPLED, CHAIN),
    (Proposal.ONE_HOT, CHAIN),
    (Proposal.INDEPENDENT, (-1, -1, 0)),
    (Proposal.WITHOUT_REPLACEMENT, (-1, -1)),
    (Proposal.ONE_HOT, (-1, -1, 0)),
]


@pytest.mark.parametrize(("proposal", "parents"), CASES)
def test_lenience_of_one_is_the_exact_rule(proposal: Proposal, parents: Sequence[int]) -> None:
    assert is_law_of(P, lenient_law(proposal, parents, 1.0))


@pytest.mark.parametrize(("proposal", "parents"), CASES)
def test_no_token_is_likelier_than_lenience_allows(proposal: Proposal, parents: Sequence[int]) -> None:
    law = lenient_law(proposal, parents, 0.5)
    assert law.sum() == pytest.approx(1)
    assert not is_law_of(P, law)
    assert most_favoured(P, law) <= 2 + 1e-9
    assert most_favoured(P, law) > 1.2  # it is lossy indeed


def most_favoured(p: Table, law: Law) -> float:
    """The largest ratio of a token's probability, after some text, to p's."""
    ratios = []
    for length in range(1, law.ndim + 1):
        texts = law.sum(tuple(range(length, law.ndim)))
        before = texts.sum(-1)
        for text in itertools.product(range(3), repeat=length - 1):
            if before[text] > 1e-12:
                ratios += list(texts[text] / before[text] / np.array(p(text)))
    return float(max(ratios))


def test_what_lenience_gives_is_what_its_formula_says() -> None:
    """min(p / l, q) from the draft, and what is left over goes where p exceeds q."""
    p, q = np.array(P(())), np.array(Q(()))
    kept, left = np.minimum(p / 0.5, q), np.maximum(p - q, 0)
    expected = kept + (1 - kept.sum()) * left / left.sum()
    assert lenient_law(Proposal.SAMPLED, (-1,), 0.5, count=2).sum(1).tolist() == pytest.approx(expected.tolist())


def test_lenience_of_one_decides_as_the_exact_rules_do() -> None:
    p, q = random(50, 4, 1).softmax(-1), random(50, 4, 2).softmax(-1)
    tokens, lengths = q[:, :3].argmax(-1), torch.full((50,), 3)
    u = torch.rand(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parents = torch.tensor([(-1, -1, 0)] * 50)
    exact = reject_chain(tokens, lengths, q, p, u[:, :3], u[:, 3])
    assert same(exact, reject_chain(tokens, lengths, q, p, u[:, :3], u[:, 3], lenience=1.0))
    more = reject_chain(tokens, lengths, q, p, u[:, :3], u[:, 3], lenience=0.2)
    assert (more.accepted >= exact.accepted).all()
    assert (more.accepted > exact.accepted).any()
    one_hot = torch.nn.functional.one_hot(tokens, V).double()
    assert same(
        reject_chain(tokens, lengths, None, p, u[:, :3], u[:, 3], lenience=0.2),
        reject_chain(tokens, lengths, one_hot, p, u[:, :3], u[:, 3], lenience=0.2),
    )
    exact = reject_tree(tokens, lengths, parents, q, p, u[:, :3], u[:, 3], without_replacement=False)
    assert same(
        exact, reject_tree(tokens, lengths, parents, q, p, u[:, :3], u[:, 3], without_replacement=False, lenience=1.0)
    )


def same(one: Verdict, other: Verdict) -> bool:
    return torch.equal(one.tokens, other.tokens) and torch.equal(one.path, other.path)


def test_nothing_waits_for_the_device() -> None:
    """Fake tensors have no values, so whatever reads one on the host fails."""
    with FakeTensorMode():
        tokens, lengths, parents = (torch.zeros(shape, dtype=torch.int64) for shape in ((2, 5), (2,), (2, 5)))
        p, u = torch.zeros(2, 6, 7), torch.zeros(2, 6, dtype=torch.float64)
        for above in (None, parents):
            for verdict in (
                typical(tokens, lengths, above, p, u, **BOUNDS),
                lenient_greedy(tokens, lengths, above, p, lenience=0.5),
            ):
                assert (verdict.accepted.shape, verdict.path.shape, verdict.tokens.shape) == ((2,), (2, 5), (2, 6))
