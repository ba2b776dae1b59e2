"""Which plugins are installed, and loading the few that are asked for.

Listing reads the metadata of installed distributions and imports nothing of theirs. Only a plugin that was selected by
name is imported, so that a broken one that nobody asked for changes nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, entry_points
from typing import Final

from .errors import PluginConflict, PluginNotFound
from .suggest import did_you_mean

GROUPS: Final[Mapping[str, str]] = {
    "method": "fastllm.plugins",
    "part": "fastllm.parts",
    "model": "fastllm.models",
    "command": "fastllm.commands",
    "trainer": "fastllm.trainers",
    "converter": "fastllm.converters",
}
"""Entry-point group by kind. A method is a way of speculating, a part fills or wraps one role, a model is a registered
name for weights, a command is a sub-command of `fastllm`; a trainer and a converter are how a method's head is trained
or read from another format (see `lessons`). The kind is metadata, so that listing imports nothing."""

SELECTABLE: Final = ("method", "part")
"""The kinds that a pipeline is composed of; they share one set of names."""

ALLOW_LIST: Final = "FASTLLM_PLUGINS"


@dataclass(frozen=True, slots=True)
class InstalledPlugin:
    """One entry point of an installed distribution, from its metadata alone."""

    name: str
    kind: str
    distribution: str
    version: str
    entry_point: str
    origin: str
    """Where the distribution was installed from: index, editable, vcs or file."""

    def __str__(self) -> str:
        """As error messages name it."""
        return f"{self.noun} '{self.name}' ({self.distribution} {self.version}, {self.entry_point})"

    @property
    def noun(self) -> str:
        """What to call it in a sentence."""
        return "plugin" if self.kind in SELECTABLE else self.kind


def installed(*kinds: str, environ: Mapping[str, str] = os.environ) -> list[InstalledPlugin]:
    """What is installed of these kinds (of all, if none is named), by kind and name.

    `FASTLLM_PLUGINS=a,b` narrows it to the plugins or distributions that it names.
    """
    found = [plugin for plugin, _ in _scan(kinds, environ)]
    return sorted(found, key=lambda plugin: (list(GROUPS).index(plugin.kind), plugin.name, plugin.distribution))


def find(name: str, *kinds: str, environ: Mapping[str, str] = os.environ) -> InstalledPlugin:
    """The one installed plugin of that name. Raises PluginNotFound or PluginConflict."""
    return _find(name, kinds, environ)[0]


def load(name: str, *kinds: str, environ: Mapping[str, str] = os.environ) -> tuple[InstalledPlugin, object]:
    """Import the one installed plugin of that name: its metadata and what its entry point holds.

    Raises PluginNotFound, PluginConflict, or PluginLoadError if its import fails.
    """
    plugin, entry_point = _find(name, kinds, environ)
    from .loading import load_entry_point  # stevedore, which listing does not need

    return plugin, load_entry_point(plugin, entry_point)


def _find(name: str, kinds: Iterable[str], environ: Mapping[str, str]) -> tuple[InstalledPlugin, EntryPoint]:
    kinds = tuple(kinds)
    found = _scan(kinds, environ)
    same = [pair for pair in found if pair[0].name == name]
    if not same:
        raise PluginNotFound(_not_found(name, kinds, [plugin for plugin, _ in found], environ))
    if len(same) > 1:
        offers = "; ".join(str(plugin) for plugin, _ in sorted(same, key=lambda pair: pair[0].distribution))
        raise PluginConflict(f"{len(same)} installed packages offer '{name}': {offers}. Uninstall all but one.")
    return same[0]


def _scan(kinds: Iterable[str], environ: Mapping[str, str]) -> list[tuple[InstalledPlugin, EntryPoint]]:
    wanted = set(kinds) or set(GROUPS)
    allowed = _allowed(environ)
    everything = entry_points()
    found: list[tuple[InstalledPlugin, EntryPoint]] = []
    for kind, group in GROUPS.items():
        if kind in wanted:
            found += [(_describe(kind, entry), entry) for entry in everything.select(group=group)]
    if allowed is None:
        return found
    return [pair for pair in found if {pair[0].name, pair[0].distribution} & allowed]


def _allowed(environ: Mapping[str, str]) -> set[str] | None:
    """Names on the allow-list, or None if there is no list."""
    listed = environ.get(ALLOW_LIST)
    return None if listed is None else {name.strip() for name in listed.split(",") if name.strip()}


def _describe(kind: str, entry: EntryPoint) -> InstalledPlugin:
    distribution = entry.dist
    if distribution is None:  # only an entry point that was made by hand has none
        return InstalledPlugin(entry.name, kind, "unknown", "unknown", entry.value, "unknown")
    return InstalledPlugin(
        entry.name, kind, distribution.name, distribution.version, entry.value, _origin(distribution)
    )


def _origin(distribution: Distribution) -> str:
    """From `direct_url.json` (PEP 610), which pip writes for everything that does not come from an index."""
    text = distribution.read_text("direct_url.json")
    if text is None:
        return "index"
    try:
        url = json.loads(text)
    except ValueError:
        return "unknown"
    if "vcs_info" in url:
        return "vcs"
    return "editable" if url.get("dir_info", {}).get("editable") else "file"


def _not_found(name: str, kinds: tuple[str, ...], found: list[InstalledPlugin], environ: Mapping[str, str]) -> str:
    noun = "plugin" if set(kinds) <= set(SELECTABLE) else kinds[0]
    others = [plugin for plugin, _ in _scan((), environ) if plugin.name == name]
    if others:
        return f"no {noun} '{name}' is installed: '{name}' is a {others[0].kind} of {others[0].distribution}"
    if _allowed(environ) is not None and any(plugin.name == name for plugin, _ in _scan((), {})):
        return f"{noun} '{name}' is installed, but {ALLOW_LIST}={environ[ALLOW_LIST]} does not allow it; add it there"
    names = sorted({plugin.name for plugin in found})
    listed = ", ".join(names) or "none"
    guess = did_you_mean(name, names)
    mend = f"Try: pip install fastllm-plugin-{name}" if noun == "plugin" else "See: fastllm plugins list"
    return f"no {noun} '{name}' is installed{guess or '.'} Installed: {listed}. {mend}"
