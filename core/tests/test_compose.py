"""Selecting plugins and filling roles. The role objects are stubs: nothing here runs a model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from fastllm_core.compose import Roles, Selection, build_roles, make_kv_cache, select
from fastllm_core.config import config_from
from fastllm_core.context import Context
from fastllm_core.defaults import CoreDefaults
from fastllm_core.errors import (
    ConfigError,
    PluginConflict,
    PluginContractError,
    PluginLoadError,
    PluginNotFound,
)
from fastllm_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from conftest import FakeSite

HEAD = """
from types import SimpleNamespace
from pydantic import Field
from fastllm_core.hookspecs import hookimpl
from fastllm_core.options import Options
from fastllm_core.protocols import Drafter, Guarantee, Proposal

class PluginOptions(Options):
    exit_layer: int = Field(default=2, description="Where to leave.")

class Chain(Drafter):
    proposal = Proposal.ONE_HOT
    hidden_layers = (1,)
    def propose(self, batch): ...

class Base:
    api_version = 1
    Options = PluginOptions
    def __init__(self, options): self.options = options
"""
DRAFTS = HEAD + (
    "class Plugin(Base):\n    @hookimpl\n    def fastllm_make_drafter(self, context):\n        return {}\n"
)
CHAIN = DRAFTS.format("Chain()")
ACCEPTOR = HEAD + (
    "class Plugin(Base):\n    @hookimpl\n    def fastllm_make_acceptor(self, context):\n"
    "        return SimpleNamespace(decide=None, guarantee=Guarantee.{}, name='plugin')\n"
)
WRAPPER = HEAD + (
    "class Plugin(Base):\n    @hookimpl(wrapper=True)\n    def fastllm_make_kv_cache(self, network):\n"
    "        inner = yield\n        return SimpleNamespace(**vars(inner) | dict(name=f'{}({{inner.name}})'))\n"
)


class StubDefaults(CoreDefaults):
    """The core's own offers, made without torch."""

    @hookimpl(trylast=True)
    def fastllm_make_verifier(self, drafter: Any) -> Any:
        self.filled.add("verifier")
        return SimpleNamespace(score=None, drafter=drafter)

    @hookimpl(trylast=True)
    def fastllm_make_kv_cache(self, network: Any) -> Any:
        self.filled.add("kv_cache")
        names = ("lengths", "capacity", "reserve", "layers", "extent", "commit", "move", "copy", "release")
        return SimpleNamespace(**dict.fromkeys(names), name="core", network=network)

    @hookimpl(trylast=True)
    def fastllm_make_acceptor(self, drafter: Any) -> Any:
        self.filled.add("acceptor")
        return SimpleNamespace(decide=None, guarantee="exact", drafter=drafter)


@pytest.fixture(autouse=True)
def stub_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastllm_core.selection.CoreDefaults", StubDefaults)


def chosen(**values: object) -> Selection:
    return select(config_from({"model": "/none", **values}), model=object())


def built(selection: Selection) -> Roles:
    def make_cache(network: Any) -> Any:
        return make_kv_cache(selection, context, network)

    anything: Any = "target network"
    context = Context(selection.config, anything, anything, anything, 5, None, anything, anything, make_cache, anything)
    return build_roles(selection, context)


def test_plain_is_the_cores_own() -> None:
    selection = chosen()
    assert selection.method == "plain"
    assert selection.plugins == {}
    roles = built(selection)
    assert roles.drafter is None
    assert dict(roles.names) == {"verifier": "core", "kv_cache": "core", "acceptor": "core"}
    assert roles.context.cache is roles.cache
    assert roles.observers == ()


def test_method_fills_its_role_and_the_core_the_rest(site: FakeSite) -> None:
    site.plugin("chain", CHAIN)
    site.plugin("broken", "import nosuchmodule")
    selection = chosen(method="chain", options={"chain": {"exit_layer": 3}})
    assert selection.plugins["chain"].options.exit_layer == 3  # type: ignore[attr-defined]
    roles: Any = built(selection)
    assert roles.names["drafter"] == "chain"
    assert roles.verifier.drafter is roles.acceptor.drafter is roles.drafter
    assert "fastllm_plugin_broken" not in sys.modules


def test_selected_and_broken(site: FakeSite) -> None:
    site.plugin("broken", "import nosuchmodule")
    with pytest.raises(PluginLoadError) as caught:
        chosen(use=["broken"])
    assert str(caught.value) == (
        "plugin 'broken' (fastllm-plugin-broken 0.1.0, fastllm_plugin_broken:Plugin) failed to import: "
        "ModuleNotFoundError: No module named 'nosuchmodule'"
    )


