"""What every method must do, with a random adapter that is as wide as the paper's, and with a whole layer."""

from __future__ import annotations

from typing import Any

import pytest

from fastllm_core.testing import TinyTarget, conformance
from fastllm_plugin_kangaroo.adapter import random_head


def whole_layer(target: TinyTarget) -> dict[str, object]:
    """A whole decoder layer behind more layers, whose drafts end where it is unsure: some early, some late."""
    folder = target.folder / "kangaroo-layer"
    if not folder.exists():
        exit_layer = min(2, target.model.config.num_hidden_layers - 1)
        random_head(target.model, exit_layer, mode="layer", seed=1).save(folder)
    return {"adapter": str(folder), "threshold": 0.1}


@conformance("kangaroo")
def test_conformance(check: Any, plugin: Any) -> None:
    check(plugin)


@pytest.mark.slow
@conformance("kangaroo", options=whole_layer)
def test_conformance_of_a_whole_layer(check: Any, plugin: Any) -> None:
    check(plugin)
