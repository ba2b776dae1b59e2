"""Drafting with a model of another tokenizer.

Shapes: B rows of the batch, N drafted tokens of the target, V its vocabulary, M drafted tokens of the drafter.
Source: arXiv:2502.05202. `string` mode is its exact match of strings, `token` mode its token-level intersection.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Final, Self

import torch
from torch import Tensor

from fastllm_core import Batch, Confidence, ConfigError, Context, Draft, Drafter, Proposal, Purpose, Row, draw, warp

from .model import DraftModel
from .overlap import Overlap
from .reading import Reading
from .translation import translate
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from .plugin import Mode, UagOptions

ENOUGH: Final = 0.5
"""The share of the target's vocabulary that the drafter must be able to say for `auto` to draw tokens from it."""
LONGEST: Final = 4
"""The drafter drafts at most so many of its tokens for one of the target's."""


@dataclass(slots=True)
class Text:
    """What is kept for a row."""

    reading: Reading
    held: list[int] = field(default_factory=list)
    """The tokens whose keys and values the drafter's cache holds, or held before it was cut."""
    drafted: Tensor | None = None
    """int64[M] on the drafter's device: drafts behind these, not yet looked at."""


class TranslatingDrafter(Drafter):
    """A chain from a model whose tokens are not the target's."""

    def __init__(
        self, model: DraftModel, target: Vocabulary, drafter: Vocabulary, mode: Mode, device: torch.device
    ) -> None:
        """target, drafter: the two vocabularies.  device: the target's.

        Raises ConfigError if the mode is impossible.
        """
        self._model, self.target, self.vocabulary = model, target, drafter
        self.overlap = Overlap(target, drafter, device)
        if mode == "token" and not self.overlap.words:
            raise ConfigError(
                f"options.uag.mode: '{drafter.name}' and '{target.name}' have no token in common, so nothing can be "
                'drafted token by token; set mode = "string"'
            )
        self.draws = mode == "token" or (mode == "auto" and self.overlap.share >= ENOUGH)
        """Whether drafts of rounds that sample are drawn from shared tokens."""
        self.intersects = mode == "token"
        """Whether greedy rounds draft shared tokens as well."""
        self.proposal = Proposal.SAMPLED if self.draws else Proposal.ONE_HOT
        self._to_drafter = target.counterparts(drafter, "bos_token_id")
        self._to_target = drafter.counterparts(target, "eos_token_id")
        self._texts: dict[int, Text] = {}

    @classmethod
    def of(cls, options: UagOptions, context: Context) -> Self:
        """Load the draft model and say how it will draft. Raises ModelError or ConfigError."""
        target = Vocabulary(context.target, "model")
        model = DraftModel(options, context)
        drafter = Vocabulary(model.loaded, "options.uag.draft_model")
        made = cls(model, target, drafter, options.mode, context.network.device)
        log = logging.getLogger("fastllm")
        log.info("uag: %s", made.choice)
        if target.pieces == drafter.pieces:
            log.warning(
                "uag: '%s' has the tokenizer of '%s': method = \"speculative\" needs no translation",
                *(drafter.name, target.name),
            )
        return made

    @property
    def model(self) -> torch.nn.Module:
        """The draft model as transformers loaded it."""
        return self._model.loaded.model

    @property
    def choice(self) -> str:
        """How rounds are drafted, and why, in a line."""
        shared = f"'{self.vocabulary.name}' can say {self.overlap.share:.0%} of the tokens of '{self.target.name}'"
        if not self.draws:
            return f"{shared}; all rounds draft text"
        return f"{shared}; " + (
            "all rounds draft shared tokens"
            if self.intersects
            else "rounds that sample draft shared tokens, greedy ones text"
        )

    def prefill(self, row: Row, start: int, stop: int, hidden: Mapping[int, Tensor]) -> None:
        """Read the same piece of the prompt as the target just did, but for its last token, which may change."""
        tokens = self._follow(row, row.tokens[:stop], 1)
        self._model.read(row.slot, tokens[:-1])
        self._texts[row.id].held = tokens[:-1]

    def propose(self, batch: Batch) -> Draft:
        """Draft text or shared tokens; what a row did not ask for is padding."""
        by_token = self.intersects or (self.draws and not batch.sampling.greedy)
        counts = {
            row.slot: count if by_token else self._length_of(row, count)
            for row, count in zip(batch.rows, batch.draft_lengths, strict=True)
            if count
        }
        most = max(counts.values())
        texts = {slot: self._follow(batch.rows[slot], batch.rows[slot].tokens, most) for slot in counts}
        texts = {slot: tokens for slot, tokens in texts.items() if self._may_draft(batch.rows[slot], tokens, by_token)}
        if not texts:
            return self._draft(batch, [[] for _ in batch.rows])
        if by_token:
            return self._draft_tokens(batch, texts)
        return self._draft_text(batch, texts, max(counts[slot] for slot in texts))

    def release(self, row: Row) -> None:
        """Forget the row's text."""
        self._texts.pop(row.id, None)

    # -- through text ----------------------------------------------------------------------------------------------

    def _draft_text(self, batch: Batch, texts: Mapping[int, list[int]], count: int) -> Draft:
        """The drafter's most likely text, tokenized by the target.

        Source: arXiv:2502.05202, algorithm for string-level exact match; accepted by *match*.
        """
        said = self._model.start(texts, len(batch), count)
        chosen = [said.likely]
        for _ in range(count - 1):
            said = self._model.go_on(said, chosen[-1])
            chosen.append(said.likely)
        drafted = torch.cat(chosen, dim=1)
        self._hold(batch, texts, drafted)
        said_by = drafted.tolist()
        return self._draft(
            batch,
            [
                translate(self._texts[row.id].reading, said_by[slot], self._to_target) if slot in texts else []
                for slot, row in enumerate(batch.rows)
            ],
        )

    def _draft(self, batch: Batch, tokens: Sequence[Sequence[int]]) -> Draft:
        return chain_of(batch, tokens, self.target.size)

    def _length_of(self, row: Row, count: int) -> int:
        text = self._text(row)
        text.reading.read(row.tokens)
        return length_of(text.reading, row, count)

    # -- token by token --------------------------------------------------------------------------------------------

    def _draft_tokens(self, batch: Batch, texts: Mapping[int, list[int]]) -> Draft:
        """Tokens drawn from the drafter's distribution over what both vocabularies have.

        Source: arXiv:2502.05202, token-level intersection; accepted by *rejection*.
        """
        count = max(batch.draft_lengths)
        greedy = batch.sampling.greedy
        uniforms = None if greedy else batch.uniforms(Purpose.DRAFT, count)
        said = self._model.start(texts, len(batch), count)
        confidence = Confidence(batch)
        tokens: list[Tensor] = []
        probs: list[Tensor] = []
        own: list[Tensor] = []
        for step in range(count):
            if step:
                said = self._model.go_on(said, own[-1])
            shared = self.overlap.restricted(said.logits.to(batch.device))
            if uniforms is None:
                tokens.append(shared.argmax(-1, keepdim=True))
            else:
                probs.append(warp(shared[:, None], batch.sampling))
                tokens.append(draw(probs[-1][:, 0], uniforms[:, step])[:, None])
            own.append(self.overlap.to_drafter[tokens[-1]].to(said.logits.device))
            if not confidence.goes_on(shared, tokens[-1]):
                break
        self._hold(batch, texts, torch.cat(own, dim=1))
        drafting = torch.tensor([slot in texts for slot in range(len(batch))], device=batch.device)
        return Draft(
            torch.cat(tokens, dim=1),
            confidence.lengths * drafting,
            probs=torch.cat(probs, dim=1) if probs else None,
        )

    # -- what is kept ----------------------------------------------------------------------------------------------

    def _text(self, row: Row) -> Text:
        if row.id not in self._texts:
            self._texts[row.id] = Text(Reading(self.target, self.vocabulary, self._to_drafter))
        return self._texts[row.id]

    def _follow(self, row: Row, tokens: Sequence[int], count: int) -> list[int]:
        """Read a row's tokens and keep of the cache what agrees with them. Returns the text in the drafter's tokens.

        count: drafts that will follow.
        """
        text = self._text(row)
        text.reading.read(tokens)
        own = self._model.window(text.reading.ids, count)
        if text.drafted is not None:
            text.held, text.drafted = [*text.held, *text.drafted.tolist()], None
        self._model.keep(row.slot, min(agreement(text.held, own), max(0, len(own) - 1)))
        return own

    def _hold(self, batch: Batch, texts: Mapping[int, list[int]], drafted: Tensor) -> None:
        """Note what the cache holds now. drafted: int64[B, M]."""
        for slot, tokens in texts.items():
            text = self._texts[batch.rows[slot].id]
            text.held, text.drafted = tokens, drafted[slot]

    def _may_draft(self, row: Row, tokens: list[int], by_token: bool) -> bool:
        """Whether the drafter has something to go on; a token cannot begin within a character."""
        return bool(tokens) and not (by_token and self._texts[row.id].reading.pending)


