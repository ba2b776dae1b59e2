"""What several rounds write has the target's law, exactly: drafter, keyed uniforms and acceptor as they are in a run.

`fastllm_core.testing.enumeration` runs every combination of uniforms. Reused randomness must show, so wrong keys and
wrong rules must be found by the same check.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fastllm_core.acceptance import residual
from fastllm_core.acceptor import ExactAcceptor, Rule
from fastllm_core.batch import Batch
from fastllm_core.protocols import Draft, Proposal, Scores, Verdict
from fastllm_core.randomness import Purpose
from fastllm_core.request import SamplingParams
from fastllm_core.sampling import draw, warp
from fastllm_core.testing.enumeration import PROMPT, Borders, Enumeration, GridBatch, TableTree
from fastllm_core.testing.laws import LOPSIDED, Table, always, continuation, distance, is_law_of, varied

P, Q, TREE_P = varied(0), varied(1), varied(2)
CHAIN = (-1, 0)
TREE = (-1, -1, 0)
"""The root has two children, the first of which has one."""
SIXTHS = [i / 6 for i in range(1, 6)]
RATIOS = [1 / 3, 1 / 2, 2 / 3]
"""Of two of 1/6, 2/6 and 3/6, and of what a rejection leaves of them."""
COIN, FALSE_COIN = always(1 / 2, 1 / 2), always(3 / 4, 1 / 4)
QUARTERS = ((1, 3), (3, 1), (2, 2))


def chain(q: Table, proposal: Proposal = Proposal.SAMPLED, length: int = 2) -> TableTree:
    return TableTree(q, range(-1, length - 1), proposal)


def last(count: int, borders: Sequence[float]) -> Borders:
    """Of the numbers of positions, rejection uses the last one's, where nothing is drafted any more."""
    return {(Purpose.TARGET, len(PROMPT) + count - 1, 0): borders}


def block_borders(p: Table, q: Table, count: int, length: int) -> Borders:
    """Every threshold of block verification, written down anew from arXiv:2403.10444."""
    found: dict[Purpose, set[float]] = {purpose: set() for purpose in Purpose}
    for n in range(count):
        most = min(length, count - n - 1)
        for text in itertools.product(range(len(p(()))), repeat=n + most):
            reach = 1.0
            for i in range(most + 1):
                here, drafted = p(text[: n + i]), q(text[: n + i])
                spare = [max(reach * a - b, 0.0) for a, b in zip(here, drafted, strict=True)]
                whole = sum(spare) + 1 - reach
                found[Purpose.ACCEPT] |= {reach, sum(spare) / whole if whole else 1.0}
                found[Purpose.DRAFT] |= set(itertools.accumulate(drafted))
                found[Purpose.EXTRA] |= set(itertools.accumulate(here))
                found[Purpose.EXTRA] |= {x / (sum(spare) or 1.0) for x in itertools.accumulate(spare)}
                if i < most:
                    reach = min(1.0, reach * here[text[n + i]] / drafted[text[n + i]])
    inner = {purpose: sorted({round(x, 12) for x in xs if 1e-9 < x < 1 - 1e-9}) for purpose, xs in found.items()}
    return {**inner, Purpose.TARGET: (), **last(count, inner[Purpose.EXTRA])}


