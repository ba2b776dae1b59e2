"""The plugin `medusa`: heads on the target's last hidden state draft a tree (arXiv:2401.10774)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from fastllm_core import Options, hookimpl

if TYPE_CHECKING:
    from fastllm_core import Config, Context, Drafter
    from fastllm_core.testing import TinyTarget


class MedusaOptions(Options):
    """Which heads draft, and which tree."""

    heads: str = Field(
        description="Trained heads for this target: a registered name, a local folder or owner/name on the hub."
    )
    revision: str | None = Field(None, description="Branch, tag or commit of the heads on the hub.")
    tree: str = Field(
        "grown",
        description='"grown": the best tree of `nodes` nodes by the accuracies that the heads bring along, else by '
        'published ones; a file of fastllm tune tree; "4x2x2": so many of each head\'s best tokens, in all '
        'combinations; "chain": the best of each.',
    )
    nodes: int = Field(16, ge=1, le=1024, description='For tree = "grown": how many nodes it has.')


class Medusa:
    """Heads on the target's last hidden state draft a tree of tokens, which one forward verifies."""

    api_version = 1
    Options = MedusaOptions

    def __init__(self, options: MedusaOptions) -> None:
        """options: which heads draft, and which tree."""
        self.options = options

    @staticmethod
    def conformance_options(target: TinyTarget) -> dict[str, object]:
        """Three random heads."""
        from .heads import random_head

        folder = target.folder / "medusa"
        if not folder.exists():
            random_head(target.model, heads=3).save(folder)
        return {"heads": str(folder)}

    @hookimpl
    def fastllm_check(self, config: Config) -> Sequence[str]:
        """Folders and files that are named are there, before the model is read."""
        from .treefile import GROWN, by_shape

        problems = []
        name, tree = self.options.heads, self.options.tree
        if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
            problems.append(f"options.medusa.heads: there is no folder {name}; fastllm train medusa makes one")
        if tree != GROWN and by_shape(tree) is None and not Path(tree).expanduser().is_file():
            problems.append(
                f'options.medusa.tree: \'{tree}\' is neither "grown", "chain", a shape such as "4x2x2" nor a file; '
                "fastllm tune tree writes one"
            )
        return problems

    @hookimpl
    def fastllm_make_drafter(self, context: Context) -> Drafter:
        """Read the heads and check that they were trained for this target."""
        from .drafter import MedusaDrafter

        return MedusaDrafter(self.options, context)
