"""The plugin `uag`: a model with any other tokenizer drafts (arXiv:2502.05202)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from fastllm_core import Options, hookimpl

if TYPE_CHECKING:
    from fastllm_core import Context, Drafter
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
    def fastllm_make_drafter(self, context: Context) -> Drafter:
        """Load the draft model and lay the two vocabularies side by side."""
        from .drafter import TranslatingDrafter

        return TranslatingDrafter.of(self.options, context)
