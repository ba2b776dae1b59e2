"""Other programs in the same run, with the same weights, prompts and lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fastllm_core import ConfigError

from ..arm import Arm

if TYPE_CHECKING:
    from fastllm_core import Pipeline

NAMES: Final = ("transformers", "llama.cpp")


@dataclass(frozen=True, slots=True)
class Pair:
    """What peers run: a target, and what drafts for it."""

    owner: Pipeline
    """fastllm's plain decoding, whose weights and tokenizer they share."""
    assistant: str | None
    """A draft model with the target's tokenizer."""
    cross_assistant: str | None
    """A draft model with another tokenizer."""
    early_exit: int | None
    """The layer at which the target leaves to draft for itself; None takes a third of its layers."""
    draft_length: int


def peers(names: Sequence[str], pair: Pair) -> Iterator[tuple[str, Callable[[], Arm]]]:
    """Label and maker of every arm of some peers. Raises ConfigError for an unknown one."""
    for name in names:
        if name == "transformers":
            from .transformers import arms
        elif name == "llama.cpp":
            from .llama_cpp import arms
        else:
            raise ConfigError(f"--against {name}: there are {' and '.join(NAMES)}")
        yield from arms(pair)
