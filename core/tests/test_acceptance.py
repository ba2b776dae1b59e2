"""Exact laws of the acceptance rules. Run: PYTHONPATH=core/src pytest core/tests/test_acceptance.py

Nothing is sampled here. The production functions run on a grid of uniforms, as the batch: midpoints of equal cells, as
many per uniform as make every threshold a cell border, so the mean over the grid is the exact probability. Drafts are
enumerated with their weights. The committed tokens are then continued by p and must have p's law. Wrong variants must
fail the same check, or it would prove nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fastllm_core.acceptance import match, reject_block, reject_chain, reject_tree
from fastllm_core.protocols import Verdict
from fastllm_core.sampling import draw
from fastllm_core.verdicts import depths

Context = tuple[int, ...]
Table = Callable[[Context], Sequence[float]]
"""A distribution of the next token for each context (the tokens since the root)."""
Drafts = Iterable[tuple[Sequence[int], float]]
"""Drafted tokens and the probability that the drafter makes them."""
Law = NDArray[np.float64]
"""float64[V, ..., V]: the probability of each text of a fixed length."""
Decide = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Verdict]
"""(tokens, lengths, q, p, accept_u, extra_u) -> Verdict"""

CHAIN = (-1, 0)
TREE = (-1, -1, 0, 0, 1)
"""The root has two children; the first of them has two, the second one."""
ROOT_ONLY: Context = ()

UNEQUAL = (0.5, 0.3, 0.2), (0.2, 0.2, 0.6)
COINS = (1 / 3, 2 / 3), (2 / 3, 1 / 3)


EVEN = [(1, 2, 3), (3, 1, 2), (2, 3, 1), (3, 2, 1), (1, 3, 2), (2, 1, 3)]
LOPSIDED = [(4, 1, 1), (1, 1, 4), (1, 4, 1)]


def sixths(shift: int, tables: Sequence[Sequence[int]] = EVEN) -> Table:
    """Distributions in sixths that depend on every token of the context."""

    @cache
    def table(context: Context) -> list[float]:
        place = shift + len(context) + sum((i + 2) * token for i, token in enumerate(context))
        return [part / 6 for part in tables[place % len(tables)]]

    return table


def always(*probs: float) -> Table:
    """The same distribution in every context."""
    return lambda _: probs


P, Q = sixths(1), sixths(4)


# -- laws --------------------------------------------------------------------------------------------------------------


def law_of(p: Table, committed: Iterable[tuple[Context, float]], length: int) -> Law:
    """The law of texts of one length: committed tokens with their weights, continued by p or cut."""
    vocabulary = len(p(ROOT_ONLY))
    law = np.zeros((vocabulary,) * length)
    for start, weight in committed:
        cells = law[start[:length]]
        start = start[:length]
        if len(start) == length:
            law[start] += weight
            continue
        cells += weight * continuation(p, start, length)
    return law


@cache
def continuation(p: Table, start: Context, length: int) -> Law:
    """float64[V, ...]: p's law of the tokens that bring `start` to `length`."""
    probs = np.array(p(start))
    if len(start) + 1 == length:
        return probs
    rest = [continuation(p, (*start, token), length) for token in range(len(probs))]
    return np.stack([prob * law for prob, law in zip(probs, rest, strict=True)])


def is_law_of(p: Table, law: Law) -> bool:
    return bool(np.abs(law - continuation(p, ROOT_ONLY, law.ndim)).max() < 1e-9)


