"""Running without gradients, in a loop that asks again and again."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


def without_gradients(function: Callable[P, T]) -> Callable[P, T]:
    """A function that runs in inference mode, which is entered only where it is not on yet: in rounds it is."""
    guarded = torch.inference_mode()(function)

    @wraps(function)
    def run(*arguments: P.args, **named: P.kwargs) -> T:
        return (function if torch.is_inference_mode_enabled() else guarded)(*arguments, **named)

    return run
