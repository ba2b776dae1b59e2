"""Positions, slots and masks against a slow, obvious reference."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from fastllm_core.layout import LINE, SMALL, Slate, ancestors, chain, numbers, tree

EXTENT = 24


def random_parents(rng: random.Random, nodes: int) -> list[int]:
    return [rng.randrange(-1, node) for node in range(nodes)]


def path_to_root(parents: list[int], node: int) -> list[int]:
    """Nodes from the root's child down to `node`."""
    path: list[int] = []
    while node >= 0:
        path.insert(0, node)
        node = parents[node]
    return path


def seen(mask: Tensor) -> set[int]:
    return set(mask.nonzero().flatten().tolist())


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_a_chain_sees_what_came_before(rows: int) -> None:
    starts = [0, 3, 17]
    tokens = torch.arange(3 * rows).reshape(3, rows)
    inputs = chain(tokens, torch.tensor(starts), EXTENT)
    assert inputs.tokens is tokens
    assert inputs.hidden is None
    assert inputs.key_positions is None  # slot and position agree
    assert inputs.mask.shape == (3, rows, EXTENT)
    for b, start in enumerate(starts):
        assert inputs.positions[b].tolist() == inputs.slots[b].tolist() == list(range(start, start + rows))
        for r in range(rows):
            assert seen(inputs.mask[b, r]) == set(range(start + r + 1))


@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("starts", [[0], [9], [EXTENT - 1], [EXTENT], [10 * EXTENT], [0, 3, 17]])
@pytest.mark.parametrize("extent", [EXTENT, 2 * SMALL])
def test_starts_on_the_host_say_the_same(rows: int, extent: int, starts: list[int]) -> None:
    """With padding beyond the extent, too."""
    tokens = torch.arange(len(starts) * rows).reshape(len(starts), rows)
    mine, theirs = chain(tokens, starts, extent), chain(tokens, torch.tensor(starts), extent)
    assert mine.tokens is tokens
    for part in ("positions", "slots", "mask"):
        assert torch.equal(getattr(mine, part), getattr(theirs, part))
        assert getattr(mine, part).is_contiguous()


@pytest.mark.parametrize("values", [[0], [5], [LINE - 1], [LINE], [-1], [3, 1 << 40]])
def test_numbers_are_what_they_are(values: list[int]) -> None:
    made = numbers(values, torch.device("cpu"))
    assert made.tolist() == values
    assert made.dtype == torch.long


def test_a_slate_is_written_over() -> None:
    slate = Slate(torch.device("cpu"))
    first = slate.write([[3, 4], [5, 6]])
    assert first.tolist() == [[3, 4], [5, 6]]
    assert slate.write([[7, 8, 9]]).tolist() == [[7, 8, 9]]
    assert first.tolist() == [[3, 4], [5, 6]], "another size lies elsewhere"
    second = slate.write([(1, 2), (3, 4)])
    assert second.data_ptr() == first.data_ptr()
    assert second.tolist() == [[1, 2], [3, 4]]
    assert second.dtype == torch.int64
    assert not second.is_inference()


def test_padding_beyond_the_extent_shares_the_last_slot() -> None:
    inputs = chain(torch.zeros(2, 4, dtype=torch.long), torch.tensor([1, 6]), 8)
    assert inputs.slots.tolist() == [[1, 2, 3, 4], [6, 7, 7, 7]]
    assert inputs.positions.tolist() == [[1, 2, 3, 4], [6, 7, 8, 9]]


def test_hidden_states_take_the_place_of_tokens() -> None:
    tokens, starts, hidden = torch.zeros(1, 2, dtype=torch.long), torch.tensor([5]), torch.zeros(1, 2, 3)
    sees, depths = torch.eye(2, dtype=torch.bool)[None], torch.zeros(1, 2, dtype=torch.long)
    for inputs in (chain(tokens, starts, 8, hidden=hidden), tree(tokens, sees, depths, starts, 8, hidden=hidden)):
        assert inputs.tokens is None
        assert inputs.hidden is hidden


@pytest.mark.parametrize("nodes", [0, 1, 2, 3, 4, 7, 8, 9, 33])
def test_ancestors_are_the_path_to_the_root(nodes: int) -> None:
    rng = random.Random(nodes)
    trees = [random_parents(rng, nodes) for _ in range(20)]
    trees += [list(range(-1, nodes - 1)), [-1] * nodes]  # the deepest and the flattest
    paths = ancestors(torch.tensor(trees, dtype=torch.long).reshape(len(trees), nodes))
    assert paths.shape == (len(trees), nodes + 1, nodes + 1)
    for b, parents in enumerate(trees):
        for row in range(nodes + 1):
            assert seen(paths[b, row]) == {0, *(node + 1 for node in path_to_root(parents, row - 1))}


@pytest.mark.parametrize("seed", range(20))
def test_a_tree_sees_the_cache_and_its_own_path(seed: int) -> None:
    rng = random.Random(seed)
    nodes = rng.randrange(0, 9)
    starts = [rng.randrange(0, EXTENT - nodes) for _ in range(3)]
    trees = [random_parents(rng, nodes) for _ in starts]
    sees = ancestors(torch.tensor(trees, dtype=torch.long).reshape(3, nodes))
    tokens = torch.zeros(3, nodes + 1, dtype=torch.long)
    inputs = tree(tokens, sees, sees.sum(-1) - 1, torch.tensor(starts), EXTENT)
    assert inputs.key_positions is not None
    for b, (start, parents) in enumerate(zip(starts, trees, strict=True)):
        depth = [0, *(len(path_to_root(parents, node)) for node in range(nodes))]
        assert inputs.slots[b].tolist() == list(range(start, start + nodes + 1))
        assert inputs.positions[b].tolist() == [start + level for level in depth]
        inside = [start + level for level in depth]
        beyond = list(range(start + nodes + 1, EXTENT))
        assert inputs.key_positions[b].tolist() == [*range(start), *inside, *beyond]
        for row in range(nodes + 1):
            path = {start, *(start + 1 + node for node in path_to_root(parents, row - 1))}
            assert seen(inputs.mask[b, row]) == set(range(start)) | path


@pytest.mark.parametrize("seed", range(5))
def test_a_tree_may_see_anything_of_its_own_forward(seed: int) -> None:
    """Extra rows bring a mask that is no path at all."""
    draws = torch.Generator().manual_seed(seed)
    sees = torch.rand(2, 5, 5, generator=draws) < 0.5
    depths = torch.randint(0, 4, (2, 5), generator=draws)
    inputs = tree(torch.zeros(2, 5, dtype=torch.long), sees, depths, torch.tensor([0, 9]), EXTENT)
    for b, start in enumerate((0, 9)):
        for row in range(5):
            assert seen(inputs.mask[b, row]) == set(range(start)) | {start + other for other in seen(sees[b, row])}


def test_a_chain_is_a_tree_without_branches() -> None:
    tokens, starts = torch.arange(10).reshape(2, 5), torch.tensor([2, 9])
    sees = ancestors(torch.arange(-1, 3).expand(2, -1))
    one, other = chain(tokens, starts, EXTENT), tree(tokens, sees, sees.sum(-1) - 1, starts, EXTENT)
    assert torch.equal(one.mask, other.mask)
    assert torch.equal(one.positions, other.positions)
    assert torch.equal(one.slots, other.slots)
    assert torch.equal(other.key_positions, torch.arange(EXTENT).expand(2, -1))
