"""From the options to a skip set that fits the target, or an error that says why none does."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from fastllm_core import ConfigError, TargetIdentity

from . import skipfile
from .skipset import SkipSet

if TYPE_CHECKING:
    from fastllm_core import Context

    from .plugin import SelfSpeculativeOptions

log = logging.getLogger("fastllm")


def skipped_by(options: SelfSpeculativeOptions, context: Context) -> SkipSet:
    """What drafts leave out. Raises ConfigError if it does not fit the target, in indices or in identity."""
    layers = context.network.layers
    key = "options.self-speculative"
    if options.exit_layer is not None:
        if options.exit_layer >= layers:
            last = f"the model has {layers} layers, so leave after 1..{layers - 1} of them"
            raise ConfigError(f"{key}.exit_layer: {options.exit_layer} is no early exit: {last}")
        return SkipSet.of_layers(options.exit_layer, layers)
    if options.skip is None:
        skipped = SkipSet.of(options.skip_attention, options.skip_mlp)
        _check_layers(skipped, layers, key)
        return skipped
    found = skipfile.find(options.skip, context.target.name)
    fits(found, TargetIdentity.of(context.network), f"{key}.skip")
    if not found.skipped:
        best = "" if found.best is None else f"; the best one ran at {found.best:.2f} times plain decoding"
        log.warning("self-speculative drafts nothing, since %s found no skip set that pays%s", found.source, best)
    return found.skipped


def fits(found: skipfile.Found, target: TargetIdentity, key: str) -> None:
    """Raise ConfigError unless a set is for this model."""
    reason = found.identity.mismatch(target)
    if reason:
        whose = found.identity.model or "another model"
        raise ConfigError(
            f"{key}: {found.source} was chosen for {whose}, and '{target.model}' is another ({reason}); choose one for "
            "it with fastllm tune layers"
        )
    assert target.layers is not None
    _check_layers(found.skipped, target.layers, f"{key}: {found.source}")


def _check_layers(skipped: SkipSet, layers: int, key: str) -> None:
    problem = skipped.problem(layers)
    if problem:
        raise ConfigError(f"{key}: {problem}")
