"""Trees of ranks: their order, and that growing one finds the best."""

from __future__ import annotations

from itertools import combinations, pairwise, product

import pytest

from fastllm_core import ConfigError
from fastllm_plugin_medusa.tree import PUBLISHED, Tree, best_cartesian, cartesian, chain, grown, growth


@pytest.mark.parametrize(("nodes", "tokens"), [(8, 2.0698), (16, 2.2229), (63, 2.3844)])
def test_trees_of_the_published_accuracies(nodes: int, tokens: float) -> None:
    """The accuracies are published to three digits, hence the tolerance."""
    tree = grown(PUBLISHED, nodes)
    assert len(tree) == nodes
    assert tree.value(PUBLISHED) == pytest.approx(tokens, abs=5e-4)


def test_the_tree_of_eight_nodes() -> None:
    assert grown(PUBLISHED, 8).paths == ((0,), (1,), (2,), (0, 0), (0, 1), (0, 2), (1, 0), (0, 0, 0))


def test_growing_finds_the_best_tree_of_every_size() -> None:
    accuracies = ((0.5, 0.3, 0.1), (0.4, 0.35, 0.2), (0.6, 0.2, 0.1))
    whole = list(growth(accuracies))
    assert len(whole) == 3 + 9 + 27
    few = [path for path in whole if max(path) < 2]  # 14 paths: all trees can be looked at
    for nodes in range(1, 7):
        trees = []
        for paths in combinations(few, nodes):
            try:
                trees.append(Tree.of(paths))
            except ConfigError:
                continue
        best = max(tree.value(accuracies) for tree in trees)
        assert grown([ranks[:2] for ranks in accuracies], nodes).value(accuracies) == pytest.approx(best)


def test_a_smaller_tree_is_part_of_a_larger_one() -> None:
    sets = [set(grown(PUBLISHED, nodes).paths) for nodes in range(1, 40)]
    assert all(small < large for small, large in pairwise(sets))


def test_nodes_are_in_order_of_depth_and_know_their_parents() -> None:
    tree = Tree.of([(1, 0), (0, 1), (0,), (1,), (0, 1, 2)])
    assert tree.paths == ((0,), (1,), (0, 1), (1, 0), (0, 1, 2))
    assert tree.parents == (-1, -1, 0, 1, 2)
    assert tree.levels == (0, 2, 4, 5)
    assert tree.cut(2).paths == tree.paths[:4]
    assert (tree.depth, tree.ranks, tree.is_chain) == (3, 3, False)
    assert str(tree) == "5 (2, 2, 1)"
    assert chain(4).is_chain


def test_cartesian_trees() -> None:
    tree = cartesian([3, 2])
    assert len(tree) == 3 + 6
    assert tree.levels == (0, 3, 9)
    best = best_cartesian(PUBLISHED, 20)
    assert len(best) <= 20
    others = [cartesian(widths) for depth in (1, 2, 3) for widths in product(range(1, 6), repeat=depth)]
    assert best.value(PUBLISHED) == max(tree.value(PUBLISHED) for tree in others if len(tree) <= 20)
    assert best.value(PUBLISHED) < grown(PUBLISHED, len(best)).value(PUBLISHED)


def test_no_more_nodes_than_there_are_paths() -> None:
    assert len(grown([(0.5, 0.2), (0.5, 0.2)], 1000)) == 6
    assert grown(PUBLISHED, 63, depth=2).depth == 2


@pytest.mark.parametrize(
    ("paths", "message"),
    [([(0, 0)], r"lacks \[0\]"), ([], "no paths"), ([(-1,)], "0 or more"), ([()], "0 or more")],
)
def test_what_is_no_tree(paths: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Tree.of(paths)
