"""A draft model for the conformance kit: what the target says, by a tokenizer that numbers and divides otherwise."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MERGED: Final = 6
"""Pairs of neighbouring entries that are one token here."""


def relative(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, merged: int = MERGED) -> str:
    """Save a draft model for a target whose tokens are characters. Returns the folder.

    Its tokenizer is a BPE of the same characters, backwards, and of a few pairs of them.
    merged: how many. Without any it says what the target says, always.
    """
    if not folder.exists():
        characters = _characters(tokenizer)
        names = [*reversed(characters), *("".join(pair) for pair in list(pairwise(characters))[: 2 * merged : 2])]
        sources = {name: [characters[character] for character in name] for name in names}
        unknown = str(tokenizer.unk_token)
        sources[unknown] = [0]
        _renumbered(model, list(sources.values())).save_pretrained(folder)
        _tokenizer(sources, unknown).save_pretrained(folder)
    return str(folder)


def _characters(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    return {name: index for name, index in sorted(tokenizer.get_vocab().items()) if len(name) == 1}


def _tokenizer(sources: Mapping[str, Any], unknown: str) -> PreTrainedTokenizerFast:
    vocabulary = {name: index for index, name in enumerate(sources)}
    merges = [(name[0], name[1]) for name in sources if len(name) == 2]
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token=unknown))
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=unknown)


@torch.no_grad()
def _renumbered(model: PreTrainedModel, sources: list[list[int]]) -> PreTrainedModel:
    """A copy whose entry i looks and answers as the mean of the model's entries `sources[i]`."""
    made: Any = copy.deepcopy(model)
    tables = [made.get_input_embeddings().weight.clone(), made.get_output_embeddings().weight.clone()]
    made.resize_token_embeddings(len(sources), mean_resizing=False)
    for layer, table in zip((made.get_input_embeddings(), made.get_output_embeddings()), tables, strict=True):
        layer.weight.copy_(torch.stack([table[ids].mean(0) for ids in sources]))
    return cast("PreTrainedModel", made)
