"""Which plugins take part in a pipeline: everything that can be settled before weights are loaded.

Names, versions, options and conflicts are checked here, so that a mistake is found in a moment.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import pluggy
from packaging.requirements import InvalidRequirement, Requirement

from . import discovery, hookspecs
from .adapters import Adapter
from .config import Config
from .defaults import CORE, CoreDefaults
from .discovery import SELECTABLE, InstalledPlugin
from .errors import ConfigError, FastllmError, PluginConflict, PluginContractError, PluginLoadError, PluginNotFound
from .hookspecs import API_VERSION
from .models import RegisteredModel, registered_model
from .options import Options
from .sources import validate
from .suggest import did_you_mean

PLAIN: Final = "plain"
"""The method that drafts nothing."""
ROLE_HOOKS: Final[Mapping[str, str]] = {
    role: f"fastllm_make_{role}" for role in ("drafter", "verifier", "kv_cache", "acceptor")
}
"""The factory hook of each role."""
WORDS: Final[Mapping[str, str]] = {"kv_cache": "key/value cache"}
"""How a role is called in a sentence, where its key is no word."""

OptionTables = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Selection:
    """Everything that is known before weights are loaded."""

    config: Config
    """As configured, with the method resolved and the model's default options beneath the user's."""
    method: str
    manager: pluggy.PluginManager
    core: CoreDefaults
    registered: RegisteredModel | None = None
    """The registered model, if the configuration names one."""
    plugins: Mapping[str, object] = field(default_factory=dict)
    """Instances by name, in the order in which later wraps earlier."""
    installed: Mapping[str, InstalledPlugin] = field(default_factory=dict)


def select(config: Config, *, model: object = None) -> Selection:
    """Choose, load and check the plugins of a pipeline. Loads no weights.

    model: an already loaded model, which has no registered recommendations; None if `config.model` names it.
    Raises ConfigError, PluginNotFound, PluginConflict, PluginLoadError or PluginContractError.
    """
    _check_requirements(config)
    registered = registered_model(config.model) if model is None else None
    method = _method(config, registered)
    names = _names(config, method)
    options = _options(config, registered, names)
    config = config.model_copy(update={"method": method, "options": options})
    loaded = {name: _load(name, options.get(name, {}), "use" if name in config.use else "method") for name in names}
    core = CoreDefaults(config)
    manager = _manager(core, loaded)
    plugins = {name: instance for name, (_, instance) in loaded.items()}
    installed = {name: plugin for name, (plugin, _) in loaded.items()}
    selection = Selection(config, method, manager, core, registered, plugins, installed)
    for role in ROLE_HOOKS:
        offers(selection, role)
    _check_plugins(selection)
    return selection


def offers(selection: Selection, role: str) -> list[str]:
    """The plugin whose object fills the role, if any: at most one name, never the core's own.

    Raises PluginConflict if two offer it and `[roles]` names none, ConfigError if it names one that does not.
    """
    impls = getattr(selection.manager.hook, ROLE_HOOKS[role]).get_hookimpls()
    names = [impl.plugin_name for impl in impls if not (impl.wrapper or impl.hookwrapper)]
    names = [name for name in selection.plugins if name in names]
    chosen: str | None = getattr(selection.config.roles, role)
    word = WORDS.get(role, role)
    if chosen == CORE:
        return []
    if chosen is not None:
        if chosen not in names:
            others = ", ".join([*names, CORE])
            raise ConfigError(f"roles.{role}: plugin '{chosen}' offers no {word}; those that do: {others}")
        return [chosen]
    if len(names) > 1:
        raise PluginConflict(
            f"{' and '.join(names)} {'both' if len(names) == 2 else 'all'} offer {_article(word)}; "
            f'choose one with roles.{role} = "{names[0]}"'
        )
    return names


def adapters(selection: Selection) -> tuple[Adapter, ...]:
    """What the selected plugins know of model families, the last selected first. Raises PluginContractError."""
    hook = selection.manager.hook.fastllm_adapters
    found = [adapter for answer in hook() for adapter in answer]
    for adapter in found:
        if not isinstance(adapter, Adapter):
            makers = " or ".join(str(selection.installed[impl.plugin_name]) for impl in hook.get_hookimpls())
            raise PluginContractError(
                f"{makers}: fastllm_adapters must answer fastllm_core.Adapter objects, not {type(adapter).__name__}"
            )
    return tuple(found)


def lone_plugin(name: str, options: Mapping[str, Any]) -> tuple[InstalledPlugin, pluggy.PluginManager]:
    """A method that takes no part in the pipeline, and a manager that asks it alone.

    Raises PluginNotFound, PluginLoadError, PluginContractError or ConfigError.
    """
    plugin, instance = _load(name, options, "method")
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    _register(manager, name, plugin, instance)
    return plugin, manager


def validate_options(plugin: InstalledPlugin, kind: type[Options], table: Mapping[str, Any]) -> Options:
    """A plugin's options. Raises ConfigError with the dotted path of every wrong one."""
    prefix = ("options", plugin.name)
    for key in table:
        if key in Config.model_fields and key not in kind.model_fields:
            raise ConfigError(
                f"options.{plugin.name}.{key}: {plugin.name} has no such option; '{key}' is a setting of its own: "
                f'{key} = ... in the configuration, load(config={{"{key}": ...}})'
            )
    return validate(kind, table, {prefix: f"see fastllm plugins show {plugin.name}"}, prefix)


