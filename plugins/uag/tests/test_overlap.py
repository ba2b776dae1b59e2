"""Which tokens two vocabularies share, and the drafter's distribution over them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from fastllm_plugin_uag.overlap import Overlap, pairs
from fastllm_plugin_uag.vocabulary import Vocabulary


def shared(kinds: Any, target: str, drafter: str) -> set[bytes]:
    theirs, ours = kinds.vocabulary(target), kinds.vocabulary(drafter)
    made = pairs(theirs, ours)
    assert len({*made.values()}) == len(made)  # no token of the target stands for two
    for index, there in made.items():
        assert theirs.words[there] == ours.words[index]
    return {ours.words[index] for index in made}


@pytest.mark.parametrize("target", ["byte-level", "unigram", "byte-fallback", "stories-4096"])
@pytest.mark.parametrize("drafter", ["byte-level", "unigram", "byte-fallback", "stories-512"])
def test_words_are_found_whatever_marks_their_start(kinds: Any, target: str, drafter: str) -> None:
    theirs, ours = kinds.vocabulary(target), kinds.vocabulary(drafter)
    assert shared(kinds, target, drafter) == {*theirs.words.values()} & {*ours.words.values()}
    assert {b" a", b"!", b"\n", b"\xf0"} <= shared(kinds, target, drafter)


def test_a_smaller_vocabulary_of_the_same_family_is_a_subset(kinds: Any) -> None:
    theirs, ours = kinds.vocabulary("stories-4096"), kinds.vocabulary("stories-512")
    overlap = Overlap(theirs, ours, torch.device("cpu"))
    assert overlap.words == len(ours.words)
    assert overlap.share == pytest.approx(len(ours.words) / len(theirs.words))
    assert len(overlap.drafters) == len(overlap.targets) == 512  # the special tokens too


def fallback(kinds: Any, names: list[str]) -> Vocabulary:
    backend = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, [], unk_token="<unk>"))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    made = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    return Vocabulary(kinds.loaded(made, size=len(names)), "model")


def test_equal_strings_are_paired_like_with_like_and_once(kinds: Any) -> None:
    """A character and its byte are the same text; two drafted tokens for one of the target's would share its chance."""
    one = fallback(kinds, ["<unk>", "<0x61>", "a", "b"])
    other = fallback(kinds, ["b", "a", "<0x61>", "<unk>", "<0x62>"])
    assert pairs(one, other) == {0: 3, 1: 2, 2: 1}
    alone = fallback(kinds, ["<unk>", "a"])
    assert pairs(alone, other) == {1: 1}
    assert pairs(fallback(kinds, ["<0x61>", "<unk>"]), other) == {2: 0}
    assert pairs(fallback(kinds, ["<0x62>", "<unk>", "x"]), fallback(kinds, ["b", "<unk>"])) == {0: 0}


def test_of_several_ways_to_say_the_same_one_is_taken(kinds: Any) -> None:
    """Else two drafted tokens would be scattered to one place, and one of their probabilities lost."""
    backend = Tokenizer(models.BPE({"<unk>": 0, "▁": 1, " ": 2, "a": 3}, [], unk_token="<unk>"))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    made = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    twice = Vocabulary(kinds.loaded(made), "model")
    assert twice.words[1] == twice.words[2] == b" "
    assert pairs(fallback(kinds, ["<unk>", "a", " "]), twice) == {1: 2, 3: 1}


def test_logits_move_to_the_places_of_the_same_tokens(kinds: Any) -> None:
    target, drafter = fallback(kinds, ["<unk>", "a", "b", "c"]), fallback(kinds, ["c", "x", "<unk>", "a"])
    overlap = Overlap(target, drafter, torch.device("cpu"))
    logits = torch.tensor([[1.0, 50.0, -3.0, 2.0], [0.0, -1.0, -3.0, 4.0]])
    nothing = -torch.inf
    expected = torch.tensor([[-3.0, 2.0, nothing, 1.0], [-3.0, 4.0, nothing, 0.0]])
    assert torch.equal(overlap.restricted(logits), expected)
    q = overlap.restricted(logits).softmax(-1)
    torch.testing.assert_close(q.sum(-1), torch.ones(2))
    assert overlap.to_drafter.tolist() == [2, 3, 0, 0]


def test_logits_wider_than_either_tokenizer(kinds: Any) -> None:
    """Models pad their vocabularies, and tokenizers have entries that the model lacks."""
    backend = fallback(kinds, ["<unk>", "a", "b"])
    wide = Overlap(backend, backend, torch.device("cpu"))
    assert wide.restricted(torch.zeros(1, 8)).tolist() == [[0.0, 0.0, 0.0]]
    tokenizer = kinds.tokenizer("stories-4096")
    narrow = Vocabulary(kinds.loaded(tokenizer, size=300), "model")
    assert max(narrow.words) == 299
    assert narrow.encode("Once")  # whose tokens the drafter cuts
