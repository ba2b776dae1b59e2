"""The law of sampled text is the target's, exactly: every text of a tiny vocabulary, every uniform, every round."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, cast

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from fastllm_core import Advance, Batch, Draft, Drafter, Purpose, residual
from fastllm_core.acceptor import ExactAcceptor
from fastllm_core.testing.enumeration import PROMPT, Borders, Enumeration
from fastllm_core.testing.laws import Table, distance, is_law_of, varied
from fastllm_plugin_uag.drafter import TranslatingDrafter
from fastllm_plugin_uag.overlap import Overlap
from fastllm_plugin_uag.vocabulary import Vocabulary

COUNT = 3
P_PARTS = ((1, 2, 3), (3, 1, 2))
Q_PARTS = ((4, 1, 2, 5), (1, 6, 3, 2))
TARGET = ["a", "b", "c"]
DRAFTERS = {
    "partial overlap": ["c", "x", "a", "?"],
    "other order": ["b", "c", "a", "?"],
    "subset": ["b", "?", "a"],
    "superset": ["x", "c", "b", "a"],
    "one token": ["x", "?", "c"],
    "merged": ["ab", "b", "a", "c"],
}


def vocabulary(kinds: Any, names: Sequence[str]) -> Vocabulary:
    """Characters, and pairs of them that are one token."""
    unknown = names[names.index("?")] if "?" in names else names[0]
    merges = [(name[0], name[1]) for name in names if len(name) == 2]
    backend = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, merges, unk_token=unknown))
    backend.decoder = decoders.Fuse()
    backend.pre_tokenizer = pre_tokenizers.Split("!", "isolated")
    special = {"unk_token": "?"} if "?" in names else {}
    return Vocabulary(kinds.loaded(PreTrainedTokenizerFast(tokenizer_object=backend, **special), size=len(names)), "m")


class TableModel:
    """A draft model that says what a table of its own tokens says."""

    def __init__(self, q: Table) -> None:
        self.q = cache(q)

    def window(self, tokens: list[int], count: int) -> list[int]:
        return tokens

    def keep(self, slot: int, count: int) -> None:
        pass

    def start(self, texts: Mapping[int, list[int]], rows: int, count: int) -> Advance:
        self.texts = [tuple(texts.get(slot, ())) for slot in range(rows)]
        return self._said()

    def go_on(self, said: Advance, tokens: Tensor) -> Advance:
        self.texts = [(*text, token) for text, token in zip(self.texts, tokens[:, 0].tolist(), strict=True)]
        return self._said()

    def _said(self) -> Advance:
        logits = torch.tensor([self.q(text) for text in self.texts]).log()
        return Advance(logits, logits.argmax(-1, keepdim=True), cast("Any", None))


class Afresh(Drafter):
    """The drafter, with every round of every text as its first: the enumeration names other texts by the same ids."""

    def __init__(self, inner: Drafter) -> None:
        self.inner, self.proposal = inner, inner.proposal

    def propose(self, batch: Batch) -> Draft:
        draft = self.inner.propose(batch)
        for row in batch.rows:
            self.inner.release(row)
        return draft


def drafter(kinds: Any, names: Sequence[str], mode: str) -> TranslatingDrafter:
    q = varied(1, [parts[: len(names)] for parts in Q_PARTS])
    pair = vocabulary(kinds, TARGET), vocabulary(kinds, names)
    return TranslatingDrafter(cast("Any", TableModel(q)), *pair, cast("Any", mode), torch.device("cpu"))


def enumeration(made: TranslatingDrafter, size: int) -> Enumeration:
    p = varied(0, P_PARTS)
    afresh = Afresh(made)
    return Enumeration(p, afresh, ExactAcceptor(made.proposal), borders(made, size), COUNT, draft_length=2)


def borders(made: TranslatingDrafter, size: int) -> Borders:
    """Every number at which a decision may change."""
    p = [torch.tensor(parts).double() / sum(parts) for parts in P_PARTS]
    q = [torch.tensor(parts[:size]).double()[None] for parts in Q_PARTS]
    shared = [made.overlap.restricted(parts.log())[0].softmax(-1) for parts in q]
    left = [residual(one[None], other[None])[0] for one in p for other in shared]
    plain = _inner(one.cumsum(0) for one in p)
    if not made.draws:
        return {Purpose.TARGET: plain}
    return {
        Purpose.DRAFT: _inner(law.cumsum(0) for law in shared),
        Purpose.ACCEPT: _inner(one / other for one in p for other in shared),
        Purpose.EXTRA: sorted({*plain, *_inner(law.cumsum(0) for law in left)}),
        (Purpose.TARGET, len(PROMPT) + COUNT - 1, 0): plain,
    }


def _inner(laws: Any) -> list[float]:
    numbers = itertools.chain.from_iterable(law.tolist() for law in laws)
    return sorted({round(number, 9) for number in numbers if 1e-9 < number < 1 - 1e-9})


@pytest.mark.parametrize("mode", ["token", "string"])
@pytest.mark.parametrize("names", DRAFTERS.values(), ids=[*DRAFTERS])
def test_the_law_of_sampled_text_is_the_targets(kinds: Any, names: list[str], mode: str) -> None:
    made = drafter(kinds, names, mode)
    case = enumeration(made, len(names))
    assert made.draws == (mode == "token")
    assert is_law_of(case.p, case.law())


def test_a_softmax_over_the_whole_vocabulary_is_noticed(kinds: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """q must sum to 1 over what can be drafted, or too little is left of p."""
    names = DRAFTERS["partial overlap"]
    made = drafter(kinds, names, "token")
    case = enumeration(made, len(names))
    right = Overlap.restricted

    def share(overlap: Overlap, logits: Tensor) -> Tensor:
        return logits.softmax(-1)[:, overlap.drafters].sum(-1)

    def unnormalised(logits: Tensor, sampling: Any) -> Tensor:
        return logits.softmax(-1) * shares.pop()[:, None, None]

    def restricted(overlap: Overlap, logits: Tensor) -> Tensor:
        shares.append(share(overlap, logits))
        return right(overlap, logits)

    shares: list[Tensor] = []
    monkeypatch.setattr(Overlap, "restricted", restricted)
    monkeypatch.setattr("fastllm_plugin_uag.drafter.warp", unnormalised)
    assert distance(case.p, case.law()) > 0.01


def test_a_q_in_the_order_of_another_vocabulary_is_noticed(kinds: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts drawn from the right tokens, and probabilities attached to others."""
    names = DRAFTERS["other order"]
    made = drafter(kinds, names, "token")
    case = enumeration(made, len(names))
    right = TranslatingDrafter._draft_tokens

    def rolled(self: TranslatingDrafter, batch: Batch, texts: Any) -> Draft:
        draft = right(self, batch, texts)
        assert draft.probs is not None
        return Draft(draft.tokens, draft.lengths, probs=draft.probs.roll(1, -1))

    monkeypatch.setattr(TranslatingDrafter, "_draft_tokens", rolled)
    assert distance(case.p, case.law()) > 0.01


def test_drafted_text_with_a_soft_q_is_noticed(kinds: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was chosen was certain: its q is one-hot, whatever the drafter's distribution says."""
    names = DRAFTERS["other order"]
    made = drafter(kinds, names, "token")
    case = enumeration(made, len(names))
    monkeypatch.setattr("fastllm_plugin_uag.drafter.draw", lambda probs, u: probs.argmax(-1))
    assert distance(case.p, case.law()) > 0.01