def plugin_class(plugin: InstalledPlugin, value: object) -> type[Any]:
    """What a plugin's entry point holds, checked: a class for this API version, with an options model.

    Raises PluginContractError.
    """
    if not isinstance(value, type):
        raise PluginContractError(f"{plugin} is no class; its entry point must name the plugin's class")
    stated = getattr(value, "api_version", None)
    if stated is None:
        raise PluginContractError(f"{plugin} does not state its api_version; this core speaks {API_VERSION}")
    if stated != API_VERSION:
        older = isinstance(stated, int) and stated < API_VERSION
        mend = "Upgrade the plugin or pin fastllm-core" if older else "Upgrade fastllm-core or pin the plugin"
        raise PluginContractError(
            f"{plugin} is written for plugin API {stated}; this core speaks {API_VERSION}. {mend}."
        )
    options = options_class(value)
    if not (isinstance(options, type) and issubclass(options, Options)):
        raise PluginContractError(f"{plugin}: its Options must be a subclass of fastllm_core.Options")
    return value


def options_class(plugin: type[Any]) -> type[Options]:
    """The options model of a plugin class; a plugin without one takes none."""
    return getattr(plugin, "Options", Options)


def _check_requirements(config: Config) -> None:
    problems = []
    for index, text in enumerate(config.requires):
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            raise ConfigError(f"requires.{index}: '{text}' is no requirement: {str(error).splitlines()[0]}") from error
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            have = version(requirement.name)
        except PackageNotFoundError:
            problems.append(f"requires: {text} is not installed; try: pip install '{text}'")
            continue
        if not requirement.specifier.contains(have, prereleases=True):
            problems.append(f"requires: {text}, but {requirement.name} {have} is installed; try: pip install '{text}'")
    if problems:
        raise ConfigError("\n".join(problems))


def _method(config: Config, registered: RegisteredModel | None) -> str:
    """The configured method, or what the registered model recommends if that is installed."""
    if config.method != "auto":
        return config.method
    recommended = registered.method if registered else None
    have = {plugin.name for plugin in discovery.installed("method")}
    return recommended if recommended in have and recommended is not None else PLAIN


def _names(config: Config, method: str) -> list[str]:
    """Every selected plugin once: the method, those named by a role, then `use` in its order."""
    roles = [name for name in config.roles.model_dump().values() if name not in (None, CORE)]
    first = [name for name in (method, *roles) if name != PLAIN and name not in config.use]
    return list(dict.fromkeys([*first, *config.use]))


def _options(config: Config, registered: RegisteredModel | None, names: list[str]) -> OptionTables:
    """Options of the selected plugins: the model's defaults with the user's on top."""
    for name in config.options:
        if name not in names:
            chosen = ", ".join(names) or "none"
            raise ConfigError(
                f"options.{name}: plugin '{name}' is not selected (selected: {chosen})"
                f'{did_you_mean(name, names) or ";"} set method = "{name}" or add it to use'
            )
    defaults = registered.options if registered else {}
    return {name: {**defaults.get(name, {}), **config.options.get(name, {})} for name in names}


def _load(name: str, table: Mapping[str, Any], key: str) -> tuple[InstalledPlugin, Any]:
    """One plugin's metadata and instance."""
    try:
        plugin, value = discovery.load(name, *SELECTABLE)
    except PluginNotFound as error:
        hint = did_you_mean(name, (PLAIN, "auto")) if key == "method" else ""
        raise PluginNotFound(f"{error}{hint}") from error
    kind = plugin_class(plugin, value)
    options = validate_options(plugin, options_class(kind), table)
    try:
        return plugin, kind(options)
    except FastllmError:
        raise
    except Exception as error:
        raise PluginLoadError(f"{plugin} failed to start: {type(error).__name__}: {error}") from error


def _manager(core: CoreDefaults, loaded: Mapping[str, tuple[InstalledPlugin, object]]) -> pluggy.PluginManager:
    """A manager of this pipeline alone, with every plugin checked against the hook specs."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    if os.environ.get("FASTLLM_TRACE_PLUGINS", "0") not in ("", "0"):
        manager.trace.root.setwriter(sys.stderr.write)
        manager.enable_tracing()
    manager.register(core, CORE)
    for name, (plugin, instance) in loaded.items():
        _register(manager, name, plugin, instance)
    return manager


def _register(manager: pluggy.PluginManager, name: str, plugin: InstalledPlugin, instance: object) -> None:
    try:
        manager.register(instance, name)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        reason = " ".join(str(error).split())
        raise PluginContractError(f"{plugin} does not fit the hook specs: {reason}") from error


def _check_plugins(selection: Selection) -> None:
    """Ask the plugins for problems that can be seen already."""
    answers = selection.manager.hook.fastllm_check(config=selection.config)
    problems = [problem for answer in answers for problem in answer]
    if problems:
        raise ConfigError("\n".join(problems))


def _article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
