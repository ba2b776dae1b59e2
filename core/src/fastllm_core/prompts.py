"""Prompts in every form that people have them, and their token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from .errors import RequestError

if TYPE_CHECKING:
    from .models import LoadedModel

Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]
"""Text, token ids, or chat messages for the tokenizer's template."""


def is_batch(prompt: Prompt | Sequence[Prompt]) -> bool:
    """Whether this is a list of prompts rather than one prompt."""
    return not isinstance(prompt, str) and all(not isinstance(part, int | Mapping) for part in prompt)


def encode(prompt: Prompt, target: LoadedModel) -> list[int]:
    """The token ids of a prompt. Raises RequestError if the model cannot read it."""
    ids = _ids(prompt, target)
    wrong = next((token for token in ids if not 0 <= token < target.vocab_size), None)
    if wrong is not None and not isinstance(prompt[0], int):
        raise RequestError(
            f"the tokenizer of '{target.name}' gives token id {wrong}, and the model's vocabulary has "
            f"{target.vocab_size} entries: give the tokenizer that belongs to the model, or call "
            "model.resize_token_embeddings(len(tokenizer)) if tokens were added"
        )
    if wrong is not None:
        raise RequestError(f"token id {wrong} does not exist: the vocabulary has {target.vocab_size} entries")
    return ids


def _ids(prompt: Prompt, target: LoadedModel) -> list[int]:
    if not isinstance(prompt, str) and all(isinstance(part, int) for part in prompt):
        return [int(cast("int", part)) for part in prompt]
    if target.tokenizer is None:
        raise RequestError(f"'{target.name}' was loaded without a tokenizer: give token ids instead of text")
    if isinstance(prompt, str):
        return cast("list[int]", target.tokenizer(prompt).input_ids)
    if not all(isinstance(part, Mapping) for part in prompt):
        raise RequestError("a prompt is a text, a list of token ids or a list of chat messages, not a mixture")
    if target.tokenizer.chat_template is None:
        raise RequestError(f"the tokenizer of '{target.name}' has no chat template: give plain text")
    messages = [dict(cast("Mapping[str, Any]", message)) for message in prompt]
    text = target.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return cast("list[int]", target.tokenizer(cast("str", text), add_special_tokens=False).input_ids)
