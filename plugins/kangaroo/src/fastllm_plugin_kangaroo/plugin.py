"""The plugin `kangaroo`: the target's first layers and a small trained adapter draft (arXiv:2404.18911)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from fastllm_core import Options, hookimpl

if TYPE_CHECKING:
    from fastllm_core import Config, Context, Drafter
    from fastllm_core.testing import TinyTarget


class KangarooOptions(Options):
    """Which adapter drafts, and when a draft ends."""

    adapter: str = Field(
        description="A trained adapter for this target: a registered name, a local folder or owner/name on the hub."
    )
    revision: str | None = Field(None, description="Branch, tag or commit of the adapter on the hub.")
    threshold: float = Field(
        0.4,
        ge=0.0,
        le=1.0,
        description="The second exit (eta): a draft ends behind a token that the adapter finds less likely than this; "
        "0 never ends one. draft.controller = 'threshold' brings its own.",
    )
    sample: bool = Field(
        True,
        description="Draw drafts from the adapter's distribution when the target samples; "
        "false drafts its most likely token.",
    )


class Kangaroo:
    """Double early exiting: the target's first layers and a trained adapter draft, and the rest verifies."""

    api_version = 1
    Options = KangarooOptions

    def __init__(self, options: KangarooOptions) -> None:
        """options: which adapter drafts."""
        self.options = options

    @staticmethod
    def conformance_options(target: TinyTarget) -> dict[str, object]:
        """A random adapter behind the first layer, whose drafts are as long as may be."""
        from .adapter import random_head

        folder = target.folder / "kangaroo"
        if not folder.exists():
            random_head(target.model, exit_layer=1, mode="attention").save(folder)
        return {"adapter": str(folder), "threshold": 0.0}

    @hookimpl
    def fastllm_check(self, config: Config) -> Sequence[str]:
        """A folder that is named is there, before the model is read."""
        name = self.options.adapter
        if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
            return [f"options.kangaroo.adapter: there is no folder {name}; fastllm train kangaroo makes one"]
        return []

    @hookimpl
    def fastllm_make_drafter(self, context: Context) -> Drafter:
        """Read the adapter and check that it was trained for this target."""
        from .drafter import KangarooDrafter

        return KangarooDrafter(self.options, context)
