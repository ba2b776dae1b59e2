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
    """Label and maker of the arms of some peers: all of a program ("transformers"), or one ("transformers assisted").

    A program's plain decoding alone is its name with "plain". Raises ConfigError for one that does not exist.
    """
    for name in names:
        program = next((each for each in NAMES if name == each or name.startswith(f"{each} ")), None)
        if program is None:
            raise ConfigError(f"--against {name}: there are {' and '.join(NAMES)}")
        found = dict(_arms(program, pair))
        wanted = name.removesuffix(" plain")
        if name != program and wanted not in found:
            others = ", ".join(f"{label} plain" if label == program else label for label in found)
            raise ConfigError(f"--against {name}: of {program} there are {others}")
        yield from found.items() if name == program else [(wanted, found[wanted])]


def _arms(program: str, pair: Pair) -> Iterator[tuple[str, Callable[[], Arm]]]:
    if program == "transformers":
        from .transformers import arms
    else:
        from .llama_cpp import arms
    yield from arms(pair)
