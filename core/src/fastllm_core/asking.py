"""From what a person asks of a text to the engine's controls: words become tokens, and the model's own wishes count."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from .controls import Controls
from .errors import RequestError

if TYPE_CHECKING:
    from .models import LoadedModel

T = TypeVar("T")
NUMBERS = ("repetition_penalty", "presence_penalty", "frequency_penalty", "no_repeat_ngram_size", "min_new_tokens")
"""Controls that are a number."""


def controls_of(chosen: Mapping[str, Any], target: LoadedModel, prompt: tuple[int, ...]) -> Controls:
    """The controls of a request: what was chosen, else what the model's generation_config asks for.

    chosen: as in `Settings`, without what is unset.  Raises RequestError.
    """
    model = target.generation
    values = {**model.controls(len(prompt)), **{name: chosen[name] for name in NUMBERS if name in chosen}}
    if "bad_words" in chosen:
        values["bad_words"] = _bad_words(chosen["bad_words"], target)
    if "logit_bias" in chosen:
        values["sequence_bias"] = _biases(chosen["logit_bias"])
    values["bad_words"] = (*values.get("bad_words", ()), *((token,) for token in model.suppress_tokens))
    controls = Controls(**values, processors=made_for(chosen.get("processors", ()), prompt))
    wrong = controls.largest_token()
    if wrong >= target.vocab_size:
        raise RequestError(
            f"logit_bias, bad_words: token id {wrong} does not exist: the vocabulary has {target.vocab_size} entries"
        )
    return controls


def made_for(given: Sequence[T] | Callable[[tuple[int, ...]], Sequence[T]], prompt: tuple[int, ...]) -> tuple[T, ...]:
    """Processors or criteria for a prompt: as they are, or made by a function of its tokens."""
    made = given(prompt) if callable(given) and not isinstance(given, Iterable) else given
    if not isinstance(made, Iterable):
        raise RequestError(f"processors, stopping_criteria: give a list, not a {type(made).__name__}")
    return tuple(made)


def _bad_words(words: Sequence[str | Sequence[int]], target: LoadedModel) -> tuple[tuple[int, ...], ...]:
    if isinstance(words, str):
        raise RequestError("bad_words: give a list of words")
    found = []
    for word in words:
        if isinstance(word, str):
            found += _spellings(word, target)
        else:
            found.append(tuple(int(token) for token in word))
    return tuple(dict.fromkeys(found))


def _spellings(word: str, target: LoadedModel) -> list[tuple[int, ...]]:
    """A word's tokens at the start of a text, and behind a space."""
    if target.tokenizer is None:
        raise RequestError(f"bad_words: '{target.name}' was loaded without a tokenizer: give token ids instead of text")
    if not word.strip():
        raise RequestError("bad_words: an empty word would forbid everything; leave it out")
    texts = (word, f" {word.lstrip()}")
    return [tuple(cast("list[int]", target.tokenizer(text, add_special_tokens=False).input_ids)) for text in texts]


def _biases(biases: Mapping[Any, float]) -> tuple[tuple[tuple[int, ...], float], ...]:
    """By tokens; an id may be written as text, since the keys of a TOML table are."""
    found = []
    for key, bias in biases.items():
        tokens = key if isinstance(key, tuple) else (key,)
        try:
            found.append((tuple(int(token) for token in tokens), float(bias)))
        except (TypeError, ValueError) as error:
            raise RequestError(f"logit_bias: {key!r} is no token id, or {bias!r} no number") from error
    return tuple(found)