EXACT: dict[str, Callable[[], Enumeration]] = {
    "match, a chain": lambda: Enumeration(
        P, chain(Q, Proposal.ONE_HOT), ExactAcceptor(Proposal.ONE_HOT), {Purpose.TARGET: SIXTHS}, 4, 2
    ),
    "match, a chain that was drawn": lambda: Enumeration(
        P, chain(always(1 / 6, 1 / 3, 1 / 2)), ExactAcceptor(Proposal.SAMPLED, "match"),
        {Purpose.TARGET: SIXTHS, Purpose.DRAFT: [1 / 6, 1 / 2]}, 3, 2,
    ),
    "match, a tree of the most likely tokens": lambda: Enumeration(
        P, TableTree(Q, TREE, Proposal.ONE_HOT), ExactAcceptor(Proposal.ONE_HOT), {Purpose.TARGET: SIXTHS}, 4, 2
    ),
    "rejection, a chain": lambda: Enumeration(
        P, chain(Q), ExactAcceptor(Proposal.SAMPLED),
        {Purpose.DRAFT: SIXTHS, Purpose.ACCEPT: RATIOS, Purpose.EXTRA: SIXTHS} | last(3, SIXTHS), 3, 2,
    ),
    "rejection, a tree of independent draws": lambda: Enumeration(
        TREE_P, TableTree(always(1 / 6, 1 / 3, 1 / 2), TREE, Proposal.INDEPENDENT), ExactAcceptor(Proposal.INDEPENDENT),
        {Purpose.DRAFT: [1 / 6, 1 / 2], Purpose.ACCEPT: RATIOS, Purpose.EXTRA: SIXTHS} | last(3, SIXTHS), 3, 2,
    ),
    "rejection, a tree drawn without replacement": lambda: Enumeration(
        TREE_P, TableTree(always(1 / 6, 1 / 6, 2 / 3), TREE, Proposal.WITHOUT_REPLACEMENT),
        ExactAcceptor(Proposal.WITHOUT_REPLACEMENT),
        {Purpose.DRAFT: [1 / 6, 1 / 3], Purpose.ACCEPT: [1 / 4, 1 / 2, 3 / 4], Purpose.EXTRA: SIXTHS}
        | {(Purpose.DRAFT, n, 1): [1 / 5, 1 / 2] for n in (1, 2)} | {(Purpose.ACCEPT, n, 1): [2 / 3] for n in (1, 2)}
        | last(3, SIXTHS), 3, 2,
    ),
    "block, a chain": lambda: Enumeration(
        P, chain(Q), ExactAcceptor(Proposal.SAMPLED, "block"), block_borders(P, Q, 3, 2), 3, 2
    ),
    "block, residuals that depend on the draft": lambda: Enumeration(
        varied(1), chain(varied(1, LOPSIDED)), ExactAcceptor(Proposal.SAMPLED, "block"),
        block_borders(varied(1), varied(1, LOPSIDED), 3, 2), 3, 2,
    ),
    "block, more rounds": lambda: Enumeration(
        varied(0, QUARTERS), chain(varied(1, QUARTERS)), ExactAcceptor(Proposal.SAMPLED, "block"),
        block_borders(varied(0, QUARTERS), varied(1, QUARTERS), 4, 2), 4, 2,
    ),
    "block, a longer chain": lambda: coins("block"),
}  # fmt: skip


def coins(rule: Rule, p: Table = COIN, q: Table = FALSE_COIN) -> Enumeration:
    """Four tokens in rounds of up to three drafted ones, memoryless."""
    return Enumeration(p, chain(q, length=3), ExactAcceptor(Proposal.SAMPLED, rule), block_borders(p, q, 4, 3), 4, 3)


@pytest.mark.parametrize("name", EXACT)
def test_the_law_is_the_targets(name: str) -> None:
    enumeration = EXACT[name]()
    assert is_law_of(enumeration.p, enumeration.law())


def test_the_drafters_own_law_is_another_one() -> None:
    enumeration = EXACT["rejection, a chain"]()
    assert distance(Q, enumeration.law()) > 0.1


# -- who is greedy -----------------------------------------------------------------------------------------------------


def greedy(table: Table) -> Table:
    return lambda context: [float(i == max(range(3), key=table(context).__getitem__)) for i in range(3)]


@pytest.mark.parametrize("rule", ["auto", "rejection", "block", "match"])
def test_a_drafter_that_draws_under_a_greedy_target(rule: Rule) -> None:
    borders = {Purpose.DRAFT: SIXTHS}
    acceptor = ExactAcceptor(Proposal.SAMPLED, rule)
    law = Enumeration(P, chain(Q), acceptor, borders, 4, 2, sampling=SamplingParams()).law()
    assert is_law_of(greedy(P), law)


