"""Shapes, padding, order and rounding of the exact rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from fastllm_core.acceptance import match, reject_block, reject_chain, reject_tree, residual
from fastllm_core.protocols import Verdict
from fastllm_core.testing.laws import grid
from fastllm_core.verdicts import depths, path_to_root

Decide = Callable[[Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor], Verdict]
"""(tokens, lengths, q, p, accept_u, extra_u) -> Verdict"""

CHAIN = (-1, 0)
TREE = (-1, -1, 0, 0, 1)
RULES = ["chain", "block", "tree"]


def tree(parents: Sequence[int], *, without_replacement: bool) -> Decide:
    def decide(
        tokens: Tensor, lengths: Tensor, q: Tensor | None, p: Tensor, accept_u: Tensor, extra_u: Tensor
    ) -> Verdict:
        above = torch.tensor(parents, dtype=torch.int64).expand_as(tokens)
        return reject_tree(tokens, lengths, above, q, p, accept_u, extra_u, without_replacement=without_replacement)

    return decide


def test_depths() -> None:
    assert depths(torch.tensor([TREE, (-1, 0, 1, 2, 3), (-1,) * 5])).tolist() == [
        [0, 1, 1, 2, 2, 2],
        [0, 1, 2, 3, 4, 5],
        [0, 1, 1, 1, 1, 1],
    ]
    assert depths(torch.zeros(2, 0, dtype=torch.int64)).tolist() == [[0], [0]]


def test_path_to_root() -> None:
    parents = torch.tensor([TREE, (-1, 0, 1, 2, 3)])
    on_path = {row: path_to_root(torch.tensor([row, row]), parents).long().tolist() for row in (0, 3, 5)}
    assert on_path == {
        0: [[0] * 5, [0] * 5],
        3: [[1, 0, 1, 0, 0], [1, 1, 1, 0, 0]],
        5: [[0, 1, 0, 0, 1], [1] * 5],
    }


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


def test_a_residual_of_nothing_is_p() -> None:
    p = torch.rand(5, 100, generator=torch.Generator().manual_seed(0)).softmax(-1)
    for weight in (1.0, torch.full((5, 1), 0.5, dtype=torch.float64), torch.zeros(5, 1, dtype=torch.float64)):
        assert torch.equal(residual(p, p, weight), p.double())
    assert residual(torch.tensor([[0.5, 0.5]]), torch.tensor([[0.5, 0.25]])).tolist() == [[0, 1]]


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
    p = torch.tensor([0.5, 0.3, 0.2]).expand(10, 1, 3)
    empty = torch.zeros(10, 0)
    lengths = torch.zeros(10, dtype=torch.int64)
    verdict = rule(empty.long(), lengths, p[:, :q_rows], p, empty.double(), cells[:, 0])
    assert verdict.path.shape == (10, 0)
    assert verdict.tokens.flatten().bincount().tolist() == [5, 3, 2]


def test_nothing_waits_for_the_device() -> None:
    """Tensors of this device have no values, so whatever reads one on the host fails. A processor may."""
    with torch.device("meta"):
        tokens, lengths, parents = (torch.zeros(shape, dtype=torch.int64) for shape in ((2, 5), (2,), (2, 5)))
        p, accept_u = torch.zeros(2, 6, 7), torch.zeros(2, 5, dtype=torch.float64)
        for above in (None, parents):
            assert match(tokens, lengths, above, tokens.new_zeros(2, 6)).tokens.shape == (2, 6)
        rules: list[Decide] = [reject_chain, reject_block, tree(TREE, without_replacement=True)]
        for rule in rules:
            verdict = rule(tokens, lengths, p, p, accept_u, accept_u[:, 0])
            assert (verdict.accepted.shape, verdict.path.shape, verdict.tokens.shape) == ((2,), (2, 5), (2, 6))
