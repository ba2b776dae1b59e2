"""Which tree is drafted: one that is named by its shape, grown, or read from a file of `fastllm tune tree`."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fastllm_core import ConfigError, TargetIdentity

from .tree import PUBLISHED, Accuracies, Tree, cartesian, chain, grown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from fastllm_core import Context, Head

    from .heads import HeadsShape
    from .plugin import MedusaOptions

FORMAT: Final = "fastllm-tree"
VERSION: Final = 1
GROWN: Final = "grown"
CHAIN: Final = "chain"


@dataclass(frozen=True, slots=True)
class TreeFile:
    """What `fastllm tune tree` found."""

    tree: Tree
    accuracies: Accuracies
    """By head and rank, as measured."""
    target: TargetIdentity
    heads: str
    """The digest of the heads' weights."""
    measured: Mapping[str, Any]
    """By what it was chosen; nobody depends on it."""

    def write(self, path: Path) -> None:
        """As JSON."""
        from dataclasses import asdict

        value = {
            "format": FORMAT,
            "version": VERSION,
            "target": asdict(self.target),
            "heads": self.heads,
            "paths": [list(one) for one in self.tree.paths],
            "accuracies": [[round(chance, 5) for chance in one] for one in self.accuracies],
            "measured": dict(self.measured),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value) + "\n", encoding="utf-8")


def read(path: Path) -> TreeFile:
    """Read a file. Raises ConfigError if it is no tree."""
    source = f"options.medusa.tree: {path}"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise ConfigError(f"{source} is no tree: it does not say format = '{FORMAT}'; fastllm tune tree writes one")
        if value.get("version") != VERSION:
            raise ConfigError(f"{source} is of version {value.get('version')}, and this plugin reads {VERSION}")
        tree = Tree.of(value["paths"])
        identity = TargetIdentity.read(value["target"])
        return TreeFile(tree, value["accuracies"], identity, str(value["heads"]), value.get("measured", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{source} cannot be read: {reason}") from error


def tree_for(options: MedusaOptions, head: Head, shape: HeadsShape, context: Context) -> Tree:
    """The tree that the options name, no deeper than there are heads and than a round may draft.

    Under `exact` it is the chain of the best tokens: bits are promised for chains.
    Raises ConfigError if it needs more heads or more of their tokens than there are, or was found for other ones.
    """
    most = min(shape.heads, context.draft_length)
    if context.config.exact:
        return chain(most)
    if options.tree == GROWN:
        accuracies = head.settings.get("accuracies") or PUBLISHED
        return grown([ranks[: shape.vocab_size] for ranks in accuracies], options.nodes, most)
    tree = by_shape(options.tree, most)
    if tree is None:
        found = read(Path(options.tree).expanduser())
        _check(found, head, context, options.tree)
        tree = found.tree
    if tree.depth > shape.heads or tree.ranks > shape.vocab_size:
        raise ConfigError(
            f"options.medusa.tree: '{options.tree}' is {tree.depth} deep and takes {tree.ranks} tokens of a head, and "
            f"{head.source} has {shape.heads} heads of {shape.vocab_size} tokens"
        )
    return tree.cut(most)


def by_shape(name: str, depth: int = 1) -> Tree | None:
    """The tree that "chain" or "4x2x2" names; None if the name is neither.  depth: of a chain."""
    if name == CHAIN:
        return chain(depth)
    widths = name.split("x")
    if all(width.isdecimal() and int(width) for width in widths):
        return cartesian([int(width) for width in widths])
    return None


def digest_of(weights: Mapping[str, Tensor]) -> str:
    """A hash of heads, by which a tree knows for which it was measured."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tuple(tensor.shape)};".encode())
        data = tensor.detach().to("cpu", torch.bfloat16 if tensor.is_floating_point() else tensor.dtype)
        digest.update(data.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _check(found: TreeFile, head: Head, context: Context, name: str) -> None:
    reason = found.target.mismatch(TargetIdentity.of(context.network))
    if reason is None and found.heads != digest_of(head.weights):
        reason = "other heads"
    if reason:
        raise ConfigError(
            f"options.medusa.tree: '{name}' was measured with another model ({reason}): its accuracies are not those "
            f"of {head.source}; run fastllm tune tree again"
        )
