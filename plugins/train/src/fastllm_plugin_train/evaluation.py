"""What drafts for held-out rows would be: losses, ranks, and rounds walked.

Shapes: B rows, S tokens of a row, N places of all rows, D drafted tokens, R ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastllm_core import Trainer

from .acceptance import NOTHING, Foretold, Tree, expected, foretell, foretell_tree
from .rows import Rows
from .teacher import Teacher


@torch.no_grad()
def judged(trainer: Trainer, teacher: Teacher, rows: Rows, length: int, micro: int) -> dict[str, Any]:
    """What drafts for some rows would be: loss of a place, overlap under sampling, and rounds of greedy decoding.

    Where judgements have ranks, how often each is right, and rounds with the tree that follows from it.
    """
    loss = overlap = places = 0.0
    chain = Foretold()
    ranks: list[tuple[Tensor, Tensor]] = []
    figures = Figures()
    for index in torch.split(torch.arange(len(rows)), micro):
        lesson = teacher.lesson(rows.take(index))
        part, count = trainer.loss(lesson)
        judgement = trainer.judge(lesson, length)
        counted = lesson.counted()
        loss, places = loss + float(part), places + float(count)
        overlap += float(judgement.overlap[counted].sum())
        chain.add(foretell(counted, judgement, length))
        figures.add(counted, judgement.figures)
        if judgement.ranks is not None:
            ranks.append((counted.cpu(), judgement.ranks.cpu()))
    told = {"loss": loss / places, "overlap": overlap / places, **chain.to_dict()}
    if ranks:
        told |= _with_tree(trainer, ranks, length, told)
    return told | ({"figures": figures.means()} if figures else {})


def _with_tree(
    trainer: Trainer, ranks: list[tuple[Tensor, Tensor]], length: int, chain: Mapping[str, Any]
) -> dict[str, Any]:
    """Accuracies, and what a tree makes of them. The chain's own numbers stay beside it."""
    accuracies = accuracies_of(torch.cat([each[counted] for counted, each in ranks]))
    told: dict[str, Any] = {"accuracies": [[round(share, 5) for share in draft] for draft in accuracies.tolist()]}
    tree = cut(trainer.tree(accuracies), length)
    if tree is None:
        return told
    walked = Foretold()
    for counted, each in ranks:
        walked.add(foretell_tree(counted, each, tree))
    told |= {"nodes": len(tree), "expected": expected(tree, accuracies), "chain": chain["tokens_per_round"]}
    return told | walked.to_dict()


def accuracies_of(ranks: Tensor) -> Tensor:
    """float[D, R]: how often the target's choice is at each rank of each draft. ranks: int[N, D], see `Judgement`."""
    asked = (ranks != NOTHING).sum(0).clamp(min=1)
    most = max(int(ranks.max()) + 1, 1)
    return torch.stack([(ranks == rank).sum(0) / asked for rank in range(most)], dim=-1)


def cut(tree: Tree | None, length: int) -> Tree | None:
    """The tree without what is deeper than a draft may be."""
    return None if tree is None else [path for path in tree if len(path) <= length]


class Figures:
    """Means of a trainer's own figures over counted places that say something."""

    def __init__(self) -> None:
        """Begin."""
        self._sums: dict[str, Tensor] = {}

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._sums)

    def add(self, counted: Tensor, figures: Mapping[str, Tensor]) -> None:
        """Add a lesson's.

        counted: bool[B, S].  figures: see `Judgement.figures`.
        """
        for name, values in figures.items():
            here = values[counted].double()
            summed = torch.stack([here.nansum(0), (~here.isnan()).sum(0).double()])
            self._sums[name] = self._sums.get(name, 0) + summed

    def means(self) -> dict[str, Any]:
        """A number by name, or a list of one for each draft."""
        return {name: (total / count.clamp(min=1)).tolist() for name, (total, count) in self._sums.items()}