def agreement(old: Sequence[int], new: Sequence[int]) -> int:
    """Tokens at the start of two sequences that are the same."""
    shorter = min(len(old), len(new))
    return next((i for i in range(shorter) if old[i] != new[i]), shorter)


def length_of(reading: Reading, row: Row, count: int) -> int:
    """M, what it takes to draft `count` of the target's tokens, judged by a row's text so far, which has been read."""
    return min(max(1, math.ceil(count * len(reading.ids) / row.length)), LONGEST * count)


def chain_of(batch: Batch, tokens: Sequence[Sequence[int]], size: int) -> Draft:
    """A draft of one width, of tokens that were not drawn; each row's up to one that the model has no row for.

    size: of the target's vocabulary. A tokenizer may have more entries.
    """
    width = max(batch.draft_lengths)
    known = [list(takewhile(lambda token: token < size, line)) for line in tokens]
    kept = [line[:most] for line, most in zip(known, batch.draft_lengths, strict=True)]
    lengths = torch.tensor([len(line) for line in kept], device=batch.device)
    if not any(kept):
        return Draft(torch.zeros(len(batch), 0, dtype=torch.long, device=batch.device), lengths)
    padded = [[*line, *[0] * (width - len(line))] for line in kept]
    return Draft(torch.tensor(padded, device=batch.device), lengths)