def test_constructor_that_fails(site: FakeSite) -> None:
    site.plugin("chain", HEAD + "class Plugin(Base):\n    def __init__(self, options): raise OSError('no file')\n")
    with pytest.raises(PluginLoadError, match="failed to start: OSError: no file"):
        chosen(method="chain")


def test_unknown_method(site: FakeSite) -> None:
    with pytest.raises(PluginNotFound, match="did you mean 'plain'"):
        chosen(method="plian")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("Plugin = 3", "is no class"),
        ("class Plugin: pass", "does not state its api_version; this core speaks 1"),
        ("class Plugin:\n    api_version = 0", "written for plugin API 0; this core speaks 1. Upgrade the plugin"),
        ("class Plugin:\n    api_version = 2", "Upgrade fastllm-core"),
        ("class Plugin:\n    api_version = 1\n    Options = dict", "must be a subclass of fastllm_core.Options"),
        (DRAFTS.replace("context", "tokens"), r"does not fit the hook specs: .*\{'tokens'\}"),
        (CHAIN.replace("_drafter", "_drafters"), "does not fit the hook specs: unknown hook 'fastllm_make_drafters'"),
    ],
)
def test_contract_is_checked_when_selected(site: FakeSite, source: str, words: str) -> None:
    site.plugin("bad", source)
    with pytest.raises(PluginContractError, match=words) as caught:
        chosen(method="bad")
    assert "fastllm-plugin-bad 0.1.0" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_errors_have_their_dotted_path(site: FakeSite) -> None:
    site.plugin("chain", CHAIN)
    with pytest.raises(ConfigError) as caught:
        chosen(method="chain", options={"chain": {"exit_layr": 1, "exit_layer": "x"}})
    lines = str(caught.value).splitlines()
    assert any(line.startswith("options.chain.exit_layer: should be a valid integer") for line in lines)
    unknown = next(line for line in lines if line.startswith("options.chain.exit_layr: unknown key"))
    assert "did you mean 'options.chain.exit_layer'?" in unknown
    with pytest.raises(ConfigError, match=r"no such option; 'forward' is a setting of its own: .*load\(config="):
        chosen(method="chain", options={"chain": {"forward": "eager"}})
    with pytest.raises(ConfigError, match=r"^options\.chian: plugin 'chian' is not selected .*; did you mean 'chain'"):
        chosen(method="chain", options={"chian": {}})


def test_requirements() -> None:
    chosen(requires=["pluggy>=1", "nosuchthing; python_version < '3'"])
    with pytest.raises(ConfigError) as caught:
        chosen(requires=["pluggy<1", "nosuchthing>=2"])
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("requires: pluggy<1, but pluggy ")
    assert lines[1].startswith("requires: nosuchthing>=2 is not installed; try: pip install")
    with pytest.raises(ConfigError, match=r"requires\.0: '>=' is no requirement"):
        chosen(requires=[">="])


def test_two_offers_for_one_role(site: FakeSite) -> None:
    site.plugin("a", CHAIN)
    site.plugin("b", CHAIN)
    with pytest.raises(PluginConflict, match=r'a and b both offer a drafter; choose one with roles\.drafter = "a"'):
        chosen(method="a", use=["b"])
    assert built(chosen(method="a", use=["b"], roles={"drafter": "b"})).names["drafter"] == "b"
    assert built(chosen(method="a", roles={"drafter": "b"})).names["drafter"] == "b"  # a role selects its plugin
    assert built(chosen(method="a", roles={"drafter": "core"})).drafter is None
    with pytest.raises(ConfigError, match=r"roles\.acceptor: plugin 'a' offers no acceptor; those that do: core"):
        chosen(method="a", roles={"acceptor": "a"})


def test_later_plugins_wrap_earlier_ones(site: FakeSite) -> None:
    site.plugin("in", WRAPPER.format("in"), kind="parts")
    site.plugin("out", WRAPPER.format("out"), kind="parts")
    roles: Any = built(chosen(use=["in", "out"]))
    assert roles.cache.name == roles.names["kv_cache"] == "out(in(core))"
    again: Any = built(chosen(use=["out", "in"]))
    assert again.cache.name == "in(out(core))"


def test_lossy_only_if_asked(site: FakeSite) -> None:
    site.plugin("typical", ACCEPTOR.format("LOSSY"), kind="parts")
    with pytest.raises(ConfigError, match="lossy: the acceptor of 'typical' changes the text"):
        built(chosen(use=["typical"]))
    roles = built(chosen(use=["typical"], lossy=True))
    assert roles.names["acceptor"] == "typical"
    assert roles.lossy == ("the acceptor of 'typical'",)


def with_the_cores_acceptor(site: FakeSite, monkeypatch: pytest.MonkeyPatch, **values: object) -> Roles:
    class Defaults(StubDefaults):
        fastllm_make_acceptor = CoreDefaults.fastllm_make_acceptor

    monkeypatch.setattr("fastllm_core.selection.CoreDefaults", Defaults)
    if not (site.folder / "fastllm_plugin_chain.py").exists():
        site.plugin("chain", CHAIN)
    return built(chosen(**{"method": "chain", **values}))


