"""Exact laws of the acceptance rules. Run: PYTHONPATH=core/src pytest core/tests/test_acceptance.py

Nothing is sampled here. The production functions run on a grid of uniforms, as the batch: midpoints of equal cells, as
many per uniform as make every threshold a cell border, so the mean over the grid is the exact probability. Drafts are
enumerated with their weights. The committed tokens are then continued by p and must have p's law. Wrong variants must
fail the same check, or it would prove nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from fastllm_core import acceptance
from fastllm_core.acceptance import match, reject_block, reject_chain, reject_tree
from fastllm_core.protocols import Verdict
from fastllm_core.sampling import draw
from fastllm_core.testing.laws import LOPSIDED, Context, Law, Table, always, committed, grid, is_law_of, law_of, varied
from fastllm_core.verdicts import HostVerdict, depths

Drafts = Iterable[tuple[Sequence[int], float]]
"""Drafted tokens and the probability that the drafter makes them."""
Decide = Callable[[Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor], Verdict]
"""(tokens, lengths, q, p, accept_u, extra_u) -> Verdict"""

CHAIN = (-1, 0)
TREE = (-1, -1, 0, 0, 1)
"""The root has two children; the first of them has two, the second one."""

UNEQUAL = (0.5, 0.3, 0.2), (0.2, 0.2, 0.6)
COINS = (1 / 3, 2 / 3), (2 / 3, 1 / 3)
P, Q = varied(1), varied(4)


# -- drafts ------------------------------------------------------------------------------------------------------------


def contexts(tokens: Sequence[int], parents: Sequence[int]) -> list[Context]:
    """The context that each row of a verification scores, the root's first."""
    rows: list[Context] = [()]
    for token, parent in zip(tokens, parents, strict=True):
        rows.append((*rows[parent + 1], token))
    return rows


def table_rows(table: Table, tokens: Sequence[int], parents: Sequence[int]) -> Tensor:
    """float64[W, V]"""
    return torch.tensor([table(context) for context in contexts(tokens, parents)], dtype=torch.float64)


def drawn(q: Table, parents: Sequence[int], *, without_replacement: bool = False) -> Drafts:
    """All drafts whose nodes are drawn from their parent's q, in order."""
    found: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
    for node, parent in enumerate(parents):
        siblings = [i for i in range(node) if parents[i] == parent]
        longer = []
        for tokens, weight in found:
            probs = np.array(q(contexts(tokens, parents[:node])[parent + 1]))
            if without_replacement:
                probs[[tokens[i] for i in siblings]] = 0
                probs /= probs.sum()
            longer += [((*tokens, token), weight * prob) for token, prob in enumerate(probs) if prob]
        found = longer
    return found


def verdicts(
    decide: Decide,
    drafts: Drafts,
    parents: Sequence[int],
    tables: tuple[Table, Table],
    uniforms: tuple[Tensor, Sequence[int]],
    stop: Callable[[Sequence[int]], int] = len,
) -> Iterator[tuple[Verdict, float]]:
    """Decide every draft on the whole grid.

    uniforms: the grid and which of its columns decides each node; its last column draws the extra token. Nodes of which
    never both are tried may share a column. stop: how many of the drawn tokens are kept in the draft.
    """
    cells, columns = uniforms
    for tokens, weight in drafts:
        length = stop(tokens)
        shown = [*tokens[:length], *[-1, 99][: len(tokens) - length]]  # padding may hold anything
        p, q = (table_rows(table, tokens, parents).expand(len(cells), -1, -1) for table in tables)
        batch = torch.tensor(shown, dtype=torch.int64).expand(len(cells), -1)
        lengths = torch.full((len(cells),), length)
        yield decide(batch, lengths, q, p, cells[:, list(columns)], cells[:, -1]), weight


def law_over(p: Table, decided: Iterable[tuple[Verdict, float]], length: int) -> Law:
    return law_of(p, itertools.chain.from_iterable(committed(*pair) for pair in decided), length)


def tree(parents: Sequence[int], *, without_replacement: bool) -> Decide:
    def decide(
        tokens: Tensor, lengths: Tensor, q: Tensor | None, p: Tensor, accept_u: Tensor, extra_u: Tensor
    ) -> Verdict:
        above = torch.tensor(parents, dtype=torch.int64).expand_as(tokens)
        return reject_tree(tokens, lengths, above, q, p, accept_u, extra_u, without_replacement=without_replacement)

    return decide


