"""What `generate` was given and does not hand on to a callable: the streamer, the tokenizer, an assistant.

`GenerationMixin.generate` (transformers 5.5 to 5.24) takes them out of its arguments, then overwrites them with those
that the callable's signature lists and that are still among the arguments, which they are no more. So a streamer would
see the prompt and nothing else, stop strings would be refused for want of the tokenizer that was passed, and an
assistant would be ignored without a word. The signature is read in between; then they are put back.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any, Final

PREPARING: Final = "_extract_generation_mode_kwargs"
"""The method of `GenerationMixin` that reads the signature."""
CACHES: Final = ("cache", "past_key_values")
"""Names of the argument for a cache. `generate` makes one where the caller gave none, so it must be noticed now."""
TAKEN: Final = "generation_mode_kwargs"
"""Its local variable that holds what it took out."""


class Handover:
    """The `__signature__` of a callable with parameters `tokenizer` and `handed_over`."""

    def __init__(self, call: Callable[..., Any]) -> None:
        """call: the callable's `__call__`."""
        signature = inspect.signature(call)
        _, *parameters = signature.parameters.values()  # without self
        self.signature = signature.replace(parameters=parameters)

    def __get__(self, instance: object, owner: type) -> inspect.Signature:
        """The signature; if `generate` is asking, its arguments are put back first."""
        if instance is None:  # of the class, of which the constructor is asked for
            raise AttributeError("__signature__")
        frame = sys._getframe(1)
        while frame.f_code.co_name != PREPARING:
            if frame.f_back is None:
                return self.signature
            frame = frame.f_back
        taken, arguments = frame.f_locals.get(TAKEN), frame.f_locals.get("kwargs")
        if isinstance(taken, dict) and isinstance(arguments, dict):
            restore(taken, arguments)
        return self.signature


def restore(taken: dict[str, Any], arguments: dict[str, Any]) -> None:
    """Put what was taken out of the arguments back, under names that the signature lists."""
    caches = {name: arguments[name] for name in CACHES if arguments.get(name) is not None}
    arguments["handed_over"] = {**taken, "caches": caches}
    if "tokenizer" in taken:
        arguments["tokenizer"] = taken["tokenizer"]