@pytest.mark.parametrize("proposal", [Proposal.INDEPENDENT, Proposal.WITHOUT_REPLACEMENT])
def test_a_tree_that_is_drawn_under_a_greedy_target(proposal: Proposal) -> None:
    borders = {Purpose.DRAFT: [1 / 5, 1 / 4, 1 / 3, 2 / 5, 1 / 2, *SIXTHS[3:]]}
    drafter = TableTree(always(1 / 6, 1 / 3, 1 / 2), TREE, proposal)
    law = Enumeration(P, drafter, ExactAcceptor(proposal), borders, 3, 2, sampling=SamplingParams()).law()
    assert is_law_of(greedy(P), law)


@pytest.mark.parametrize("rule", ["rejection", "block"])
def test_a_greedy_drafter_that_says_so_in_q_under_a_target_that_draws(rule: Rule) -> None:
    """One-hot q: rejection keeps its token with probability p. Without q, *match* does; see the first law above."""
    borders = {Purpose.ACCEPT: SIXTHS, Purpose.EXTRA: [i / 60 for i in range(1, 60)]} | last(3, SIXTHS)
    law = Enumeration(P, chain(greedy(Q)), ExactAcceptor(Proposal.SAMPLED, rule), borders, 3, 1).law()
    assert is_law_of(P, law)


# -- wrong keys are found ----------------------------------------------------------------------------------------------


class ByPosition(GridBatch):
    """Wrong: numbers keyed by position alone, so that the next round meets those of discarded drafts again."""

    def uniforms(self, purpose: Purpose, count: int) -> Tensor:
        return self._keyed(purpose, [[(n + i, 0) for i in range(count)] for n in self.lengths])


class OneList(GridBatch):
    """Wrong: what drew a token also decides whether it is accepted."""

    def uniforms(self, purpose: Purpose, count: int) -> Tensor:
        return super().uniforms(Purpose.DRAFT, count)


def test_block_verification_with_numbers_keyed_by_position_alone() -> None:
    """It looks at the numbers of all drafted tokens, and the next round meets the discarded ones again."""
    law = replace(coins("block"), batch=ByPosition).law()
    assert distance(COIN, law) == pytest.approx(0.03375)  # 0.0803 for six tokens


def test_where_keys_by_position_do_no_harm() -> None:
    """Token by token, discarded numbers decided nothing; and one well-known example hides the bias of block."""
    assert is_law_of(COIN, replace(coins("rejection"), batch=ByPosition).law())
    hidden = coins("block", always(1 / 3, 2 / 3), always(2 / 3, 1 / 3))
    assert is_law_of(hidden.p, replace(hidden, batch=ByPosition).law())


@pytest.mark.parametrize("rule", ["rejection", "block"])
def test_one_list_of_numbers_for_drafting_and_accepting(rule: Rule) -> None:
    shared = replace(coins(rule), batch=OneList)
    everything = sorted({x for borders in shared.borders.values() for x in borders})
    law = replace(shared, borders={Purpose.DRAFT: everything} | last(4, [1 / 2])).law()
    assert distance(COIN, law) > 0.05


def test_a_number_of_a_past_round_is_refused() -> None:
    class Forgetful(GridBatch):
        def uniforms(self, purpose: Purpose, count: int) -> Tensor:
            return self._keyed(purpose, [[(0, i) for i in range(count)] for _ in self.lengths])

    with pytest.raises(AssertionError, match="an earlier round used up"):
        replace(coins("rejection"), batch=Forgetful).law()


# -- wrong rules are found ---------------------------------------------------------------------------------------------


class Wrong(ExactAcceptor):
    """Changes what *rejection* commits after a draft of which something was rejected, or may have been."""

    def __init__(self, change: Callable[[Batch, Draft, Tensor, Verdict], Verdict]) -> None:
        super().__init__(Proposal.SAMPLED)
        self.change = change

    def decide(self, batch: Batch, draft: Draft, scores: Scores) -> Verdict:
        verdict = super().decide(batch, draft, scores)
        return self.change(batch, draft, warp(scores.logits, batch.sampling), verdict) if draft.width else verdict


def extra_from_p(batch: Batch, draft: Draft, p: Tensor, verdict: Verdict) -> Verdict:
    """Wrong: the token after a rejection is drawn from p and not from what q left of it."""
    row = torch.arange(len(batch))
    drawn = draw(p[row, verdict.accepted], batch.uniforms(Purpose.EXTRA, 1)[:, 0])
    return Verdict(verdict.accepted, verdict.path, verdict.tokens.scatter(1, verdict.accepted[:, None], drawn[:, None]))