@pytest.mark.parametrize("rule", ["typical", "lenient"])
def test_a_lossy_rule_is_refused_by_its_name(site: FakeSite, monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    with pytest.raises(ConfigError, match=f"^lossy: {rule} acceptance changes the text .* set lossy = true"):
        with_the_cores_acceptor(site, monkeypatch, acceptance={"rule": rule})
    roles = with_the_cores_acceptor(site, monkeypatch, acceptance={"rule": rule}, lossy=True)
    assert roles.lossy == (f"{rule} acceptance",)
    assert roles.acceptor.guarantee == "lossy"


def test_settings_reach_the_rule(site: FakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastllm_core.lossy_acceptor import LossyAcceptor
    from fastllm_core.protocols import Proposal

    for rule, settings in (("typical", {"epsilon": 0.2, "delta": 0.6}), ("lenient", {"lenience": 0.25})):
        acceptance = {"rule": rule, **settings}
        made = with_the_cores_acceptor(site, monkeypatch, acceptance=acceptance, lossy=True).acceptor
        expected: Any = LossyAcceptor(Proposal.ONE_HOT, rule, **settings)  # type: ignore[arg-type]
        assert vars(made) == vars(expected)


@pytest.mark.parametrize("rule", ["typical", "lenient", "rejection", "block", "match", "auto"])
def test_without_a_drafter_every_rule_is_plain_decoding(
    site: FakeSite, monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    roles = with_the_cores_acceptor(site, monkeypatch, method="plain", acceptance={"rule": rule})
    assert roles.lossy == ()
    assert roles.acceptor.guarantee == "exact"


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        (
            "SimpleNamespace(proposal=Proposal.ONE_HOT)",
            r"its drafter \(SimpleNamespace\) lacks propose, .*inherit from",
        ),
        ("type('D', (Drafter,), {})()", "lacks proposal"),
        ("type('D', (Chain,), {'proposal': 'guess'})()", "must be one of one-hot, .* not 'guess'"),
    ],
)
def test_drafter_that_does_not_fit(site: FakeSite, expression: str, words: str) -> None:
    site.plugin("bad", DRAFTS.format(expression))
    with pytest.raises(PluginContractError, match=words) as caught:
        built(chosen(method="bad"))
    assert str(caught.value).startswith("plugin 'bad' (fastllm-plugin-bad 0.1.0")


def test_check_hook_stops_before_weights(site: FakeSite) -> None:
    check = (
        "    @hookimpl\n    def fastllm_check(self, config): return [f'{config.method}: needs layers', 'and more']\n"
    )
    site.plugin("chain", CHAIN + check)
    with pytest.raises(ConfigError, match=r"^chain: needs layers\nand more$"):
        chosen(method="chain")


def test_method_that_a_registered_model_recommends(site: FakeSite) -> None:
    source = """
        class Model:
            description, method, options = "tiny", "chain", {"chain": {"exit_layer": 7}, "other": {"x": 1}}
            def path(self): ...
        MODEL = Model()
    """
    site.install("fastllm-plugin-tiny", {"fastllm.models": {"tiny": "mod_tiny:MODEL"}}, {"mod_tiny": source})
    config = config_from({"model": "tiny"})
    assert select(config).method == "plain"  # recommended, but not installed
    site.plugin("chain", CHAIN)
    selection = select(config)
    assert (selection.method, selection.config.method) == ("chain", "chain")
    assert selection.config.options == {"chain": {"exit_layer": 7}}
    mine = select(config_from({"model": "tiny", "options.chain.exit_layer": 1}))
    assert mine.config.options == {"chain": {"exit_layer": 1}}
    assert select(config, model=object()).method == "plain"  # a loaded module has no registered name


def test_pipelines_do_not_share_anything(site: FakeSite) -> None:
    site.plugin("chain", CHAIN)
    first, second = chosen(method="chain"), chosen(method="chain")
    assert first.manager is not second.manager
    assert first.plugins["chain"] is not second.plugins["chain"]


def test_tracing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FASTLLM_TRACE_PLUGINS", "1")
    chosen()
    assert "fastllm_check" in capsys.readouterr().err


def test_selection_needs_no_torch(site: FakeSite, tmp_path: Path) -> None:
    site.plugin("chain", CHAIN)
    code = (
        f"import sys; sys.path.insert(0, {str(site.folder)!r})\n"
        "from fastllm_core.config import config_from\nfrom fastllm_core.selection import select\n"
        "select(config_from({'model': '/none', 'method': 'chain'}))\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
