"""The table of docs/benchmarks.md, "Controls": our columns are zeros, wherever in a round a text ends."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from transformers import PreTrainedModel

from fastllm_core.testing import tiny_model

NAMES = (
    *("stop string", "end token", "limit", "stopping criterion", "repetition penalty", "no repeated n-gram"),
    *("bad words", "logit bias", "least length", "pure processor", "snapshotable processor", "stateful processor"),
    "guidance",
)


@cache
def script() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "controls.py"
    spec = importlib.util.spec_from_file_location("control_table", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    return module


@cache
def models() -> tuple[PreTrainedModel, PreTrainedModel]:
    return tiny_model(seed=3, num_hidden_layers=2), tiny_model(seed=4, num_hidden_layers=2)


def check(name: str, tree: bool, count: int) -> None:
    situations = script().situations(*models(), count)
    assert tuple(situations) == NAMES
    assert script().ours(models()[0], situations[name], tree=tree) == 0


@pytest.mark.parametrize("name", NAMES)
def test_no_text_differs(name: str) -> None:
    for tree in (False, True):
        check(name, tree, 2)


@pytest.mark.slow
@pytest.mark.parametrize("tree", [False, True], ids=["chain", "tree"])
@pytest.mark.parametrize("name", NAMES)
def test_no_text_of_many_differs(name: str, tree: bool) -> None:
    check(name, tree, 36)
