"""Finding plugins by metadata and loading the few that are asked for."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from fastllm_core import discovery
from fastllm_core.errors import PluginConflict, PluginLoadError, PluginNotFound

if TYPE_CHECKING:
    from conftest import FakeSite

GOOD = "class Plugin:\n    api_version = 1\n"


def test_listing_imports_nothing(site: FakeSite) -> None:
    site.plugin("alpha", "raise RuntimeError('imported')")
    site.plugin("beta", GOOD, kind="parts")
    found = {plugin.name: plugin for plugin in discovery.installed("method", "part")}
    assert found["alpha"].kind == "method"
    assert found["beta"].kind == "part"
    assert found["alpha"].distribution == "fastllm-plugin-alpha"
    assert found["alpha"].version == "0.1.0"
    assert found["alpha"].entry_point == "fastllm_plugin_alpha:Plugin"
    assert "fastllm_plugin_alpha" not in sys.modules


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        (None, "index"),
        ({"url": "file:///x", "dir_info": {"editable": True}}, "editable"),
        ({"url": "file:///x", "dir_info": {}}, "file"),
        ({"url": "https://x/y.git", "vcs_info": {"vcs": "git", "commit_id": "1"}}, "vcs"),
    ],
)
def test_origin(site: FakeSite, url: dict[str, object] | None, origin: str) -> None:
    site.install("fastllm-plugin-a", {"fastllm.plugins": {"a-plugin": "mod_a:Plugin"}}, {}, direct_url=url)
    assert discovery.find("a-plugin", "method").origin == origin


def test_load_gives_what_the_entry_point_holds(site: FakeSite) -> None:
    site.plugin("alpha", GOOD)
    plugin, value = discovery.load("alpha", *discovery.SELECTABLE)
    assert str(plugin) == "plugin 'alpha' (fastllm-plugin-alpha 0.1.0, fastllm_plugin_alpha:Plugin)"
    assert value.api_version == 1  # type: ignore[attr-defined]


def test_unknown_name_says_what_was_meant_and_how_to_install(site: FakeSite) -> None:
    site.plugin("kangaroo", GOOD)
    with pytest.raises(PluginNotFound) as caught:
        discovery.load("kangaro", *discovery.SELECTABLE)
    message = str(caught.value)
    assert message.startswith("no plugin 'kangaro' is installed; did you mean 'kangaroo'? Installed: ")
    assert message.endswith("Try: pip install fastllm-plugin-kangaro")


def test_name_of_another_kind_is_told_apart(site: FakeSite) -> None:
    site.plugin("tiny", GOOD, kind="models")
    with pytest.raises(PluginNotFound, match="'tiny' is a model of fastllm-plugin-tiny"):
        discovery.find("tiny", *discovery.SELECTABLE)


def test_two_distributions_with_one_name(site: FakeSite) -> None:
    site.plugin("alpha", GOOD)
    site.plugin("alpha", GOOD, distribution="fastllm-plugin-dupe", kind="parts")
    with pytest.raises(
        PluginConflict, match=r"2 installed packages offer 'alpha': .*dupe.*Uninstall all but one"
    ) as caught:
        discovery.load("alpha", *discovery.SELECTABLE)
    assert "fastllm-plugin-alpha 0.1.0" in str(caught.value)


@pytest.mark.parametrize("source", ["import nosuchmodule", "assert False, 'no'", "raise SystemExit('bye')", "x = 1"])
def test_broken_plugin_is_one_line_that_names_it(site: FakeSite, source: str) -> None:
    site.plugin("broken", source)
    site.plugin("alpha", GOOD)
    discovery.load("alpha", "method")  # not selected: it changes nothing
    with pytest.raises(PluginLoadError) as caught:
        discovery.load("broken", "method")
    message = str(caught.value)
    assert "\n" not in message
    start = "plugin 'broken' (fastllm-plugin-broken 0.1.0, fastllm_plugin_broken:Plugin) failed to import: "
    assert message.startswith(start)


def test_allow_list(site: FakeSite) -> None:
    site.plugin("alpha", GOOD)
    site.plugin("beta", GOOD)
    site.plugin("gamma", GOOD)
    environ = {"FASTLLM_PLUGINS": "alpha, fastllm-plugin-gamma"}
    assert [plugin.name for plugin in discovery.installed("method", environ=environ)] == ["alpha", "gamma"]
    with pytest.raises(PluginNotFound, match="FASTLLM_PLUGINS=alpha, fastllm-plugin-gamma does not allow it"):
        discovery.load("beta", "method", environ=environ)


def test_new_installation_is_seen_at_once(site: FakeSite) -> None:
    with pytest.raises(PluginNotFound):
        discovery.load("late", "method")
    site.plugin("late", GOOD)
    discovery.load("late", "method")
