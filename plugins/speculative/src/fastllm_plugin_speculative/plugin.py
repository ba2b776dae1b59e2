"""The plugin `speculative`: a small model of the same vocabulary drafts (arXiv:2211.17192, arXiv:2302.01318)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from fastllm_core import Options, hookimpl

if TYPE_CHECKING:
    from fastllm_core import Context, Drafter
    from fastllm_core.testing import TinyTarget


class SpeculativeOptions(Options):
    """Which model drafts, and where."""

    draft_model: str = Field(
        description="The drafter: a hub name, a local folder or a registered name, with the target's tokenizer."
    )
    device: str = Field("auto", description="Where the drafter runs; auto is the target's device.")
    dtype: str = Field("auto", description="The drafter's number format; auto is the target's.")
    revision: str | None = Field(None, description="Branch, tag or commit of the drafter on the hub.")
    sample: bool = Field(
        True,
        description="Draw drafts from the drafter's distribution when the target samples; "
        "false drafts its most likely token.",
    )


class Speculative:
    """Speculative decoding with a draft model."""

    api_version = 1
    Options = SpeculativeOptions

    def __init__(self, options: SpeculativeOptions) -> None:
        """options: which model drafts."""
        self.options = options

    @staticmethod
    def conformance_options(target: TinyTarget) -> dict[str, object]:
        """A draft model for the conformance kit."""
        return {"draft_model": target.relative()}

    @hookimpl
    def fastllm_make_drafter(self, context: Context) -> Drafter:
        """Load the draft model and check that it speaks the target's vocabulary."""
        from .drafter import DraftModel

        return DraftModel(self.options, context)
