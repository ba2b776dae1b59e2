"""The plugin `uag`: a model with any other tokenizer drafts (arXiv:2502.05202)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from fastllm_core import Options, hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastllm_core import Config, Context, Drafter
    from fastllm_core.testing import TinyTarget

Mode = Literal["auto", "string", "token"]


class UagOptions(Options):
    """Which model drafts, where, and how its tokens become the target's."""

    draft_model: str = Field(
        description="The drafter: a hub name, a local folder or a registered name, with a tokenizer of its own."
    )
    mode: Mode = Field(
        "auto",
        description='"string" drafts text and tokenizes it anew, "token" drafts only tokens that both vocabularies '
        'have; auto is "string" for greedy rounds and, for sampling, "token" if the vocabularies share enough.',
    )
    drafter: str | None = Field(
        None,
        description="Another installed method that drafts in the draft model's tokens in place of the model itself, "
        '"prompt-lookup" for example; only in text.',
    )
    drafter_options: dict[str, Any] = Field({}, description="That method's options.")
    device: str = Field("auto", description="Where the drafter runs; auto is the target's device.")
    dtype: str = Field("auto", description="The drafter's number format; auto is the target's.")
    revision: str | None = Field(None, description="Branch, tag or commit of the drafter on the hub.")


class Uag:
    """Speculative decoding with a draft model of any other tokenizer."""

    api_version = 1
    Options = UagOptions

    def __init__(self, options: UagOptions) -> None:
        """options: which model drafts, and how."""
        self.options = options

    @staticmethod
    def conformance_options(target: TinyTarget) -> dict[str, object]:
        """A draft model for the conformance kit, whose tokenizer numbers its entries in another order, and merges."""
        from .relative import relative

        return {"draft_model": relative(target.model, target.tokenizer, target.folder / "other-tokenizer")}

    @hookimpl
    def fastllm_check(self, config: Config) -> Sequence[str]:
        """Another drafter's tokens are drawn from no known distribution, and only it has options."""
        if self.options.drafter is None:
            return ["options.uag.drafter_options: are for options.uag.drafter"] if self.options.drafter_options else []
        if self.options.mode == "token":
            return ['options.uag.mode: with options.uag.drafter only text is drafted; set mode = "string"']
        return []

    @hookimpl
    def fastllm_make_drafter(self, context: Context) -> Drafter:
        """Load the draft model and lay the two vocabularies side by side."""
        from .drafter import TranslatingDrafter
        from .relay import Relay

        if self.options.drafter is not None:
            return Relay.of(self.options.drafter, self.options, context)
        return TranslatingDrafter.of(self.options, context)
