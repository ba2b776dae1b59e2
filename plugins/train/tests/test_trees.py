"""Trees walked over a known text, accuracies by rank, and a method's own figures: by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from fastllm_plugin_train.acceptance import Foretold, Tree, expected, foretell_tree, widths
from fastllm_plugin_train.evaluation import Figures, accuracies_of, cut
from fastllm_plugin_train.fit import _groups

TREE: Tree = [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 1, 0)]


def walked(ranks: Sequence[Sequence[int]], tree: Tree = TREE) -> Foretold:
    """Rounds over one text whose places are all roots; ranks[root][draft]."""
    table = torch.tensor([[*line, *[-2] * (3 - len(line))] for line in ranks])[None]
    return foretell_tree(torch.ones(1, len(ranks), dtype=torch.bool), table, tree)


def test_a_round_keeps_the_longest_path_that_is_in_the_tree() -> None:
    # (0, 1, 0) is there: four tokens. (1, 0) is, (1, 0, 0) is not: three. (0, 2) is not: two. Then one root is left.
    found = walked([[0, 1, 0], [], [], [], [1, 0, 0], [], [], [0, 2, 0], [], [0, 0, 0]])
    assert (found.rounds, found.tokens) == (4, 10)
    assert found.accepted_at == [3, 2, 1]
    # The last rounds have room for two drafts and for none: the extra token needs a place.
    assert found.drafted_at == [3 * 2, 3 * 3, 2 * 1]


def test_a_path_counts_only_whole_beginnings() -> None:
    """(1, 1, 0) is in no tree with (1,) and (0, 1, 0): ranks of other parents do not help."""
    assert walked([[1, 1, 0], [-1, 0, 0], [2, 0, 0], [0, 0, 0]]).accepted_at[0] == 1


def test_nothing_is_drafted_where_nothing_can_be() -> None:
    found = walked([[-2, -2, -2], [0, 0, 0], [], [], []])
    assert (found.rounds, found.tokens, found.drafted_at) == (3, 5, [2, 3, 1])


def test_widths_and_cuts() -> None:
    assert widths(TREE) == [2, 3, 1]
    assert widths([]) == []
    assert cut(TREE, 2) == TREE[:-1]
    assert cut(None, 2) is None


def test_accuracies_leave_out_what_was_not_asked() -> None:
    ranks = torch.tensor([[0, -1], [0, 1], [2, -2], [-1, -2], [-2, -2]])
    assert accuracies_of(ranks).tolist() == [[0.5, 0.0, 0.25], [0.0, 0.5, 0.0]]


def test_the_expectation_of_a_tree() -> None:
    accuracies = torch.tensor([[0.5, 0.2], [0.4, 0.1], [0.3, 0.1]])
    by_hand = 1 + 0.5 + 0.2 + 0.5 * 0.4 + 0.5 * 0.1 + 0.2 * 0.4 + 0.5 * 0.1 * 0.3
    assert expected(TREE, accuracies) == pytest.approx(by_hand)


def test_figures_are_means_of_what_says_something() -> None:
    figures = Figures()
    assert not figures
    counted = torch.tensor([[True, True, False]])
    figures.add(
        counted, {"one": torch.tensor([[1.0, 2.0, 50.0]]), "each": torch.tensor([[[1, 3], [2, torch.nan], [9, 9]]])}
    )
    figures.add(counted, {"one": torch.tensor([[6.0, 7.0, 50.0]]), "each": torch.tensor([[[3, 5], [2, 7], [9, 9]]])})
    assert figures.means() == {"one": 4.0, "each": [2.0, 5.0]}


def test_parts_learn_at_rates_of_their_own() -> None:
    module = nn.ModuleDict({"heads": nn.Linear(2, 2), "target": nn.Linear(2, 3)})
    module["target"].bias.requires_grad_(False)
    groups = _groups(module, {"heads.": 4.0})
    assert [(group["factor"], len(group["params"])) for group in groups] == [(4.0, 2), (1.0, 1)]