STOPS = ["never", "after-a-token", "after-one", "at-once"]


def stop_after(token: int) -> Callable[[Sequence[int]], int]:
    """A drafter that drafts no second token if the first is `token`, which it keeps."""
    return lambda tokens: 1 + (tokens[0] != token)


RULES = ["chain", "block", "tree"]


# -- the rules keep p's law ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [len, stop_after(2), lambda _: 1, lambda _: 0], ids=STOPS)
def test_rejection_on_a_chain(stop: Callable[[Sequence[int]], int]) -> None:
    """Also where the drafter stops after a token that it has drawn, which stays in the draft."""
    cells = grid(6, 6, 6), (0, 1)
    decided = verdicts(reject_chain, drawn(Q, CHAIN), CHAIN, (P, Q), cells, stop)
    assert is_law_of(P, law_over(P, decided, 3))


@pytest.mark.parametrize("stop", [len, stop_after(1), lambda _: 1, lambda _: 0], ids=STOPS)
@pytest.mark.parametrize(
    ("q", "cells"), [(varied(0), grid(42, 12, 6)), (varied(1, LOPSIDED), grid(14, 8, 6))], ids=["even", "lopsided"]
)
def test_block_verification_on_a_chain(stop: Callable[[Sequence[int]], int], q: Table, cells: Tensor) -> None:
    """Between them the tables have many thresholds, and residuals that P_i < 1 changes."""
    decided = verdicts(reject_block, drawn(q, CHAIN), CHAIN, (P, q), (cells, (0, 1)), stop)
    assert is_law_of(P, law_over(P, decided, 3))


@pytest.mark.parametrize("without_replacement", [False, True])
def test_rejection_on_a_tree(without_replacement: bool) -> None:
    cells = grid(6, *((12, 12) if without_replacement else (6, 6)), 6), (0, 1, 1, 2, 2)
    drafts = drawn(Q, TREE, without_replacement=without_replacement)
    decided = verdicts(tree(TREE, without_replacement=without_replacement), drafts, TREE, (P, Q), cells)
    assert is_law_of(P, law_over(P, decided, 3))


def test_rejection_on_a_ragged_tree() -> None:
    """The draft ends after the first child's first child if the root's second child is token 0."""
    cells = grid(6, 6, 6, 6), (0, 1, 1, 2, 2)
    decided = verdicts(
        tree(TREE, without_replacement=False),
        drawn(Q, TREE),
        TREE,
        (P, Q),
        cells,
        lambda tokens: 3 + 2 * (tokens[1] > 0),
    )
    assert is_law_of(P, law_over(P, decided, 3))


def test_a_tree_that_is_a_chain_decides_as_the_chain_does() -> None:
    cells = grid(6, 6, 6), (0, 1)
    rules = [reject_chain, tree(CHAIN, without_replacement=False), tree(CHAIN, without_replacement=True)]
    runs = [list(verdicts(rule, drawn(Q, CHAIN), CHAIN, (P, Q), cells)) for rule in rules]
    for (chain, _), *trees in zip(*runs, strict=True):
        for verdict, _ in trees:
            assert torch.equal(verdict.tokens, chain.tokens)
            assert torch.equal(verdict.path, chain.path)


def matched(tokens: Sequence[int], parents: Sequence[int], p: Table, cells: Tensor, chain: bool) -> Verdict:
    """Match one draft on the whole grid; rows of one depth share a uniform, as keys by position do."""
    above = torch.tensor(parents, dtype=torch.int64)[None]
    batch = torch.tensor(tokens, dtype=torch.int64).expand(len(cells), -1)
    choices = draw(table_rows(p, tokens, parents).expand(len(cells), -1, -1), cells[:, depths(above)[0]])
    return match(batch, torch.full((len(cells),), len(tokens)), None if chain else above.expand_as(batch), choices)


@pytest.mark.parametrize("parents", [(), CHAIN, TREE])
def test_match_keeps_the_law_for_every_single_draft(parents: Sequence[int]) -> None:
    """Whatever the drafter says, duplicates among siblings too, and the text does not depend on it at all."""
    cells = grid(6, 6, 6)
    for tokens in itertools.product(range(3), repeat=len(parents)):
        verdict = matched(tokens, parents, P, cells, chain=False)
        assert is_law_of(P, law_of(P, committed(verdict), 3))
        if parents != TREE:
            assert torch.equal(verdict.tokens, matched(tokens, parents, P, cells, chain=True).tokens)


