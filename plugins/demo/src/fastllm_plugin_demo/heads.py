"""Growing a head together with its target, so that it drafts the same at the cost of a trained one of that size.

A head says in its `growth` which of its axes are the target's hidden ones (docs/authors/heads.md). The target's new
dimensions are zero in every hidden state, so a matrix may read them with any weight, and nobody writes to them; a norm
averages over them. New units come in groups that cancel, as in `grow`; so do new features, where a head makes some of
its own from hidden states (Medusa's blocks). The grown head carries the grown target's identity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastllm_core import Head, Network, TargetIdentity, load_head, load_model

from .grow import Noise, cancelling, grown_norm, grown_units

if TYPE_CHECKING:
    from .models import Grown

STD = 0.02
"""Standard deviation of new weights."""


def build(source: Path, target: Grown, folder: Path) -> None:
    """Grow the head of `source` for a grown target and write it to the empty `folder`.

    Features that a head makes may be read by the target's output matrix, which must not see new ones: it is the
    embedding, where they are zero.
    """
    head = load_head(str(source))
    network = Network(load_model(target.path(), dtype="bfloat16"))
    assert network.config.tie_word_embeddings or "features" not in head.growth
    identity = replace(TargetIdentity.of(network), model=target.name)
    old_layers = head.target.layers
    assert old_layers is not None
    grown_head(head, identity, old_layers, target.seed).save(folder)


def grown_head(head: Head, target: TargetIdentity, old_layers: int, seed: int = 0) -> Head:
    """The head for a grown target, in bfloat16. Raises ValueError if it does not say how it grows.

    old_layers: layers of the target that it was trained for.
    """
    assert target.hidden_size is not None
    assert target.layers is not None
    if not head.growth:
        raise ValueError(f"{head.source} does not say which of its axes are hidden ones")
    names, hidden = head.growth["settings"], target.hidden_size
    settings = dict(head.settings)
    old_hidden = settings[names["hidden"]]
    ratio = hidden / old_hidden
    noise = Noise(torch.Generator().manual_seed(seed), STD, torch.bfloat16)
    old = {name: _rounded(tensor) for name, tensor in head.weights.items()}
    new = old | {name: grown_norm(old[name], hidden) for name in head.growth.get("norms", ())}
    for group in head.growth.get("units", ()):
        for name in group["counts"]:
            settings[name] = round(settings[name] * ratio)
        new |= _grown_group(group, old, settings[group["counts"][-1]], hidden, noise)
    if "features" in head.growth:
        new |= _grown_features(head.growth["features"], old, hidden, noise)
    settings[names["hidden"]] = hidden
    if "layer" in names:
        settings[names["layer"]] = grown_exit(settings[names["layer"]], old_layers, target.layers)
    if "epsilon" in names:
        settings[names["epsilon"]] = settings[names["epsilon"]] / ratio
    return Head(head.method, target, settings, new, growth=head.growth, training={"grown_from": head.target.model})


def grown_exit(layer: int, old_layers: int, new_layers: int) -> int:
    """Where the grown model has just run the first `layer` layers of the small one: behind the last of these."""
    return (layer - 1) * new_layers // old_layers + 1


def _rounded(tensor: Tensor) -> Tensor:
    return tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor


def _grown_features(
    group: Mapping[str, Any], old: Mapping[str, Tensor], hidden: int, noise: Noise
) -> dict[str, Tensor]:
    """Makers with rows for new features, which come in equal groups, and readers that take each group for nothing."""
    new: dict[str, Tensor] = {}
    for weight, bias in group["makers"]:
        leader, _ = cancelling(hidden - len(old[weight]))
        leaders = int(leader.max()) + 1
        rows = torch.cat([old[weight], noise.draw(leaders, old[weight].shape[1])])
        wide = _reading_nothing(rows, hidden, noise)
        kept = len(old[weight])
        new[weight] = torch.cat([wide[:kept], wide[kept:][leader]])
        new[bias] = torch.cat([old[bias], noise.draw(leaders)[leader]])
    return new | {name: _reading_nothing(old[name], hidden, noise) for name in group["readers"]}


def _reading_nothing(matrix: Tensor, hidden: int, noise: Noise) -> Tensor:
    """The matrix with columns for new features that cancel: [rows, old] to [rows, hidden]."""
    leader, factor = cancelling(hidden - matrix.shape[1])
    columns = noise.draw(len(matrix), int(leader.max()) + 1)[:, leader] * factor.to(noise.dtype)
    return torch.cat([matrix, columns], dim=1)


def _grown_group(
    group: Mapping[str, Any], old: Mapping[str, Tensor], units: int, hidden: int, noise: Noise
) -> dict[str, Tensor]:
    readers, writer = group["readers"], group["writer"]
    grown = grown_units(
        [old[name] for name in readers],
        old[writer],
        rows=group["rows"],
        columns=group["columns"],
        units=units,
        hidden=hidden,
        noise=noise,
    )
    return dict(zip([*readers, writer], grown, strict=True))
