"""The plugin `self-speculative`: the target drafts, with sub-layers skipped (arXiv:2309.08168, arXiv:2404.16710)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from fastllm_core import Options, UserError, hookimpl

if TYPE_CHECKING:
    from fastllm_core import Config, Context, Drafter
    from fastllm_core.testing import TinyTarget

WAYS = (
    "skip = FILE (`fastllm tune layers` writes one), skip_attention and skip_mlp, or exit_layer (for a model that was "
    "trained for it)"
)


class SelfSpeculativeOptions(Options):
    """What drafts leave out, said in one of three ways."""

    skip: str | None = Field(
        None,
        description="A skip set: a file of `fastllm tune layers` or in a published format, or the name of a published "
        "set (llama-2-13b, llama-2-13b-chat, codellama-13b).",
    )
    skip_attention: tuple[int, ...] = Field((), description="Layers, from 0, whose attention drafts leave out.")
    skip_mlp: tuple[int, ...] = Field((), description="Layers, from 0, whose MLP drafts leave out.")
    exit_layer: int | None = Field(
        None,
        ge=1,
        description="Draft with this many first layers and the head (LayerSkip); verification resumes behind them.",
    )
    sample: bool = Field(
        True,
        description="Draw drafts from the skipped model's distribution when the target samples; "
        "false drafts its most likely token.",
    )


class SelfSpeculative:
    """Self-speculative decoding: the model drafts with some of its layers skipped, or with its first layers."""

    api_version = 1
    Options = SelfSpeculativeOptions

    def __init__(self, options: SelfSpeculativeOptions) -> None:
        """options: what drafts leave out."""
        self.options = options

    @staticmethod
    def conformance_options(target: TinyTarget) -> dict[str, object]:
        """A skip set that fits every tiny target, which may have as few as two layers."""
        return {"skip_attention": (1,), "skip_mlp": (0,)}

    @hookimpl
    def fastllm_check(self, config: Config) -> Sequence[str]:
        """Exactly one way is taken, and a file can be read, before the weights are."""
        options = self.options
        given = [options.skip is not None, bool(options.skip_attention or options.skip_mlp), bool(options.exit_layer)]
        if sum(given) != 1:
            said = "say what drafts leave out" if not any(given) else "say in one way only what drafts leave out"
            return [f"options.self-speculative: {said}: {WAYS}"]
        if options.skip is not None:
            from . import skipfile

            try:
                skipfile.find(options.skip, config.model)
            except UserError as error:
                return [f"options.self-speculative.skip: {error}"]
        return []

    @hookimpl
    def fastllm_make_drafter(self, context: Context) -> Drafter:
        """The target, with its own weights and cache, as its own drafter."""
        from .drafter import SkippingDrafter
        from .fitting import skipped_by

        return SkippingDrafter(context, skipped_by(self.options, context), sample=self.options.sample)
