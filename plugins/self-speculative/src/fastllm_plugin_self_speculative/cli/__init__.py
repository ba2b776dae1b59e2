"""`fastllm tune`. Nothing here imports torch: what needs it is imported when a command runs."""

from __future__ import annotations

import typer

from .early_exit import early_exit
from .layers import layers

command = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Fit self-speculative decoding to a model, or a model to it."
)


@command.callback()
def tune() -> None:
    """Fit self-speculative decoding to a model, or a model to it."""


command.command("layers")(layers)
command.command("early-exit")(early_exit)
