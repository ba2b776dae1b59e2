"""The table of adapters is sound and the only place that knows families by name; plugins add to it."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import CONFIG_MAPPING, LlamaConfig

import fastllm_core
from fastllm_core import Adapter, PluginContractError, UnsupportedModel, load, quirks
from fastllm_core.adapters import adapter_for
from fastllm_core.models import load_model
from fastllm_core.network import Network
from fastllm_core.probe import check_split
from fastllm_core.spans import Span
from fastllm_core.testing import tiny_model

if TYPE_CHECKING:
    from conftest import FakeSite

SOURCE = Path(fastllm_core.__file__).parent
TABLE = ("adapters.py", "quirks.py")

PLUGIN = """
from fastllm_core import Adapter, Options, hookimpl

class Plugin:
    api_version = 1
    Options = Options

    def __init__(self, options): ...

    @hookimpl
    def fastllm_adapters(self):
        return [{}]
"""


def test_every_entry_says_why() -> None:
    for adapter in quirks.ADAPTERS:
        assert adapter.model_types
        assert adapter.reason or adapter.refuse, adapter.model_types


def test_a_family_has_one_entry() -> None:
    names = [name for adapter in quirks.ADAPTERS for name in adapter.model_types]
    assert len(names) == len(set(names))


@pytest.mark.skipif(Version(transformers.__version__) < Version("5.24"), reason="the table knows later families")
def test_the_table_names_families_that_exist() -> None:
    assert not {name for adapter in quirks.ADAPTERS for name in adapter.model_types} - set(CONFIG_MAPPING)


def test_families_are_told_apart_by_name_nowhere_else() -> None:
    for path in SOURCE.rglob("*.py"):
        if path.name in TABLE or "testing" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                inner = [part for part in ast.walk(node) if isinstance(part, ast.Attribute)]
                assert all(part.attr != "model_type" for part in inner), f"{path.name}:{node.lineno}"


def test_the_table_is_read_without_torch() -> None:
    code = "import sys, fastllm_core.quirks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_who_is_not_in_the_table_gets_the_defaults() -> None:
    assert adapter_for(LlamaConfig()) == Adapter()


def test_an_entry_for_the_text_part_holds_for_the_whole_model() -> None:
    found = adapter_for(transformers.AutoConfig.for_model("llama4"))
    assert found.model_types == ("llama4_text",)


def test_an_adapter_from_outside_wins() -> None:
    ours = Adapter(model_types=("gpt_neo",), reason="tried out")
    config = transformers.AutoConfig.for_model("gpt_neo")
    assert adapter_for(config, [ours]) is ours
    assert adapter_for(config, [Adapter(model_types=("llama",))]).model_types == ("gpt_neo",)


def test_a_plugin_brings_a_family(site: FakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """NanoChat, as if the core did not know it: its split is refused without the plugin, and right with it."""
    monkeypatch.setattr(quirks, "ADAPTERS", ())
    site.plugin("nano", NANOCHAT, kind="parts")
    model = tiny_model("nanochat")
    with load(model, "plain") as pipeline, pytest.raises(UnsupportedModel, match="being run in two parts"):
        check_split(pipeline.engine.parts.network, 2)
    with load(model, "plain", config={"use": ["nano"]}) as pipeline:
        for layer in (1, 2, 3):
            check_split(pipeline.engine.parts.network, layer)


NANOCHAT = PLUGIN.format('Adapter(model_types=("nanochat",), reason="norms twice", final_norm=(), cut=cut)') + (
    """
def cut(base, start, stop, total):
    from torch import nn
    norm, base.norm = base.norm, nn.Identity()
    if start == 0:
        base.layers[0].register_forward_pre_hook(lambda layer, inputs: (norm(inputs[0]), *inputs[1:]))
    if stop == total:
        base.layers[-1].register_forward_hook(lambda layer, inputs, output: norm(output))
"""
)


def test_a_plugin_refuses_a_family_for_target_and_draft_model_alike(site: FakeSite) -> None:
    source = PLUGIN.format('Adapter(model_types=("qwen2",), refuse="is not trusted")')
    site.plugin("strict", source + WATCHES, kind="parts")
    with pytest.raises(UnsupportedModel, match=r"\(qwen2\) is not trusted"):
        load(tiny_model("qwen2"), "plain", config={"use": ["strict"]})
    load(tiny_model(), "plain", config={"use": ["strict"]})
    (context,) = import_module("fastllm_plugin_strict").contexts
    with pytest.raises(UnsupportedModel, match="is not trusted"):
        context.load_model(tiny_model("qwen2"))
    with pytest.raises(UnsupportedModel, match="is not trusted"):
        context.make_network(load_model(tiny_model("qwen2")))


WATCHES = """
    @hookimpl
    def fastllm_observers(self, context):
        contexts.append(context)
        return []

contexts = []
"""


def test_a_plugin_that_brings_something_else_is_named(site: FakeSite) -> None:
    site.plugin("odd", PLUGIN.format('"llama"'), kind="parts")
    with pytest.raises(PluginContractError, match=r"odd.*must answer fastllm_core.Adapter objects, not str"):
        load(tiny_model(), "plain", config={"use": ["odd"]})


def test_a_refusal_may_depend_on_the_configuration() -> None:
    falcon = {"num_attention_heads": 4, "multi_query": True}
    Network(load_model(tiny_model("falcon", **falcon)))
    with pytest.raises(UnsupportedModel, match="adds ALiBi biases by cache slot"):
        load_model(tiny_model("falcon", **falcon, alibi=True))
    with pytest.raises(UnsupportedModel, match="does not say is_decoder"):
        load_model(tiny_model("bert", pad_token_id=0))


@pytest.mark.parametrize(
    ("span", "seen"),
    [
        (Span(), [1, 1, 1, 1, 1, 1]),
        (Span(window=2), [0, 0, 0, 0, 1, 1]),
        (Span(chunk=4), [0, 0, 0, 0, 1, 1]),
        (Span(window=3, chunk=4), [0, 0, 0, 0, 1, 1]),
        (Span(window=4), [0, 0, 1, 1, 1, 1]),
    ],
)
def test_spans_go_by_position(span: Span, seen: list[int]) -> None:
    """A node in slot 7 at position 5 looks at what lies behind its position."""
    mask = torch.ones(1, 1, 6, dtype=torch.bool)
    assert span.narrow(mask, torch.tensor([[5]]), torch.arange(6)[None]).int().tolist() == [[seen]]