# -- known numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "count", "expected"),
    [
        *[(reject_chain, count, mean) for count, mean in enumerate((5 / 3, 19 / 9, 65 / 27, 211 / 81), 1)],
        *[(reject_block, count, mean) for count, mean in enumerate((5 / 3, 20 / 9, 8 / 3, 247 / 81), 1)],
    ],
)
def test_mean_number_of_committed_tokens(rule: Decide, count: int, expected: float) -> None:
    p, q = (always(*coin) for coin in COINS)
    parents = tuple(range(-1, count - 1))
    cells = grid(*[2**i for i in range(1, count + 1)], 3), range(count)
    decided = list(verdicts(rule, drawn(q, parents), parents, (p, q), cells))
    mean = sum(weight * (1 + verdict.accepted.double().mean().item()) for verdict, weight in decided)
    assert mean == pytest.approx(expected, abs=1e-12)
    assert is_law_of(p, law_over(p, decided, count + 1))


@pytest.mark.parametrize(
    ("without_replacement", "count", "expected"),
    [(False, 1, 0.6), (False, 2, 0.76), (False, 3, 0.828), (True, 1, 0.6), (True, 2, 0.9), (True, 3, 1.0)],
)
def test_probability_that_one_of_several_candidates_is_accepted(
    without_replacement: bool, count: int, expected: float
) -> None:
    p, q = (always(*probs) for probs in UNEQUAL)
    star = (-1,) * count
    cells = grid(*(3, 12, 12)[:count], 12), range(count)
    drafts = drawn(q, star, without_replacement=without_replacement)
    decided = list(verdicts(tree(star, without_replacement=without_replacement), drafts, star, (p, q), cells))
    accepted = sum(weight * verdict.accepted.double().mean().item() for verdict, weight in decided)
    assert accepted == pytest.approx(expected, abs=1e-12)
    assert is_law_of(p, law_over(p, decided, 1))


@pytest.mark.parametrize("children", [(2, 0), (0, 2)])
def test_deterministic_candidates(children: tuple[int, int]) -> None:
    """By *match*, or tried one by one with probability p, then zero and normalise: the same law, in either order."""
    p = always(*UNEQUAL[0])
    verdict = matched(children, (-1, -1), p, grid(10, 10), chain=False)
    assert verdict.accepted.double().mean().item() == pytest.approx(0.7, abs=1e-12)
    assert is_law_of(p, law_of(p, committed(verdict), 2))
    cells = grid(10, 40, 10)
    one_by_one = tree((-1, -1), without_replacement=False)(
        torch.tensor(children).expand(len(cells), 2), torch.full((len(cells),), 2), None,
        table_rows(p, children, (-1, -1)).expand(len(cells), -1, -1), cells[:, :2], cells[:, 2],
    )  # fmt: skip
    assert one_by_one.accepted.double().mean().item() == pytest.approx(0.7, abs=1e-12)
    assert is_law_of(p, law_of(p, committed(one_by_one), 2))


@pytest.mark.parametrize("rule", RULES)
def test_a_greedy_target_beside_sampling_rows_keeps_its_arg_max(rule: str) -> None:
    """Its p is one-hot, whatever the drafter drew from."""
    best = always(0.0, 1.0, 0.0)
    decide = {"chain": reject_chain, "block": reject_block, "tree": tree(CHAIN, without_replacement=True)}[rule]
    law = law_over(best, verdicts(decide, drawn(Q, CHAIN), CHAIN, (best, Q), (grid(6, 6, 6), (0, 1))), 3)
    assert is_law_of(best, law)


# -- wrong variants are caught -----------------------------------------------------------------------------------------


def assert_caught(p: Table, law: Law, expected: Sequence[float]) -> None:
    """The check refuses the law, and it is the known wrong one."""
    assert law.tolist() == pytest.approx(list(expected), abs=1e-9)
    assert not is_law_of(p, law)