def committed(verdict: Verdict, weight: float = 1.0) -> Iterator[tuple[Context, float]]:
    """What the rows of a batch commit, each with its share of `weight`."""
    digits = verdict.tokens + 1  # a text as one number: far faster than unique rows
    base = int(digits.max()) + 1
    powers = base ** torch.arange(digits.shape[1])
    for code, count in enumerate((digits * powers).sum(1).bincount().tolist()):
        if count:
            text = [code // power % base - 1 for power in powers.tolist()]
            yield tuple(token for token in text if token >= 0), weight * count / len(digits)


def grid(*sizes: int) -> Tensor:
    """float64[R, len(sizes)]: the midpoints of all cells."""
    axes = [(torch.arange(size, dtype=torch.float64) + 0.5) / size for size in sizes]
    return torch.cartesian_prod(*axes).view(-1, len(sizes))


# -- drafts ------------------------------------------------------------------------------------------------------------


def contexts(tokens: Sequence[int], parents: Sequence[int]) -> list[Context]:
    """The context that each row of a verification scores, the root's first."""
    rows = [ROOT_ONLY]
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
    def decide(tokens: Tensor, lengths: Tensor, q: Tensor, p: Tensor, accept_u: Tensor, extra_u: Tensor) -> Verdict:
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
    ("q", "cells"), [(sixths(0), grid(42, 12, 6)), (sixths(1, LOPSIDED), grid(14, 8, 6))], ids=["even", "lopsided"]
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


def test_deterministic_candidates() -> None:
    p = always(*UNEQUAL[0])
    verdict = matched((2, 0), (-1, -1), p, grid(10, 10), chain=False)
    assert verdict.accepted.double().mean().item() == pytest.approx(0.7, abs=1e-12)
    assert is_law_of(p, law_of(p, committed(verdict), 2))


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


# -- several rounds ----------------------------------------------------------------------------------------------------


COIN, FALSE_COIN = always(0.5, 0.5), always(0.75, 0.25)


def rounds(rule: Decide, *, by_position: bool) -> Law:
    """The law of three coins written in rounds of up to two drafted tokens.

    One grid gives three uniforms each for drafting, accepting and the extra token. They are keyed by position, or, as
    `Batch.uniforms` does, by the round's start too: node i of start 0 takes column i, the one node of start 1 column 2.
    """
    p, q = (torch.tensor(coin(ROOT_ONLY), dtype=torch.float64) for coin in (COIN, FALSE_COIN))
    cells = grid(*[4, 4, 4], *[15, 9, 3], *[2, 2, 2])
    draft_u, accept_u, extra_u = cells[:, :3], cells[:, 3:6], cells[:, 6:]
    texts = torch.full((len(cells), 2 * 3), -1)
    done = torch.zeros(len(cells), dtype=torch.int64)
    for _ in range(3):
        first = done if by_position else 2 * (done == 1)
        columns = (first[:, None] + torch.arange(2)).clamp(max=2)
        decide = partial(
            rule,
            draw(q.expand(len(cells), 2, 2), draft_u.gather(1, columns)),
            (2 - done).clamp(min=0),
            q.expand(len(cells), 2, 2),
            p.expand(len(cells), 3, 2),
            accept_u.gather(1, columns),
        )
        last = done + decide(extra_u[:, 0]).accepted if by_position else done
        verdict = decide(extra_u.gather(1, last.clamp(max=2)[:, None])[:, 0])
        texts.scatter_(1, done[:, None] + torch.arange(3), verdict.tokens)
        done = (done + verdict.accepted + 1).clamp(max=3)
    return law_of(COIN, committed(Verdict(done, texts, texts[:, :3])), 3)


@pytest.mark.parametrize("rule", [reject_chain, reject_block])
def test_rounds_keep_the_law_with_fresh_uniforms(rule: Decide) -> None:
    assert is_law_of(COIN, rounds(rule, by_position=False))


def test_uniforms_keyed_by_position_alone_bias_block_verification() -> None:
    """It looks at the uniforms of all drafted tokens, and the next round meets the discarded ones again."""
    law = rounds(reject_block, by_position=True)
    assert not is_law_of(COIN, law)
    assert np.abs(law - continuation(COIN, ROOT_ONLY, 3)).sum() / 2 > 0.01
    assert is_law_of(COIN, rounds(reject_chain, by_position=True))  # whose discarded uniforms decided nothing


# -- shapes and edges --------------------------------------------------------------------------------------------------


def test_depths() -> None:
    assert depths(torch.tensor([TREE, (-1, 0, 1, 2, 3), (-1,) * 5])).tolist() == [
        [0, 1, 1, 2, 2, 2],
        [0, 1, 2, 3, 4, 5],
        [0, 1, 1, 1, 1, 1],
    ]
    assert depths(torch.zeros(2, 0, dtype=torch.int64)).tolist() == [[0], [0]]


def test_match_takes_the_first_of_equal_siblings_and_no_padding() -> None:
    tokens = torch.tensor([[7, 7, 8, 8, 9]])
    parents = torch.tensor([[-1, -1, 0, 1, 2]])
    choices = torch.tensor([[7, 8, 8, 9, 9, 1]])
    verdict = match(tokens, torch.tensor([5]), parents, choices)
    assert verdict.path.tolist() == [[0, 2, 4, -1, -1]]
    assert verdict.tokens.tolist() == [[7, 8, 9, 1, -1, -1]]
    cut = match(tokens, torch.tensor([4]), parents, choices)
    assert cut.path.tolist() == [[0, 2, -1, -1, -1]]
    assert cut.tokens.tolist() == [[7, 8, 9, -1, -1, -1]]
    assert match(tokens, torch.tensor([0]), parents, choices).tokens.tolist() == [[7, -1, -1, -1, -1, -1]]


@pytest.mark.parametrize("count", [1, 2, 7, 8, 33])
def test_match_on_random_trees_equals_a_plain_walk(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    node = torch.arange(count)
    parents = (torch.rand(200, count, generator=generator) * (node + 1)).long() - 1
    tokens = torch.randint(0, 3, (200, count), generator=generator)
    choices = torch.randint(0, 3, (200, count + 1), generator=generator)
    lengths = torch.randint(0, count + 1, (200,), generator=generator)
    verdict = match(tokens, lengths, parents, choices)
    rows = zip(tokens.tolist(), parents.tolist(), choices.tolist(), lengths.tolist(), strict=True)
    for b, row in enumerate(rows):
        path, text = walk(*row)
        assert verdict.accepted[b] == len(path)
        assert verdict.path[b].tolist() == path + [-1] * (count - len(path))
        assert verdict.tokens[b].tolist() == text + [-1] * (count - len(path))


def walk(tokens: list[int], parents: list[int], choices: list[int], length: int) -> tuple[list[int], list[int]]:
    """Match by the book: at each node look for the first child that carries the choice."""
    path: list[int] = []
    text = [choices[0]]
    for node in range(length):
        if parents[node] == (path[-1] if path else -1) and tokens[node] == text[-1]:
            path.append(node)
            text.append(choices[node + 1])
    return path, text


@pytest.mark.parametrize("rule", [reject_chain, reject_block, tree(CHAIN, without_replacement=True)], ids=RULES)
def test_equal_distributions_accept_everything(rule: Decide) -> None:
    """Also in float32, where nothing is left of p - q but rounding."""
    probs = torch.rand(50, 3, 100, generator=torch.Generator().manual_seed(0)).softmax(-1)
    tokens = probs[:, :2].argmax(-1)
    nearly_one = torch.full((50, 2), 1 - 2.0**-53, dtype=torch.float64)
    verdict = rule(tokens, torch.full((50,), 2), probs, probs, nearly_one, nearly_one[:, 0])
    assert (verdict.accepted == 2).all()


@pytest.mark.parametrize("rule", [reject_chain, reject_block, tree(CHAIN, without_replacement=False)], ids=RULES)
def test_an_impossible_token_is_never_kept(rule: Decide) -> None:
    p, q = torch.tensor([0.0, 1.0]).expand(1, 3, 2), torch.tensor([1.0, 0.0]).expand(1, 3, 2)
    zeros = torch.zeros(1, 2, dtype=torch.float64)
    verdict = rule(torch.zeros(1, 2, dtype=torch.int64), torch.tensor([2]), q, p, zeros, zeros[:, 0])
    assert verdict.tokens.tolist() == [[1, -1, -1]]


def test_a_child_that_an_exhausted_q_cannot_have_drawn_is_refused() -> None:
    p, q = torch.tensor([0.25, 0.75]).expand(1, 3, 2), torch.tensor([1.0, 0.0]).expand(1, 3, 2)
    accept_u = torch.tensor([[0.5, 0.0]], dtype=torch.float64)
    verdict = tree((-1, -1), without_replacement=True)(
        torch.tensor([[0, 1]]), torch.tensor([2]), q, p, accept_u, accept_u[:, 0]
    )
    assert verdict.tokens.tolist() == [[1, -1, -1]]
    assert verdict.accepted.item() == 0


@pytest.mark.parametrize("rule", [reject_chain, reject_block, tree((), without_replacement=True)], ids=RULES)
@pytest.mark.parametrize("q_rows", [0, 1])
def test_a_draft_of_nothing_samples_the_target(rule: Decide, q_rows: int) -> None:
    cells = grid(10)
    p = torch.tensor(UNEQUAL[0]).expand(10, 1, 3)
    empty = torch.zeros(10, 0)
    lengths = torch.zeros(10, dtype=torch.int64)
    verdict = rule(empty.long(), lengths, p[:, :q_rows], p, empty.double(), cells[:, 0])
    assert verdict.path.shape == (10, 0)
    assert verdict.tokens.flatten().bincount().tolist() == [5, 3, 2]


def test_nothing_waits_for_the_device() -> None:
    """Fake tensors have no values, so whatever reads one on the host fails."""
    with FakeTensorMode():
        tokens, lengths, parents = (torch.zeros(shape, dtype=torch.int64) for shape in ((2, 5), (2,), (2, 5)))
        p, accept_u = torch.zeros(2, 6, 7), torch.zeros(2, 5, dtype=torch.float64)
        for above in (None, parents):
            assert match(tokens, lengths, above, tokens.new_zeros(2, 6)).tokens.shape == (2, 6)
        rules: list[Decide] = [reject_chain, reject_block, tree(TREE, without_replacement=True)]
        for rule in rules:
            verdict = rule(tokens, lengths, p, p, accept_u, accept_u[:, 0])
            assert (verdict.accepted.shape, verdict.path.shape, verdict.tokens.shape) == ((2,), (2, 5), (2, 6))
