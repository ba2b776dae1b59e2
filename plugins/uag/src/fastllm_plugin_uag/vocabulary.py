"""A model's vocabulary as translation needs it: the bytes of each token, and the tokens of any stretch of text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from tokenizers import Tokenizer

from fastllm_core import ModelError

from .pieces import byte_tokens, pieces, types

if TYPE_CHECKING:
    from fastllm_core import LoadedModel

NOWHERE: Final = "\U0010ffff"
"""No character at all, so that no text has it."""
ROLES: Final = ("bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id")


@dataclass(frozen=True, slots=True)
class Lead:
    """Whether a tokenizer writes a space in front of a text that begins, and leaves it out again when it decodes."""

    always: bool = False
    """Wherever text begins: at the very start and behind every special token."""
    first: bool = False
    """At the very start only."""

    def due(self, first: bool) -> bool:
        """Whether there is one where text begins, for the first time or later."""
        return self.always or (self.first and first)

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Lead:
        """What tokenizer.json says."""
        decoders = {part["type"] for part in types(state["decoder"])}
        if "WordPiece" in decoders:  # a space in front of every word, in the end
            return cls(always=True)
        if not decoders & {"Strip", "Metaspace"}:
            return cls()  # decoding shows the space, so it is part of the text
        for part in (*types(state["normalizer"]), *types(state["pre_tokenizer"])):
            scheme = "always" if part["type"] == "Prepend" else part.get("prepend_scheme", "never")
            if scheme != "never":
                return cls(always=scheme == "always", first=scheme == "first")
        return cls()


class Vocabulary:
    """One side of a translation."""

    def __init__(self, loaded: LoadedModel, key: str) -> None:
        """loaded: a model with its tokenizer.  key: what to blame if it has none that can be used.

        Raises ModelError.
        """
        tokenizer: Any = loaded.tokenizer
        if tokenizer is None:
            raise ModelError(
                f"{key}: '{loaded.name}' came without a tokenizer, and drafts are translated by it: put its "
                "tokenizer.json into the folder, or give the tokenizer"
            )
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(
                f"{key}: the tokenizer of '{loaded.name}' ({type(tokenizer).__name__}) has no tokenizer.json, which "
                "translation reads: convert it with transformers and save it beside the weights"
            )
        self.name = loaded.name
        self.size = loaded.vocab_size
        """V, the width of the model's logits."""
        backend: Tokenizer = tokenizer.backend_tokenizer
        state = json.loads(backend.to_str())
        self.lead = Lead.of(state)
        self._raw = _raw(state)
        self.pieces = {index: piece for index, piece in pieces(backend, state["decoder"]).items() if index < self.size}
        """The bytes of each token."""
        added = {index: token for index, token in backend.get_added_tokens_decoder().items() if index < self.size}
        marked = {*tokenizer.all_special_ids, *(index for index, token in added.items() if token.special)}
        self.specials = {index: self.pieces[index].decode() for index in sorted(marked) if index in self.pieces}
        """Tokens that are no text, by what they are called."""
        names = {index: name for name, index in backend.get_vocab().items() if index < self.size}
        self.bytes = byte_tokens(names, state["decoder"])
        """Tokens that stand for a byte of a character that is no token itself."""
        roles = {role: getattr(tokenizer, role, None) for role in ROLES}
        self.roles = {role: index for role, index in roles.items() if index is not None}
        """Ids of the tokens that begin a text, end it, and so on, by what transformers calls them."""
        self.opening = self.known(_opening(backend))
        """What the tokenizer puts in front of a text: the token that begins it, for most."""
        self.words = {index: piece for index, piece in self.pieces.items() if piece and index not in self.specials}
        """The tokens that are text, each with its bytes."""
        self.cuts = _cuts(self.words.values())
        """Where text can be cut so that the parts have the tokens of the whole; None if nowhere for certain."""

    def encode(self, text: str, lead: bool = False) -> list[int]:
        """The tokens of a stretch of text and nothing else: no special tokens, whatever the text looks like.

        lead: it begins where this tokenizer writes a space in front.
        """
        if not text:
            return []
        return list(self._raw.encode(f" {text}" if lead else text, add_special_tokens=False).ids)

    def known(self, tokens: list[int]) -> list[int]:
        """Tokens that the model can read: for those that only its tokenizer has, the last one of its own."""
        last = self.size - 1
        return tokens if max(tokens, default=0) <= last else [min(token, last) for token in tokens]

    def spell(self, piece: bytes) -> list[int]:
        """Tokens of bytes that are no whole characters: one for all, or one for each; empty if some byte has none."""
        if piece in self._ids:
            return [self._ids[piece]]
        single = [self._ids.get(bytes([byte])) for byte in piece]
        return [] if None in single else [index for index in single if index is not None]

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        return {piece: index for index, piece in sorted(self.words.items(), reverse=True)}

    def counterparts(self, other: Vocabulary, first: str) -> dict[int, int]:
        """The special token of another vocabulary for each of this one's that has one: of its name, else of its role.

        first: the role that counts where a token has several, as `eos_token_id`.
        """
        named = {name: index for index, name in other.specials.items()}
        made = {index: named[name] for index, name in self.specials.items() if name in named}
        for role in dict.fromkeys((first, *ROLES)):
            if role in self.roles and role in other.roles:
                made.setdefault(self.roles[role], other.roles[role])
        return {index: there for index, there in made.items() if index in self.specials and there in other.specials}


def _raw(state: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer without what it does at the edges of a text: spaces in front, special tokens, cutting, padding."""
    bare = {**state, "post_processor": None, "truncation": None, "padding": None}
    bare["normalizer"] = _without_lead(state["normalizer"])
    bare["pre_tokenizer"] = _without_lead(state["pre_tokenizer"])
    if state["model"]["type"] == "Unigram":  # whose model itself would spell "</s>" by the special token
        special = {token["content"] for token in state["added_tokens"] if token["special"]}
        words = [[name + NOWHERE * (name in special), score] for name, score in state["model"]["vocab"]]
        bare["model"] = {**state["model"], "vocab": words}
        bare["added_tokens"] = [
            {**token, "content": token["content"] + NOWHERE * token["special"]} for token in state["added_tokens"]
        ]
    raw = Tokenizer.from_str(json.dumps(bare))
    raw.encode_special_tokens = True  # text that looks like a special token is text
    return raw


def _without_lead(part: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if part is None or part["type"] == "Prepend":
        return None
    made = dict(part)
    for key in ("normalizers", "pretokenizers"):
        if key in made:
            made[key] = [each for each in map(_without_lead, made[key]) if each is not None]
    if "prepend_scheme" in made:
        made["prepend_scheme"] = "never"
    if "add_prefix_space" in made:
        made["add_prefix_space"] = False
    return made


def _cuts(words: Iterable[bytes]) -> re.Pattern[str] | None:
    """Where no token reaches across: then no merge does (BPE), nor the best path (Unigram).

    Before a word, and behind the end of a line, tokenizers that split text by expressions split as well.
    """
    texts = [piece.decode(errors="replace") for piece in words]
    across = {r"(?<=\S)(?= \S)": r"\S ", r"(?<=\n)(?=\S)": r"\n\S"}
    safe = [cut for cut, reach in across.items() if not any(re.search(reach, text) for text in texts)]
    return re.compile("|".join(safe)) if safe else None


def _opening(backend: Tokenizer) -> list[int]:
    made = backend.encode("a")
    ends = [i for i, special in enumerate(made.special_tokens_mask) if not special]
    return list(made.ids[: ends[0] if ends else len(made.ids)])