def bonus_after_a_correction(batch: Batch, draft: Draft, p: Tensor, verdict: Verdict) -> Verdict:
    """Wrong: after a correction also a bonus, from the row of the token that the correction replaced."""
    row = torch.arange(len(batch))
    short = verdict.accepted < draft.lengths
    after = (verdict.accepted + 1).clamp(max=draft.width)
    bonus = draw(p[row, after], batch.uniforms(Purpose.TARGET, 1)[:, 0])
    tokens = verdict.tokens.scatter(1, after[:, None], torch.where(short, bonus, verdict.tokens[row, after])[:, None])
    return Verdict(verdict.accepted + short.long(), verdict.path, tokens)


def stale_residual(batch: Batch, draft: Draft, p: Tensor, verdict: Verdict) -> Verdict:
    """Wrong: the correction is drawn from what the first token's q left of p, wherever the draft was rejected."""
    row = torch.arange(len(batch))
    assert draft.probs is not None
    law = residual(p[row, verdict.accepted], draft.probs[:, 0])
    drawn = draw(law, batch.uniforms(Purpose.EXTRA, 1)[:, 0])
    drawn = torch.where(verdict.accepted < draft.lengths, drawn, verdict.tokens[row, verdict.accepted])
    return Verdict(verdict.accepted, verdict.path, verdict.tokens.scatter(1, verdict.accepted[:, None], drawn[:, None]))


@pytest.mark.parametrize("change", [extra_from_p, bonus_after_a_correction, stale_residual])
def test_wrong_tokens_after_a_rejection(change: Callable[[Batch, Draft, Tensor, Verdict], Verdict]) -> None:
    law = replace(EXACT["rejection, a chain"](), acceptor=Wrong(change)).law()
    assert distance(P, law) > 0.01


def test_drawing_again_after_a_failed_match() -> None:
    class Again(ExactAcceptor):
        def decide(self, batch: Batch, draft: Draft, scores: Scores) -> Verdict:
            verdict = super().decide(batch, draft, scores)
            p, row = warp(scores.logits, batch.sampling), torch.arange(len(batch))
            drawn = draw(p[row, verdict.accepted], batch.uniforms(Purpose.EXTRA, 1)[:, 0])[:, None]
            return Verdict(verdict.accepted, verdict.path, verdict.tokens.scatter(1, verdict.accepted[:, None], drawn))

    p = always(0.5, 0.3, 0.2)
    borders = {Purpose.TARGET: [0.5, 0.8], Purpose.EXTRA: [0.5, 0.8]}
    law = Enumeration(p, chain(always(1, 0, 0), Proposal.ONE_HOT), Again(Proposal.ONE_HOT), borders, 2, 1).law()
    assert law.sum(1).tolist() == pytest.approx([0.75, 0.15, 0.10])
    assert not is_law_of(p, law)


def test_most_likely_children_that_are_declared_as_draws() -> None:
    p, q = always(0.5, 0.3, 0.2), always(0.2, 0.2, 0.6)

    class Claims(TableTree):
        def propose(self, batch: Batch) -> Draft:
            top = TableTree(q, self.parents[0].tolist(), Proposal.ONE_HOT).propose(batch)
            return top._replace(probs=torch.tensor(q(())).expand(len(batch), top.width + 1, -1))

    star = Claims(q, (-1, -1), Proposal.INDEPENDENT)
    borders = {Purpose.ACCEPT: [1 / 3], Purpose.EXTRA: [0.5, 0.75, 0.8]} | last(2, [0.5, 0.8])
    law = Enumeration(p, star, ExactAcceptor(Proposal.INDEPENDENT), borders, 2, 1).law()
    assert law.sum(1).tolist() == pytest.approx([2 / 3, 0, 1 / 3])


def test_enumerating_plain_decoding() -> None:
    law = Enumeration(P, None, ExactAcceptor(Proposal.ONE_HOT), {Purpose.TARGET: SIXTHS}, 4, 0).law()
    assert is_law_of(P, law)
    assert law.shape == continuation(P, (), 4).shape == (3,) * 4
