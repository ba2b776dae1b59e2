"""Where each token of a text came from: drafted and accepted, the extra token of a round, or plain decoding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from html import escape
from typing import TYPE_CHECKING

from .transcript import Transcript

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .generation import Piece


class Origin(StrEnum):
    """Who made a token."""

    DRAFTED = "drafted"
    """Drafted, and kept by the target."""
    EXTRA = "extra"
    """The target's own, at the end of a round that drafted."""
    PLAIN = "plain"
    """The target's own, in a round without a draft."""


@dataclass(frozen=True, slots=True)
class TracedToken:
    """One token of a text."""

    text: str
    """What it added; empty for a special token, and while a character is not complete."""
    origin: Origin
    round: int
    """In which it was committed, from 1."""


def trace(pieces: Iterable[Piece], tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int]) -> Iterator[TracedToken]:
    """The tokens of a stream as they come. prompt: the tokens before the text."""
    transcript = Transcript(tokenizer, prompt)
    for number, piece in enumerate(pieces, start=1):
        last = len(piece.token_ids) - 1
        for index, token in enumerate(piece.token_ids):
            transcript.add(token)
            ending = piece.result is not None and index == last
            if ending:
                transcript.finish()
            yield TracedToken(transcript.release(last=ending), _origin(piece, index), number)


def _origin(piece: Piece, index: int) -> Origin:
    if index < piece.accepted:
        return Origin.DRAFTED
    return Origin.EXTRA if piece.drafted else Origin.PLAIN


def summary(tokens: Sequence[TracedToken]) -> str:
    """`40 tokens in 12 rounds: 28 drafted, 11 extra, 1 plain`."""
    counts = Counter(token.origin for token in tokens)
    shown = ", ".join(f"{counts[origin]} {origin}" for origin in Origin if counts[origin])
    rounds = tokens[-1].round if tokens else 0
    return f"{len(tokens)} tokens in {rounds} round{'' if rounds == 1 else 's'}: {shown}"


STYLE = """
:root { --page: #fff; --ink: #1d2430; --quiet: #5e6875; --drafted: #cfe8d8; --extra: #fbdcc4; --plain: #e6e8eb; }
@media (prefers-color-scheme: dark) {
  :root { --page: #15181d; --ink: #e8eaed; --quiet: #9aa3ad; --drafted: #1f5138; --extra: #6b3f1d; --plain: #363c45; }
}
body { margin: 0 auto; max-width: 860px; padding: 24px; background: var(--page); color: var(--ink);
  font: 16px/2.1 system-ui, "DejaVu Sans", sans-serif; }
p { white-space: pre-wrap; overflow-wrap: anywhere; }
.prompt, .quiet { color: var(--quiet); }
.drafted { background: var(--drafted); } .extra { background: var(--extra); } .plain { background: var(--plain); }
span[title] { padding: 3px 0; border-radius: 3px; }
sup { color: var(--quiet); font-size: 10px; margin: 0 1px 0 3px; user-select: none; }
.legend span { padding: 3px 8px; border-radius: 3px; margin-right: 8px; }
"""


def to_html(texts: Sequence[tuple[str, Sequence[TracedToken]]], title: str) -> str:
    """A page that needs nothing else, with each text behind its prompt. Pointing at a token names its round."""
    body = "".join(
        f'<p><span class="prompt">{escape(prompt)}</span>{"".join(_spans(tokens))}</p>'
        f'<p class="quiet">{escape(summary(tokens))}</p>'
        for prompt, tokens in texts
    )
    legend = (
        '<p class="legend"><span class="drafted">drafted and accepted</span><span class="extra">extra: the target\'s '
        'own, after a draft</span><span class="plain">plain</span><sup>3</sup>round</p>'
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n<h1>{escape(title)}</h1>\n{legend}\n{body}\n</html>\n"
    )


def _spans(tokens: Sequence[TracedToken]) -> Iterator[str]:
    number = 0
    for index, token in enumerate(tokens, start=1):
        if token.round != number:
            number = token.round
            yield f"<sup>{number}</sup>"
        tip = f"token {index}, round {number}: {token.origin}"
        yield f'<span class="{token.origin}" title="{tip}">{escape(token.text)}</span>'
