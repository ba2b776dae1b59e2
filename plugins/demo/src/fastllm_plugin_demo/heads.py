"""Growing a head together with its target, so that it drafts the same at the cost of a trained one of that size.

A head says in its `growth` which of its axes are the target's hidden ones (docs/authors/heads.md). The target's new
dimensions are zero in every hidden state, so a matrix may read them with any weight, and nobody writes to them; a norm
averages over them. New units come in groups that cancel, as in `grow`. Where what a matrix answers is added to what it
reads, new dimensions of the sum are such units themselves: equal in groups, and read with weights that cancel. The
grown head carries the grown target's identity.
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
    """Grow the head of `source` for a grown target and write it to the empty `folder`."""
    head = load_head(str(source))
    network = Network(load_model(target.path(), dtype="bfloat16"))
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
    growth, hidden = head.growth, target.hidden_size
    names = growth["settings"]
    settings = dict(head.settings)
    ratio = hidden / settings[names["hidden"]]
    noise = Noise(torch.Generator().manual_seed(seed), STD, torch.bfloat16)
    old = {name: tensor.bfloat16() if tensor.is_floating_point() else tensor for name, tensor in head.weights.items()}
    new = old | {name: grown_norm(old[name], hidden) for name in growth.get("norms", ())}
    for group in growth.get("units", ()):
        for name in group["counts"]:
            settings[name] = round(settings[name] * ratio)
        new |= _grown_group(group, old, settings[group["counts"][-1]], hidden, noise)
    if "residuals" in growth:
        new |= _grown_residuals(growth, old, hidden, noise)
    settings[names["hidden"]] = hidden
    if "layer" in names:
        settings[names["layer"]] = grown_exit(settings[names["layer"]], old_layers, target.layers)
    if "epsilon" in names:
        settings[names["epsilon"]] = settings[names["epsilon"]] / ratio
    return Head(head.method, target, settings, new, growth=growth, training={"grown_from": head.target.model})


def grown_exit(layer: int, old_layers: int, new_layers: int) -> int:
    """Where the grown model has just run the first `layer` layers of the small one: behind the last of these."""
    return (layer - 1) * new_layers // old_layers + 1


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


def _grown_residuals(
    growth: Mapping[str, Any], old: Mapping[str, Tensor], hidden: int, noise: Noise
) -> dict[str, Tensor]:
    """x + f(W x + b), and the output matrices that read the sums.

    New dimensions of a sum are equal in groups; silent ones, which the target's own matrix reads as well, are zero.
    """
    grown = {}
    for weight, bias in growth["residuals"]:
        size = len(old[weight])
        leader, factor = cancelling(hidden - size)
        groups = int(leader.max()) + 1 if len(leader) else 0
        above = torch.cat([old[weight], _cancelled(size, leader, factor, noise)], dim=1)
        below = torch.cat([noise.draw(groups, size)[leader], _cancelled(groups, leader, factor, noise)[leader]], dim=1)
        more = noise.draw(groups)[leader]
        if growth["silent"]:
            below, more = torch.zeros_like(below), torch.zeros_like(more)
        grown[weight], grown[bias] = torch.cat([above, below]), torch.cat([old[bias], more])
    for name in growth["outputs"]:
        leader, factor = cancelling(hidden - old[name].shape[1])
        grown[name] = torch.cat([old[name], _cancelled(len(old[name]), leader, factor, noise)], dim=1)
    return grown


def _cancelled(rows: int, leader: Tensor, factor: Tensor, noise: Noise) -> Tensor:
    """float[rows, dimensions]: weights that make nothing of dimensions that are equal in groups."""
    groups = int(leader.max()) + 1 if len(leader) else 0
    return noise.draw(rows, groups)[:, leader] * factor.to(noise.dtype)