def test_wrong_stale_q_after_drawing_without_replacement() -> None:
    p, q = (always(*probs) for probs in UNEQUAL)
    stale = tree((-1, -1), without_replacement=False)
    drafts = drawn(q, (-1, -1), without_replacement=True)
    law = law_over(p, verdicts(stale, drafts, (-1, -1), (p, q), (grid(3, 12, 12), (0, 1))), 1)
    assert_caught(p, law, (0.4, 0.4, 0.2))


def test_wrong_top_candidates_treated_as_draws() -> None:
    p, q = (always(*probs) for probs in UNEQUAL)
    top_k: Drafts = [((2, 0), 1.0)]
    law = law_over(
        p, verdicts(tree((-1, -1), without_replacement=False), top_k, (-1, -1), (p, q), (grid(3, 12, 12), (0, 1))), 1
    )
    assert_caught(p, law, (2 / 3, 0, 1 / 3))


@pytest.mark.parametrize(
    ("p", "q", "expected"),
    [((0.5, 0.5), (0.9, 0.1), (0.55, 0.45)), ((0.2, 0.5, 0.3), (0.7, 0.2, 0.1), (0.26, 0.45, 0.29))],
)
def test_wrong_dropping_a_drawn_token(p: Sequence[float], q: Sequence[float], expected: Sequence[float]) -> None:
    """Unlike `test_rejection_on_a_chain`, where the token after which the drafter stops stays."""
    tables = always(*p), always(*q)

    def confident(tokens: Sequence[int]) -> int:
        return int(q[tokens[0]] >= 0.5)

    cells = grid(63, 10), (0,)
    law = law_over(tables[0], verdicts(reject_chain, drawn(tables[1], (-1,)), (-1,), tables, cells, confident), 1)
    assert_caught(tables[0], law, expected)


def match_then_draw_again(tokens: Tensor, lengths: Tensor, p: Tensor, first_u: Tensor, second_u: Tensor) -> Verdict:
    """Wrong: the token after a failed match is drawn afresh."""
    verdict = match(tokens, lengths, None, draw(p, first_u))
    extra = draw(p[:, 0], second_u)
    fresh = verdict.tokens.clone()
    fresh[:, 0] = torch.where(verdict.accepted == 0, extra, fresh[:, 0])
    return Verdict(verdict.accepted, verdict.path, fresh)


def test_wrong_drawing_again_after_a_failed_match() -> None:
    p = always(*UNEQUAL[0])
    cells = grid(10, 10)
    tokens = torch.zeros(len(cells), 1, dtype=torch.int64)
    rows = table_rows(p, (0,), (-1,)).expand(len(cells), -1, -1)
    verdict = match_then_draw_again(tokens, tokens[:, 0] + 1, rows, cells[:, :1].expand(-1, 2), cells[:, 1])
    assert_caught(p, law_of(p, committed(verdict), 1), (0.75, 0.15, 0.10))


def test_wrong_arg_max_draft_with_soft_q() -> None:
    p, q = always(0.5, 0.3, 0.2), always(0.6, 0.3, 0.1)
    arg_max: Drafts = [((0,), 1.0)]
    law = law_over(p, verdicts(reject_chain, arg_max, (-1,), (p, q), (grid(6, 12), (0,))), 1)
    assert_caught(p, law, (5 / 6, 0, 1 / 6))
    one_hot = always(1.0, 0.0, 0.0)
    right = law_over(p, verdicts(reject_chain, arg_max, (-1,), (p, one_hot), (grid(10, 10), (0,))), 1)
    assert is_law_of(p, right)


@pytest.mark.parametrize("seed", range(5))
def test_a_chain_is_matched_alike_on_the_host_and_by_tensors(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 2, (8, 4), generator=draws)
    lengths = torch.randint(0, 5, (8,), generator=draws)
    choices = torch.randint(0, 2, (8, 5), generator=draws)
    mine = match(tokens, lengths, None, choices)
    assert isinstance(mine, HostVerdict)
    monkeypatch.setattr(acceptance, "_FEW", 0)
    theirs = match(tokens, lengths, None, choices)
    assert not isinstance(theirs, HostVerdict)
    for part in ("accepted", "path", "tokens"):
        assert torch.equal(getattr(mine, part), getattr(theirs, part))
    assert mine.committed == [
        line[: kept + 1] for line, kept in zip(theirs.tokens.tolist(), theirs.accepted, strict=True)
    ]
