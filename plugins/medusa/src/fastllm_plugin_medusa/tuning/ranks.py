"""At which rank the heads have the tokens that the target goes on with.

Shapes: S places of a text, K heads, R ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from fastllm_core import SlotCache, read

from ..heads import MedusaHeads
from ..tree import Tree

if TYPE_CHECKING:
    from fastllm_core import Network

RANKS: Final = 10
"""R, as in the paper's trees."""
BEYOND: Final = -1
"""Stands for a token that is none of a head's best."""
CHUNK: Final = 256
"""Places whose logits are held at once."""


@dataclass(frozen=True, slots=True)
class Text:
    """Prompt and continuation, as the target writes it greedily."""

    tokens: Sequence[int]
    prompt: int
    """Tokens of the prompt."""


@torch.inference_mode()
def ranks_of(text: Text, network: Network, heads: MedusaHeads, token_map: Tensor | None) -> Tensor:
    """int64[S, K]: for every place of the continuation as a round's root, the rank of what follows it in each head.

    The first root is the prompt's last token. Head k reads the place before the root, and says what is k + 1 behind it.
    """
    cache = SlotCache(network)
    tokens = list(text.tokens)
    first = max(text.prompt - 1, 1)
    states = read(network, cache, 0, tokens, 0, hidden_layers=(network.layers,))[network.layers]
    roots = torch.arange(first, len(tokens) - 1)
    found = torch.full((len(roots), heads.shape.heads), BEYOND)
    for part in torch.split(torch.arange(len(roots)), CHUNK):
        said = heads(states[:, roots[part] - 1])[:, 0]  # [K, S, V]
        best = said.topk(min(RANKS, said.shape[-1]), dim=-1).indices
        best = best if token_map is None else token_map[best]
        for head in range(heads.shape.heads):
            for index, root in zip(part.tolist(), roots[part].tolist(), strict=True):
                place = root + head + 1
                if place < len(tokens):
                    hit = (best[head, index - int(part[0])] == tokens[place]).nonzero()
                    found[index, head] = int(hit[0, 0]) if len(hit) else BEYOND
    return found


def accuracies_of(ranks: Sequence[Tensor]) -> list[list[float]]:
    """K rows of R: how often a head's token of each rank is right.

    ranks: int64[S, K] of each text. The last places of a text, behind which a head has nothing to be right about, are
    left out for that head.
    """
    heads = ranks[0].shape[1]
    accuracies = []
    for head in range(heads):
        known = torch.cat([each[: len(each) - head, head] for each in ranks])
        accuracies.append([float((known == rank).double().mean()) for rank in range(RANKS)])
    return accuracies


def walked(ranks: Sequence[Tensor], tree: Tree) -> float:
    """Tokens per round of greedy decoding over these texts: what a run would have, without running it.

    ranks: int64[S, K] of each text.
    """
    paths = {*tree.paths}
    tokens = rounds = 0
    for each in ranks:
        lines, place = each.tolist(), 0
        while place < len(lines):
            most = min(tree.depth, len(lines) - place - 1)  # the extra token needs room as well
            path = lines[place]
            accepted = next((depth for depth in range(most, 0, -1) if tuple(path[:depth]) in paths), 0)
            rounds, tokens, place = rounds + 1, tokens + accepted + 1, place + accepted + 1
    return tokens / max(rounds, 1)
