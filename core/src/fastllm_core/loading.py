"""Importing one entry point through stevedore, with an error that names whose fault it is."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from stevedore.named import NamedExtensionManager

from .discovery import GROUPS, InstalledPlugin
from .errors import PluginLoadError


class Plugins(NamedExtensionManager[Any]):
    """Entry points straight from the environment: stevedore's disk cache may be stale and forgets the distribution."""

    def list_entry_points(self) -> list[EntryPoint]:
        """Those of the namespace, as installed now."""
        return list(entry_points(group=self.namespace))


def load_entry_point(plugin: InstalledPlugin, entry_point: EntryPoint) -> object:
    """What the entry point holds. One at a time, so that a failure is pinned to its plugin.

    Raises PluginLoadError.
    """
    if plugin.distribution == "unknown":
        return entry_point.load()

    def fail(_: object, __: object, error: BaseException) -> None:
        raise PluginLoadError(f"{plugin} failed to import: {type(error).__name__}: {_first_line(error)}") from error

    try:
        manager = Plugins(
            GROUPS[plugin.kind], [plugin.name], on_load_failure_callback=fail, on_missing_entrypoints_callback=None
        )
    except (AssertionError, SystemExit) as error:  # stevedore lets these through
        fail(None, None, error)
        raise
    return manager[plugin.name].plugin


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or ["(no message)"])[0]
